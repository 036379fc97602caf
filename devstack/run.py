"""`make run`: the whole pipeline on this machine, with demo callers, until Ctrl-C.

Starts Postgres, Redis, an Asterisk, a voice agent and the processes of the Procfile, and prints the calls. Environment:
`DATABASE_URL` and `REDIS_URL` name existing servers, `ASTERISK=real` starts a real Asterisk instead of the simulator,
`PLATFORM=newest` (or `2026-02`) the stand-in of the platform's API instead of the agent alone, `CALLS=n` stops after n
calls, `RATE` is the number of calls per second.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import psycopg
from rich.console import Console

from devstack import (
    agent,
    asterisk,
    asterisk_config,
    asterisk_root,
    debian,
    demo,
    endpoint,
    folders,
    live_view,
    parent,
    platform_tables,
    processes,
    servers,
)
from devstack.platform_api.layouts import Layout
from shared import errors
from shared.process import sealing
from shared.storage import migrations

CHECKOUT = Path(__file__).parent.parent
DATABASE = "ari_pipeline"
SIMULATOR_PORT = 18089
CONSOLE_PORT = 8090
#: The user of the console, who may do everything.
CONSOLE_USER = "demo"
#: Of a password that is typed.
_PASSWORD_LENGTH = 16
POLL_SECONDS = 0.5


class Failed(Exception):
    """The stack cannot be started, or a process has ended; the text is for the user."""


class Stack:
    """All processes of the stack; they are stopped in reverse order."""

    def __init__(self, console: Console, environment: Mapping[str, str]) -> None:
        self._console = console
        self._given = environment
        self._running = contextlib.ExitStack()
        self._folder = folders.named("run")
        self._logs = folders.make(self._folder / "log", mode=0o700)
        self._rate = _number(environment, "RATE") or 0.5
        calls = _number(environment, "CALLS")
        self._calls = None if calls is None else max(1, int(calls))
        if environment.get("ASTERISK", "") not in ("", "real", "simulated"):
            raise Failed("ASTERISK must be real or simulated")
        self._layout = _layout(environment)
        self._watched: list[processes.GuardedProcess] = []
        self._about: dict[str, str] = {}

    def run(self) -> None:
        """Start everything and print calls until interrupted, or until `CALLS` calls have ended.

        Raises:
            Failed: with the reason.
        """
        make = parent.Make()
        with self._running:
            self._hold_lock()
            environment = self._environment()
            callers = self._start_calls(environment)
            log = self._logs / "processes"
            view = live_view.LiveView(self._console, environment["DATABASE_URL"], log)
            self._running.callback(view.close)
            command = [sys.executable, "-m", "honcho", "start", "--env", os.devnull, "--no-colour"]
            # The log is for a person to read, and the view above reads it.
            processes_environment = {"LOG_FORMAT": "text", **environment}
            self._start(
                [*command, "--procfile", str(CHECKOUT / "Procfile")], log, processes_environment, grace_seconds=7
            )
            self._heading()
            self._running.callback(self._console.print, "stopping ...", style="dim")
            while self._calls is None or view.ended < self._calls:
                callers()
                view.step()
                self._watch()
                make.check()
                time.sleep(POLL_SECONDS)

    def _hold_lock(self) -> None:
        try:
            self._running.enter_context(folders.lock(self._folder / "lock", wait=False))
        except folders.Busy:
            raise Failed(
                f"another `make run` uses {self._folder}: stop it, or set ARI_PIPELINE_HOME to another folder"
            ) from None

    def _environment(self) -> dict[str, str]:
        """Return the environment of the Procfile's processes; also write it to a file, for `arictl`."""
        settings = {
            "DATABASE_URL": self._given.get("DATABASE_URL") or self._start_postgres(),
            "REDIS_URL": self._given.get("REDIS_URL") or self._start_redis(),
            "SECRET_KEY": self._given.get("SECRET_KEY") or folders.secret(self._folder / "secret-key"),
        }
        for heading, name in (("Postgres", "DATABASE_URL"), ("Redis", "REDIS_URL")):
            given = f", from {name}: it must serve nothing else" if self._given.get(name) else ""
            self._about[heading] = _address(settings[name]) + given
        settings["MEDIA_TOKEN_SECRET"] = self._given.get("MEDIA_TOKEN_SECRET") or sealing.media_secret(
            settings["SECRET_KEY"].split(",")[0].strip()
        )
        if self._layout is not None:
            settings |= self._beside_platform(self._layout, settings["DATABASE_URL"])
        migrations.upgrade(settings["DATABASE_URL"])
        settings |= self._console_settings(settings["DATABASE_URL"])
        lines = [f"export {name}='{value}'\n" for name, value in settings.items()]
        folders.write_private(self._folder / "environment", "".join(lines))
        path = os.pathsep.join([str(Path(sys.executable).parent), self._given.get("PATH", os.defpath)])
        return dict(self._given) | settings | {"PATH": path, "PYTHONUNBUFFERED": "1", "DRAIN_SECONDS": "3"}

    def _console_settings(self, database_url: str) -> dict[str, str]:
        """Add the console's user; return what the console has to know. Its password stays from run to run."""
        port = self._given.get("CONSOLE_PORT") or str(processes.free_port(CONSOLE_PORT))
        password = folders.secret(self._folder / "console-password")[:_PASSWORD_LENGTH]
        demo.add_console_user(database_url, CONSOLE_USER, password)
        self._about["Console"] = f"http://127.0.0.1:{port}, user {CONSOLE_USER}, password {password}"
        return {"CONSOLE_PORT": port}

    def _beside_platform(self, layout: Layout, database_url: str) -> dict[str, str]:
        """Make the platform's tables, as its own migrations do before us; return what the pipeline has to know."""
        platform_tables.create(database_url, layout, exists_ok=True)
        redis = servers.Redis(self._folder / "platform-redis")
        url = self._given.get("PLATFORM_REDIS_URL") or self._running.enter_context(redis).url
        return {"PLATFORM_REDIS_URL": url}

    def _start_postgres(self) -> str:
        server = servers.Postgres(self._folder / "postgres", preferred_port=servers.POSTGRES_PORT)
        url = self._running.enter_context(server).url
        # The tables of each layout are in a database of their own.
        name = f"{DATABASE}_{self._layout.replace('-', '_')}" if self._layout is not None else DATABASE
        return servers.create_database(url, name, exists_ok=True)

    def _start_redis(self) -> str:
        server = servers.Redis(self._folder / "redis", preferred_port=servers.REDIS_PORT)
        return self._running.enter_context(server).url

    def _start_calls(self, environment: dict[str, str]) -> Callable[[], None]:
        """Start the agent and an Asterisk with its tenant; return a function that makes the due calls."""
        port = processes.free_port(agent.PREFERRED_PORT)
        media_url = f"ws://127.0.0.1:{port}{endpoint.PATH}"
        if self._layout is None:
            command = [sys.executable, "-m", "devstack.agent", "--port", str(port)]
            self._about["Agent"] = f"127.0.0.1:{port}, echo"
        else:
            command = [sys.executable, "-m", "devstack.platform_api", "--port", str(port), "--layout", self._layout]
            command += ["--dial-template", demo.DIAL_TEMPLATE]
            self._about["Platform"] = f"127.0.0.1:{port}, the stand-in of its API, layout {self._layout}"
        self._start(command, self._logs / "agent", environment)
        password = folders.secret(self._folder / "ari-password")
        real = self._given.get("ASTERISK") == "real"
        url, callers = self._start_asterisk(media_url, password) if real else self._start_simulator(media_url, password)
        workflow_id = demo.add_tenant(environment["DATABASE_URL"], endpoint=url, password=password)
        if self._layout is not None:
            self._about["Call"] = demo.call_command(port, workflow_id)
        _wait_for_port(port, self._watched[0])
        return callers

    def _start_asterisk(self, media_url: str, password: str) -> tuple[str, Callable[[], None]]:
        self._console.print("preparing a real Asterisk (the first time takes a minute) ...", style="dim")
        configuration = asterisk_config.Configuration(
            contexts={"inbound": demo.APP},
            users={demo.APP: password},
            clients={demo.MEDIA_CLIENT: asterisk_config.Client(uri=media_url)},
        )
        try:
            root = asterisk_root.find()
        except debian.Unavailable as exc:
            raise Failed(f"no real Asterisk available: {exc}") from exc
        folder = self._running.enter_context(folders.temporary())
        server = asterisk.RealAsterisk(root, folder / "asterisk", configuration, preferred_port=asterisk.PREFERRED_PORT)
        self._running.enter_context(server)
        self._about["Asterisk"] = f"{urlsplit(server.url).netloc}, real"
        return server.url, demo.Callers(server, rate_per_second=self._rate, count=self._calls).step

    def _start_simulator(self, media_url: str, password: str) -> tuple[str, Callable[[], None]]:
        port = processes.free_port(SIMULATOR_PORT)
        scenario = self._folder / "scenario.json"
        folders.write_private(scenario, demo.scenario(rate_per_second=self._rate, count=self._calls))
        command = [
            sys.executable,
            "-m",
            "simulator",
            "--port",
            str(port),
            f"--user={demo.APP}",
            f"--password={password}",
        ]
        command += [f"--media-url={demo.MEDIA_CLIENT}={media_url}", f"--inbound-app={demo.APP}"]
        command += ["--scenario", str(scenario)]
        process = self._start(command, self._logs / "simulator", dict(self._given))
        _wait_for_port(port, process)
        self._about["Asterisk"] = f"127.0.0.1:{port}, simulated"
        return f"http://127.0.0.1:{port}", lambda: None

    def _start(
        self, command: list[str], log: Path, environment: Mapping[str, str], *, grace_seconds: float = 3
    ) -> processes.GuardedProcess:
        log.write_text("")
        process = processes.GuardedProcess(
            command, log=log, environment=environment, cwd=CHECKOUT, grace_seconds=grace_seconds
        )
        self._running.callback(process.stop)
        self._watched.append(process)
        return process

    def _watch(self) -> None:
        for process in self._watched:
            if not process.running:
                raise Failed(f"{process.log.name} ended unexpectedly; the end of its log:\n{process.log_tail()}")

    def _heading(self) -> None:
        self._console.rule("ari-pipeline", align="left")
        for name, address in self._about.items():
            self._console.print(f"{name:<9} {address}", highlight=False, soft_wrap=True)
        self._console.print(f"{'Logs':<9} {self._logs}", highlight=False, soft_wrap=True)
        arictl = Path(sys.executable).parent / "arictl"
        command = f". {self._folder / 'environment'}; {arictl} calls"
        self._console.print(f"{'Inspect':<9} in another terminal: {command}", highlight=False, soft_wrap=True)
        ends = f"after {self._calls} call{'s' if self._calls > 1 else ''}, or " if self._calls else ""
        self._console.print(f"{'Stop':<9} {ends}Ctrl-C", highlight=False)
        self._console.rule()


def _layout(environment: Mapping[str, str]) -> Layout | None:
    """Return the platform's layout to run beside; None for none, with tables of our own."""
    match environment.get("PLATFORM", ""):
        case "":
            return None
        case "2026-02":
            return "2026-02"
        case "newest":
            return "newest"
        case _:
            raise Failed("PLATFORM must be newest or 2026-02")


def _number(environment: Mapping[str, str], name: str) -> float | None:
    """Return a number of the environment; None if it is not set."""
    text = environment.get(name)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise Failed(f"{name} must be a number above 0")
    return number


def _address(url: str) -> str:
    """Return host, port and path of a URL, without its password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}{parts.path}"


def _wait_for_port(port: int, process: processes.GuardedProcess) -> None:
    def listening() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    process.wait_until(listening, timeout_seconds=30)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    # Further signals must not interrupt the shutdown.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    console = Console()
    try:
        Stack(console, os.environ).run()
    except KeyboardInterrupt:
        console.print("stopped")
    except (Failed, processes.ProcessError, errors.PipelineError, psycopg.Error, OSError) as exc:
        console.print(str(exc), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
