"""The product as an operator runs it: one process per line of the Procfile, configured by its URLs and secret alone.

Used by the acceptance tests and by bench/; `make run` uses honcho (devstack/run.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import psycopg
from psycopg import rows

from devstack import log_audit
from devstack.tenants import PASSWORD
from shared.call import ids
from shared.process import sealing

ROOT = Path(__file__).parents[1]
SECRET_KEY = "acceptance-secret-key-c7e1, an-older-key-still-listed"  # noqa: S105 - a key of tests
#: Signs the media tokens of an installation that sets no secret for them.
MEDIA_SECRET = sealing.media_secret(SECRET_KEY.split(",", maxsplit=1)[0].strip())


#: The process that no call needs: tests of calls do without it.
CONSOLE = "web"


def procfile() -> dict[str, list[str]]:
    """Return name → command of each line of the Procfile."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return {name: command.split() for name, _, command in (line.partition(": ") for line in lines if line.strip())}


class Process(Protocol):
    """A running process: what is used of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """Its id."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status once it has ended. Raises TimeoutExpired."""

    def send_signal(self, sig: int, /) -> None:
        """Send it a signal, unless it has ended."""

    def kill(self) -> None:
        """Kill it by SIGKILL."""


class Pipeline:
    """Listeners, workers and schedulers as processes, each with its log; at the end the logs are audited."""

    def __init__(self, *, database_url: str, redis_url: str, logs: Path, **environment: str) -> None:
        self.database_url = database_url
        self.redis_url = redis_url
        self.logs = logs
        self._environment = environment
        self._running: dict[str, Process] = {}
        self._connection = psycopg.connect(database_url, autocommit=True, row_factory=rows.dict_row)

    @property
    def media_secret(self) -> str:
        """The secret that signs the media tokens."""
        return MEDIA_SECRET

    def start(self, *names: str, **environment: str) -> None:
        """Start processes by their name in the Procfile, by default those of calls; `worker.2` is a second worker."""
        self.start_from(ROOT, *names, **environment)

    def start_from(self, root: Path, *names: str, **environment: str) -> None:
        """Like `start`, from the project in another folder: another release."""
        for name in names or tuple(name for name in procfile() if name != CONSOLE):
            *_, module = procfile()[name.partition(".")[0]]
            variables = {
                "PATH": os.environ["PATH"],
                "DATABASE_URL": self.database_url,
                "REDIS_URL": self.redis_url,
                "SECRET_KEY": SECRET_KEY,
                "PROCESS_NAME": name,
                # Pipelines run beside each other.
                "CONSOLE_PORT": "0",
                **self._environment,
                **environment,
            }
            self._running[name] = self._start_process(module, root, variables, self.logs / f"{name}.log")

    def _start_process(self, module: str, root: Path, environment: dict[str, str], log: Path) -> Process:
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - the commands of the Procfile
                [sys.executable, "-m", module], cwd=root, env=environment, stdout=output, stderr=output
            )

    def is_running(self, name: str) -> bool:
        """Return True if a process was started, and neither killed nor stopped since."""
        return name in self._running

    def pid(self, name: str) -> int:
        """Return the id of a process."""
        return self._running[name].pid

    def reconnect(self) -> None:
        """Connect again, to a Postgres that was restarted."""
        self._connection.close()
        self._connection = psycopg.connect(self.database_url, autocommit=True, row_factory=rows.dict_row)

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process."""
        self._running[name].send_signal(number)

    def kill(self, name: str) -> None:
        """Kill a process by SIGKILL."""
        process = self._running.pop(name)
        process.kill()
        process.wait(10)

    def stop(self, name: str, *, seconds: float = 30) -> int:
        """Ask a process to end, wait for it, and return its exit status."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(seconds)

    def query(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Return rows of the database."""
        return self._connection.execute(statement, values).fetchall()

    def execute(self, statement: str, *values: object) -> None:
        """Change the database."""
        self._connection.execute(statement, values)

    def value(self, statement: str, *values: object) -> Any:
        """Return the first column of the first row."""
        return next(iter(self.query(statement, *values)[0].values()))

    @property
    def id_prefix(self) -> str:
        """The beginning of the ids that the processes make."""
        return str(self.value("SELECT prefix FROM ari.id_prefixes ORDER BY number DESC LIMIT 1"))

    def calls(self, *channel_ids: str) -> list[dict[str, Any]]:
        """Return the calls of these channels, by default all calls."""
        return self.query(
            "SELECT * FROM ari.calls WHERE %s OR channel_id = ANY(%s) ORDER BY received_at",
            not channel_ids,
            list(channel_ids),
        )

    def call(self, channel_id: str) -> dict[str, Any]:
        """Return the one call of a channel."""
        (found,) = self.calls(channel_id)
        return found

    @staticmethod
    def own_id(call: dict[str, Any], kind: str, attempt: int = 1) -> str:
        """Return the id of the media leg (`m`) or the bridge (`b`) of a call's row."""
        nonce = "".join(call["attempt_nonces"][attempt - 1 : attempt])
        return ids.own_id(call["id_prefix"] or ids.SHARED_PREFIX, call["call_id"], ids.Kind(kind), attempt, nonce)

    def state(self, channel_id: str) -> str | None:
        """Return the state of a channel's newest call, None if there is none."""
        found = self.calls(channel_id)
        return found[-1]["state"] if found else None

    def timeline(self, channel_id: str) -> list[dict[str, Any]]:
        """Return the timeline of a channel's call, in order."""
        return self.query(
            "SELECT t.* FROM ari.timeline t JOIN ari.calls c USING (call_id) WHERE c.channel_id = %s ORDER BY t.id",
            channel_id,
        )

    def story(self, channel_id: str) -> str:
        """Return the timeline as text, for the messages of assertions."""
        return "\n".join(
            f"{row['at']:%H:%M:%S.%f} {row['kind']} {row['name']} {row['state_from'] or ''}→{row['state_to'] or ''}"
            f" {row['detail']}"
            for row in self.timeline(channel_id)
        )

    def run(self, channel_id: str) -> dict[str, Any]:
        """Return the workflow run of a channel's call, its JSON columns decoded."""
        (found,) = self.query(
            "SELECT r.* FROM workflow_runs r JOIN ari.calls c ON c.workflow_run_id = r.id WHERE c.channel_id = %s",
            channel_id,
        )
        return found

    def connected(self, endpoint: str | None = None) -> bool:
        """Return True if the newest version of every active connection (or of an endpoint's) has an open socket."""
        found = self.query(
            "SELECT v.socket_state FROM ari.connection_versions v JOIN ari.connections c USING (connection_id, version)"
            " WHERE c.state = 'active' AND (%s::text IS NULL OR v.endpoint = %s)",
            endpoint,
            endpoint,
        )
        return bool(found) and all(row["socket_state"] == "connected" for row in found)

    def wait_connected(self, *, seconds: float = 15) -> None:
        """Wait until every active connection has an open socket."""
        wait_until(self.connected, seconds=seconds, what=lambda: f"every socket open; {self.log_tail()}")

    def log_tail(self) -> str:
        """Return the end of every process's log."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in sorted(self.logs.glob("*.log")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        shown = self.query("SELECT detail FROM ari.timeline WHERE position(%s in detail) > 0", PASSWORD)
        assert not shown, f"the timeline shows the password: {shown}"
        stuck = [name for name, process in self._running.items() if not self._ended(process)]
        numbers = self._numbers()
        self._connection.close()
        assert not stuck, f"still running 30 s after SIGTERM: {stuck}\n{self.log_tail()}"
        log_audit.assert_clean(self.logs, secrets=self._secrets(), user="voiceai", password=PASSWORD, numbers=numbers)

    def _numbers(self) -> set[str]:
        """Return the telephone numbers of the calls, none of which a log may have unless it is wished for."""
        if self._environment.get("LOG_NUMBERS") == "full":
            return set()
        rows = self.query("SELECT DISTINCT unnest(ARRAY[caller_number, called_number]) AS number FROM ari.calls")
        return {row["number"] for row in rows}

    def _secrets(self) -> set[str]:
        """Return the secrets of the processes, besides the password, that no log may have."""
        keys = {key.strip() for key in SECRET_KEY.split(",")}
        servers = {urlsplit(url).password or "" for url in (self.database_url, self.redis_url)}
        return {*keys, self.media_secret, *servers} - {""}

    @staticmethod
    def _ended(process: Process, *, seconds: float = 30) -> bool:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            # Writes the stacks of its threads to its log.
            process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            process.kill()
            process.wait(10)
            return False
        return True


def wait_until(
    condition: Callable[[], object], *, seconds: float, what: str | Callable[[], str] = "it", every: float = 0.05
) -> None:
    """Poll until a condition holds; fail with `what` if it does not in time."""
    ends_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends_at:
            raise AssertionError(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(every)
