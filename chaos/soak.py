"""Samples what may grow in a long run, every 10 s, into a file of JSON lines.

`chaos/growth.py` judges the samples, `chaos/growth_chart.py` draws them.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

import psycopg
import redis
from psycopg import rows

EVERY_SECONDS = 10.0
#: A server that does not answer within this time is missing from a sample.
_ANSWER_SECONDS = 5
_TABLES = """
    SELECT format('%s.%s', s.schemaname, s.relname) AS name,
        s.n_dead_tup AS dead,
        greatest(s.n_live_tup, c.reltuples::bigint, 0) AS live,
        s.n_tup_upd + s.n_tup_del AS changed,
        pg_table_size(s.relid) AS table_bytes,
        pg_indexes_size(s.relid) AS index_bytes
    FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
    WHERE s.schemaname = 'ari'
"""
_CONNECTIONS = """
    SELECT count(*) AS connections FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class Process(TypedDict):
    """One process of the product. After a kill its name has another pid."""

    pid: int
    resident_bytes: int
    #: Of each page that n processes share, a part of n.
    proportional_bytes: int
    files: int
    threads: int


class Redis(TypedDict):
    """Redis, without its idle memory."""

    #: Another one after each start.
    run_id: str
    memory_bytes: int
    keys: int
    clients: int


class Table(TypedDict):
    """A table of the schema `ari`; tuples as Postgres counts them, which forgets its counts in a crash."""

    dead: int
    live: int
    #: Tuples updated or deleted so far.
    changed: int
    table_bytes: int
    index_bytes: int


class Postgres(TypedDict):
    """Connections of all clients but the sampler, and the tables by name."""

    connections: int
    tables: dict[str, Table]


class Sample(TypedDict):
    """What was found at one time (Unix seconds); None for a server that did not answer."""

    at: float
    processes: dict[str, Process]
    redis: Redis | None
    postgres: Postgres | None


class Sampler:
    """A thread that writes a sample every 10 s; a context manager.

    Args:
        pids: returns name → pid of the processes that run now.
        database_url: past the proxy, as `redis_url`: a fault between the product and a server hides no sample.
        path: the file to write; a sample a line.
    """

    def __init__(
        self,
        pids: Callable[[], Mapping[str, int]],
        *,
        database_url: str,
        redis_url: str,
        path: Path,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._pids = pids
        self._database_url = database_url
        self._redis_url = redis_url
        self._path = path
        self._every_seconds = every_seconds
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Take the first sample now."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._is_stopped.set()
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def sample(self) -> Sample:
        """Take one sample."""
        found = {name: _process(pid) for name, pid in self._pids().items()}
        return {
            "at": time.time(),
            "processes": {name: process for name, process in found.items() if process is not None},
            "redis": self._redis(),
            "postgres": self._postgres(),
        }

    def _run(self) -> None:
        due = time.monotonic()
        with self._path.open("a") as file:
            while not self._is_stopped.wait(max(0.0, due - time.monotonic())):
                # The supervisor may be busy with a start for a moment.
                with contextlib.suppress(OSError):
                    print(json.dumps(self.sample()), file=file, flush=True)
                due += self._every_seconds

    def _redis(self) -> Redis | None:
        with contextlib.closing(redis.Redis.from_url(self._redis_url, socket_timeout=_ANSWER_SECONDS)) as client:
            try:
                info: dict[str, Any] = client.info()
            except redis.RedisError:
                return None
        return {
            "run_id": info["run_id"],
            "memory_bytes": info["used_memory"],
            "keys": sum(info[name]["keys"] for name in info if name.startswith("db")),
            # Without the sampler.
            "clients": info["connected_clients"] - 1,
        }

    def _postgres(self) -> Postgres | None:
        try:
            connection = psycopg.connect(
                self._database_url,
                autocommit=True,
                connect_timeout=_ANSWER_SECONDS,
                options=f"-c statement_timeout={_ANSWER_SECONDS}s",
                row_factory=rows.dict_row,
            )
            with contextlib.closing(connection):
                tables = connection.execute(_TABLES).fetchall()
                (counted,) = connection.execute(_CONNECTIONS).fetchall()
        except psycopg.Error:
            return None
        return Postgres(connections=counted["connections"], tables={row["name"]: _table(row) for row in tables})


def read(path: Path) -> list[Sample]:
    """Return the samples of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _table(row: dict[str, Any]) -> Table:
    return {
        "dead": row["dead"],
        "live": row["live"],
        "changed": row["changed"],
        "table_bytes": row["table_bytes"],
        "index_bytes": row["index_bytes"],
    }


def _process(pid: int) -> Process | None:
    """Return the state of a process, None if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        memory = _fields(folder / "smaps_rollup")
        return {
            "pid": pid,
            "resident_bytes": memory["Rss"] * 1024,
            "proportional_bytes": memory["Pss"] * 1024,
            "files": len(list((folder / "fd").iterdir())),
            "threads": _fields(folder / "status")["Threads"],
        }
    except (OSError, KeyError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return name → number of the lines of a /proc file that have one."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if (first := value.split()[:1]) and first[0].isdecimal():
            found[name] = int(first[0])
    return found
