"""The stage of a run: real servers, a real Asterisk, an agent, two tenants, and two of each process of the product."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis as redis_client

from chaos import network, tools
from chaos.callers import PREFIX, Line
from chaos.clocks import Clock
from chaos.deeds import Deeds
from chaos.network import Firewall
from chaos.proxy import Proxy
from chaos.supervised import Program, Supervised
from devstack import asterisk_config, asterisk_root, folders, processes, servers
from devstack.asterisk import RealAsterisk, Switch
from devstack.endpoint import PATH
from devstack.pipeline import ROOT, SECRET_KEY, procfile, wait_until
from devstack.tenants import Tenant, closing_tenant
from shared.process import sealing
from shared.storage import migrations

#: Of the two tenants; each is also a dialplan context, an ARI user and a Stasis app.
APPS = ("voiceai-a", "voiceai-b")
KINDS = ("listener", "worker", "scheduler")
AGENT = "agent"
JUDGE = "judge"
#: Longer than any fault keeps a server down.
PATIENCE_SECONDS = 60
#: Of the disk that Postgres has.
DISK_MEGABYTES = 1000
POSTGRES, REDIS = "postgres", "redis"
#: A set-up lasts long enough to be struck: the agent of a platform takes about as long to accept.
ACCEPT_SECONDS = 0.1
CALLER_HZ, AGENT_HZ = 1004, 400
#: What failure-modes.md promises at worst: until a waiting caller has an agent or an end, and until a caller who was
#: answered has an agent again, or an end.
WAITING_SECONDS, SILENCE_SECONDS = 60, 20
CONFIGURATION = """
    UPDATE organization_configurations SET value = (value::jsonb || %s::jsonb)::json
    WHERE organization_id = %s
"""
RENAME = "UPDATE organization_configurations SET key = %s WHERE organization_id = %s"
SAVE_ANEW = """
    WITH old AS (DELETE FROM organization_configurations WHERE organization_id = %s RETURNING *)
    INSERT INTO organization_configurations (organization_id, key, value, created_at)
    SELECT organization_id, key, value, now() FROM old
"""


def names(kind: str) -> tuple[str, str]:
    """Return the names of the two processes of a kind. The second one has a clock that can be set."""
    return f"{kind}.1", f"{kind}.2"


class Judge:
    """The judge, in a process of its own that knows nothing of this project."""

    def __init__(self, spec: dict[str, Any], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos.judge"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=ROOT,
                text=True,
            )
        self._lock = threading.Lock()
        self._write(spec)

    def is_ready(self) -> bool:
        """Return True once it sees the Asterisk and the tables."""
        return bool(self._ask("ready")["ready"])

    def in_setup(self) -> dict[str, str]:
        """Return the legs of callers who wait for an agent now, each with the app that it is in."""
        legs: dict[str, str] = self._ask("setup")["legs"]
        return legs

    def verdict(self) -> dict[str, Any]:
        """Return what it has seen, and every violation."""
        return self._ask("verdict")

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _ask(self, what: str) -> dict[str, Any]:
        with self._lock:
            self._write({"ask": what})
            assert self._process.stdout
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the judge has ended: see judge.log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _write(self, line: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()


@dataclass(kw_only=True)
class Stage:
    """All that a run consists of."""

    folder: Path
    postgres: servers.Postgres
    redis: servers.Redis
    asterisk: RealAsterisk
    proxy: Proxy
    firewall: Firewall
    supervised: Supervised
    clocks: dict[str, Clock]
    lines: Sequence[Line]
    deeds: Deeds
    judge: Judge
    #: Direct, for the judge and for the platform's own doings; and as the product has it, by the proxy.
    database_url: str
    product_redis_url: str
    #: Holds a ballast that fills it.
    disk: Path

    def switch(self) -> Switch:
        """Return a new client of the Asterisk, past the proxy."""
        users = self.asterisk.configuration.users
        return Switch(self.asterisk.url, JUDGE, users[JUDGE], self.asterisk.configuration)

    def asterisk_version(self) -> str:
        """Return the version of Asterisk, without what Debian adds to it."""
        info = self.switch().request("GET", "/asterisk/info", only="system").json()
        version: str = info["system"]["version"]
        return version.partition("+")[0].partition("~")[0]

    def execute(self, statement: str, *values: object) -> None:
        """Change the platform's tables, as the platform would: when Postgres is away, later."""

        def execute() -> None:
            connect = psycopg.connect(self.database_url, autocommit=True, connect_timeout=5)
            with contextlib.closing(connect) as connection:
                connection.execute(statement.encode(), values)

        _patiently(execute)

    def command_redis(self, *words: str) -> None:
        """Send a command to Redis, past the proxy."""
        with contextlib.closing(redis_client.Redis.from_url(self.redis.url, socket_timeout=3)) as client:
            client.execute_command(*words)  # type: ignore[no-untyped-call]

    def postgres_answers(self) -> bool:
        """Return True if Postgres takes a new connection, past the proxy."""
        try:
            psycopg.connect(self.database_url, connect_timeout=3).close()
        except psycopg.OperationalError:
            return False
        return True

    def change_password(self, line: Line) -> None:
        """Give a tenant's ARI user another password: in its Asterisk, then in the platform's configuration."""
        self.asterisk.configuration.users[line.app] = password = secrets.token_urlsafe(12)
        _patiently(self.asterisk.reload)
        self.execute(CONFIGURATION, json.dumps({"app_password": password}), line.organization_id)


@contextlib.contextmanager
def running(folder: Path, results: Path) -> Iterator[Stage]:
    """Start everything; at the end all of it is stopped.

    Args:
        folder: for the servers; on no path longer than a socket's name may be.
        results: for logs, deeds, observations and verdict.
    """
    logs = folders.make(results / "logs", mode=0o755)
    with contextlib.ExitStack() as stack:
        found = tools.find()
        disk = stack.enter_context(network.tmpfs(folder / "disk", megabytes=DISK_MEGABYTES))
        postgres = stack.enter_context(servers.Postgres(disk / "postgres"))
        redis = stack.enter_context(servers.Redis(folder / "redis"))
        agent_port = processes.free_port()
        passwords = {name: secrets.token_urlsafe(12) for name in (*APPS, JUDGE)}
        asterisk = stack.enter_context(
            RealAsterisk(
                asterisk_root.find(),
                folder / "asterisk",
                asterisk_config.Configuration(
                    contexts={app: app for app in APPS},
                    users=passwords,
                    clients={
                        "media": asterisk_config.Client(uri=f"ws://127.0.0.1:{agent_port}{PATH}", reconnect_attempts=1)
                    },
                    session_limit=400,
                ),
            )
        )
        database_url = servers.create_database(postgres.url, "chaos")
        migrations.upgrade(database_url)
        proxy = stack.enter_context(
            Proxy(
                found.haproxy,
                folder / "proxy",
                tenants=dict.fromkeys(APPS, asterisk.port),
                servers={POSTGRES: _port(database_url), REDIS: _port(redis.url)},
            )
        )
        firewall = Firewall(found.nft)
        tenants = {app: stack.enter_context(closing_tenant(database_url, app)) for app in APPS}
        for app, tenant in tenants.items():
            tenant.configure(
                proxy.url(app, asterisk.url), app=app, password=passwords[app], ari_dial_template="Local/{number}@far",
                from_numbers=["+4955501"],
            )  # fmt: skip
        clocks = {names(kind)[1]: Clock(found.libfaketime, folder / f"clock-{kind}") for kind in KINDS}
        recordings = folders.make(results / "heard-by-agent", mode=0o755)
        supervised = Supervised(
            results / "logs",
            _programs(clocks, agent_port, recordings),
            {
                "DATABASE_URL": proxy.url(POSTGRES, database_url),
                "REDIS_URL": proxy.url(REDIS, redis.url),
                "SECRET_KEY": SECRET_KEY,
                # The callers name the legs that the product originates.
                "ID_PREFIX": PREFIX,
                "MEDIA_TOKEN_SECRET": sealing.media_secret(SECRET_KEY.split(",")[0].strip()),
            },
        )
        stack.enter_context(supervised)
        lines = _lines(database_url, tenants)
        judge = Judge(
            {
                "folder": str(results),
                "asterisk_url": asterisk.url,
                "user": JUDGE,
                "password": passwords[JUDGE],
                "database_url": database_url,
                "apps": {line.app: line.organization_id for line in lines},
                "agent_port": agent_port,
                "caller_recordings": str(folder / "asterisk" / "recordings"),
                "agent_recordings": str(recordings),
                "caller_hz": CALLER_HZ,
                "agent_hz": AGENT_HZ,
                "waiting_seconds": WAITING_SECONDS,
                "silence_seconds": SILENCE_SECONDS,
            },
            logs / "judge.log",
        )
        stack.callback(judge.end)
        stack.callback(lambda: (logs / "asterisk.log").write_text(asterisk.log()))
        # Before the judge leaves: an Asterisk may deadlock when a socket that hears everything closes.
        stack.callback(asterisk.kill)
        wait_until(judge.is_ready, seconds=20, what="the judge is ready")
        deeds = Deeds(results / "deeds.jsonl")
        stack.callback(deeds.close)
        yield Stage(
            folder=folder,
            postgres=postgres,
            redis=redis,
            asterisk=asterisk,
            proxy=proxy,
            firewall=firewall,
            supervised=supervised,
            clocks=clocks,
            lines=lines,
            deeds=deeds,
            judge=judge,
            database_url=database_url,
            product_redis_url=proxy.url(REDIS, redis.url),
            disk=disk,
        )


def _patiently(action: Callable[[], None]) -> None:
    """Try until it succeeds: another fault may have the server down just now."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            action()
        except (psycopg.Error, processes.ProcessError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def _port(url: str) -> int:
    return urlsplit(url).port or 0


def _programs(clocks: dict[str, Clock], agent_port: int, recordings: Path) -> dict[str, Program]:
    found = {}
    for kind in KINDS:
        _, flag, module = procfile()[kind]
        for name in names(kind):
            own = clocks[name].environment if name in clocks else {}
            found[name] = Program(command=[sys.executable, flag, module], environment={"PROCESS_NAME": name, **own})
    agent = [sys.executable, "-m", "devstack.agent", "--port", str(agent_port), "--mode", "tone"]
    agent += ["--accept-delay", str(ACCEPT_SECONDS), "--record-in", str(recordings)]
    # The agent hangs up early on each eighth, and on those who never do it at last.
    agent += ["--close-each", "8", "6", "--close-after", "75"]
    return found | {AGENT: Program(command=agent)}


def _lines(database_url: str, tenants: dict[str, Tenant]) -> list[Line]:
    """Wait until each tenant's event socket is open; return where its calls go."""
    lines = []
    with contextlib.closing(psycopg.connect(database_url, autocommit=True)) as connection:
        for app, tenant in tenants.items():
            opened: list[int] = []

            def is_open(organization_id: int = tenant.organization_id, opened: list[int] = opened) -> bool:
                found = connection.execute(
                    "SELECT connection_id FROM ari.connections JOIN ari.connection_versions USING (connection_id)"
                    " WHERE organization_id = %s AND socket_state = 'connected'",
                    [organization_id],
                ).fetchall()
                opened.extend(row[0] for row in found)
                return bool(found)

            wait_until(is_open, seconds=30, what=f"the event socket of {app} is open")
            lines.append(
                Line(
                    app=app,
                    organization_id=tenant.organization_id,
                    connection_id=opened[0],
                    workflow_id=tenant.workflow_id,
                    user_id=tenant.user_id,
                )
            )
    return lines
