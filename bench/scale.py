"""The scale of scheduler, listener and tables: `python -m bench.scale [PART ...]`.

- `scheduler`: a scheduler at rest with thousands of configurations, resync clock included. Listeners and workers are
  played here: two listeners report every socket as open, and the requests for resyncs are thrown away.
- `listener`: thousands of event sockets on one listener, with a worker and a scheduler, to one simulated Asterisk with
  an app for each; then that Asterisk restarts.
- `calls`: the statements that read the tables, with a million ended calls in them (`bench/history.py`).

Prints Markdown tables; docs/bench.md has a result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import psutil
import psycopg
import redis

from bench import history
from bench.failover import heading, poll, say
from bench.plans import Plans
from bench.usage import Usage
from devstack import folders, servers
from devstack.pipeline import SECRET_KEY, Pipeline
from devstack.tenants import PASSWORD
from shared import assignments, keys, messages, queues
from shared.assignments import Report, SocketState
from shared.process import sealing
from shared.storage import database, migrations
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk

#: Configurations and connections of the scheduler's part.
SIZES = (1_000, 5_000, 10_000)
SOCKETS = 5_000
#: Of each kind.
SEARCHES = 300
REST_SECONDS = 60.0
#: Of the played Asterisks: one each.
ENDPOINT = "http://pbx-#:8088"
DOWN_SECONDS = 3.0
#: So many open files beside the sockets: logs, servers, libraries.
_OTHER_FILES = 500
_BEAT_SECONDS = 1.0
_COUNTERS_SECONDS = 5.0
_RESYNC_SECONDS = 15

_FILL = """
INSERT INTO organizations (provider_id, created_at) SELECT 'org-' || n, now() FROM generate_series(1, %(size)s) AS n;
INSERT INTO organization_configurations (organization_id, key, value, created_at)
SELECT id, 'TELEPHONY_CONFIGURATION', json_build_object('provider', 'ari',
    'ari_endpoint', replace(%(endpoint)s, '#', id::text), 'app_name', 'app-' || id, 'app_password', %(password)s::text,
    'ws_client_name', 'media', 'inbound_workflow_id', 1, 'from_numbers', json_build_array()), now() FROM organizations;
INSERT INTO ari.connections (source_id, organization_id, state, version)
SELECT id, organization_id, 'active', 1 FROM organization_configurations ORDER BY id;
INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)
SELECT connection_id, 1, replace(%(endpoint)s, '#', organization_id::text), 'app-' || organization_id,
    'app-' || organization_id, %(sealed)s::text FROM ari.connections;
"""
_CONNECTED = "SELECT count(*) FROM ari.connection_versions WHERE socket_state = 'connected'"
_STATEMENTS = """
SELECT coalesce(sum(calls), 0)::float AS statements, coalesce(sum(rows), 0)::float AS rows FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_LONGEST = r"""
SELECT calls, rows, round(total_exec_time::numeric) AS ms, left(regexp_replace(query, '\s+', ' ', 'g'), 100) AS query
FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 12
"""


# ── the scheduler ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class PlayedListeners:
    """Listeners that open every socket they are assigned at once.

    Args:
        busy: The part of the sockets that have had an event whenever counters are reported; 0 for rest.
    """

    client: redis.Redis
    names: tuple[str, ...]
    capacity: int
    busy: float
    _revisions: dict[str, object] = field(default_factory=dict)
    _reports: dict[str, dict[str, Report]] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        """Beat until stopped."""
        counted_at = time.monotonic()
        while not stop.wait(_BEAT_SECONDS):
            has_counters = time.monotonic() - counted_at >= _COUNTERS_SECONDS
            if has_counters:
                counted_at = time.monotonic()
            for name in self.names:
                self._beat(name, has_counters=has_counters)

    def _beat(self, name: str, *, has_counters: bool) -> None:
        seconds, micros = self.client.time()
        now_ms = seconds * 1000 + micros // 1000
        changed = self._opened(name, now_ms) | (self._busy(name, now_ms) if has_counters else {})
        pipe = self.client.pipeline(transaction=False)
        pipe.zadd(keys.LISTENERS, {name: now_ms})
        pipe.hset(keys.CAPACITIES, name, str(self.capacity))
        if changed:
            self._reports.setdefault(name, {}).update(changed)
            pipe.hset(keys.reports(name), mapping={key: assignments.encode(each) for key, each in changed.items()})
            pipe.incr(keys.REPORTS_REVISION)
        pipe.execute()

    def _opened(self, name: str, now_ms: int) -> dict[str, Report]:
        revision = self.client.get(keys.revision(name))
        if revision == self._revisions.get(name):
            return {}
        self._revisions[name] = revision
        found = cast(dict[bytes, bytes], self.client.hgetall(keys.assignments(name)))
        assigned = [assignments.decode_assignment(text) for text in found.values()]
        return {each.key: _open(each, now_ms) for each in assigned}

    def _busy(self, name: str, now_ms: int) -> dict[str, Report]:
        reports = self._reports.get(name, {})
        chosen = list(reports)[: int(len(reports) * self.busy)]
        return {key: _open(reports[key], now_ms, last_event_ms=now_ms) for key in chosen}


def _open(socket: assignments.Assignment | Report, now_ms: int, last_event_ms: int | None = None) -> Report:
    return Report(
        connection_id=socket.connection_id,
        version=socket.version,
        epoch=socket.epoch,
        socket_id=uuid.uuid4().hex if isinstance(socket, assignments.Assignment) else socket.socket_id,
        state=SocketState.CONNECTED,
        since_ms=now_ms if isinstance(socket, assignments.Assignment) else socket.since_ms,
        last_event_ms=last_event_ms,
    )


def _discard_resyncs(url: str, stop: threading.Event, counted: list[int]) -> None:
    """Throw the requests for resyncs away, as if workers served them, and count them."""
    with contextlib.closing(queues.broker(url)) as broker:
        while not stop.wait(1.0):
            counted.append(broker.count([messages.RESYNC])[messages.RESYNC].waiting)
            broker.flush(messages.RESYNC)


@contextlib.contextmanager
def _threads(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    running = [threading.Thread(target=work, args=(stop,)) for work in works]
    for each in running:
        each.start()
    try:
        yield
    finally:
        stop.set()
        for each in running:
            each.join()


def fill(url: str, size: int, *, endpoint: str = ENDPOINT) -> None:
    """Write `size` organizations, configurations and connections; # in the endpoint stands for the number of each."""
    sealed = sealing.Sealer(tuple(key.strip() for key in SECRET_KEY.split(","))).seal(PASSWORD)
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = psycopg.ClientCursor(connection)
        values = {"size": size, "password": PASSWORD, "sealed": sealed, "endpoint": endpoint}
        cursor.execute(_FILL.encode(), values)
        connection.execute("VACUUM ANALYZE")
        connection.execute("CREATE EXTENSION pg_stat_statements")


@contextlib.contextmanager
def counting_postgres(folder: Path) -> Iterator[servers.Postgres]:
    """Start a Postgres that counts statements."""
    with servers.Postgres(folder) as postgres:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        postgres.stop()
        postgres.start()
        yield postgres


def scheduler(folder: Path, options: argparse.Namespace) -> None:
    """Measure a scheduler at rest."""
    heading("connections", "sockets with events", "until all are connected, s", "scheduler, % of a core", "Postgres",
            "Redis", "statements/s", "rows/s", "resyncs/s", "memory, MB")  # fmt: skip
    for size in options.sizes:
        with _scheduler_of(folder / uuid.uuid4().hex[:8], size, options) as (pipeline, usage, resyncs):
            took = poll(lambda: pipeline.value(_CONNECTED) == size, seconds=180, every=0.5)  # noqa: B023 - used at once
            time.sleep(2 * _COUNTERS_SECONDS)
            _measured(pipeline, usage, options, size=size, took=took, resyncs=resyncs)


@contextlib.contextmanager
def _scheduler_of(folder: Path, size: int, options: argparse.Namespace) -> Iterator[tuple[Pipeline, Usage, list[int]]]:
    """Run a scheduler with `size` configurations; the list counts the resyncs that it requests."""
    folders.make(folder, mode=0o711)
    usage, resyncs = Usage(), list[int]()
    with contextlib.ExitStack() as stack:
        with usage.named("Postgres"):
            postgres = stack.enter_context(counting_postgres(folder / "postgres"))
        with usage.named("Redis"):
            cache = stack.enter_context(servers.Redis(folder / "redis"))
        migrations.upgrade(postgres.url)
        fill(postgres.url, size)
        client = stack.enter_context(contextlib.closing(queues.client(cache.url)))
        played = PlayedListeners(client=client, names=("played-1", "played-2"), capacity=size, busy=options.busy)
        stack.enter_context(_threads(played.run, lambda stop: _discard_resyncs(cache.url, stop, resyncs)))
        pipeline = stack.enter_context(
            Pipeline(
                database_url=postgres.url,
                redis_url=cache.url,
                logs=folders.make(folder / "logs", mode=0o700),
                **{"RESYNC_SECONDS": str(_RESYNC_SECONDS), "LOG_FORMAT": "json"} | options.environment,
            )
        )
        with usage.named("scheduler"):
            pipeline.start("scheduler")
        yield pipeline, usage, resyncs


def _measured(
    pipeline: Pipeline, usage: Usage, options: argparse.Namespace, *, size: int, took: float, resyncs: list[int]
) -> None:
    """Measure for a while, and print a row."""
    resyncs.clear()
    pipeline.query("SELECT pg_stat_statements_reset()")
    before, began = usage.seconds(), time.monotonic()
    time.sleep(options.seconds)
    seconds, after = time.monotonic() - began, usage.seconds()
    statements, rows = pipeline.query(_STATEMENTS)[0].values()
    used = {name: (after[name] - before[name]) / seconds for name in ("scheduler", "Postgres", "Redis")}
    memory = psutil.Process(pipeline.pid("scheduler")).memory_info().rss
    say(size, f"{options.busy:.0%}", f"{took:.1f}", *(f"{part:.1%}" for part in used.values()),
        f"{statements / seconds:.1f}", f"{rows / seconds:.0f}", f"{sum(resyncs) / seconds:.0f}",
        f"{memory / 1e6:.0f}")  # fmt: skip
    if options.statements:
        for row in pipeline.query(_LONGEST):
            say(*row.values())


# ── the listener ─────────────────────────────────────────────────────────────────────────────────────────────────────


def listener(folder: Path, options: argparse.Namespace) -> None:
    """Measure one listener with thousands of sockets: at rest, and when their Asterisk restarts."""
    heading("sockets", "until all are open, s", "memory of the listener, MB", "per socket, kB",
            "% of a core at rest: listener", "scheduler", "worker", "Redis", "resyncs/s",
            "after a restart: first open, s", "half", "last")  # fmt: skip
    size, names = options.sockets, ("listener", "scheduler", "worker", "Redis")
    _allow_files(3 * size + _OTHER_FILES)
    with _listener_of(folder / uuid.uuid4().hex[:8], size) as (pipeline, usage, asterisk):
        with usage.named("listener"):
            pipeline.start("listener")
        time.sleep(3)
        process = psutil.Process(pipeline.pid("listener"))
        bare = process.memory_info().rss
        for name in ("scheduler", "worker"):
            with usage.named(name):
                pipeline.start(name)
        opened = poll(lambda: pipeline.value(_CONNECTED) == size, seconds=180, every=0.5)
        time.sleep(_RESYNC_SECONDS)
        resyncs = _resyncs(asterisk)
        before, began = usage.seconds(), time.monotonic()
        time.sleep(options.seconds)
        seconds, after = time.monotonic() - began, usage.seconds()
        resyncs = _resyncs(asterisk) - resyncs
        rest = [f"{(after[name] - before[name]) / seconds:.1%}" for name in names]
        memory = process.memory_info().rss
        asterisk.control.restart(down_seconds=DOWN_SECONDS)
        back = time.time() + DOWN_SECONDS
        again = f"{_CONNECTED} AND socket_since >= to_timestamp(%s)"
        poll(lambda: pipeline.value(again, back - 1) == size, seconds=180, every=0.5)
        since = sorted(
            float(row["at"]) - back
            for row in pipeline.query("SELECT extract(epoch FROM socket_since) AS at FROM ari.connection_versions")
        )
        say(size, f"{opened:.1f}", f"{memory / 1e6:.0f}", f"{(memory - bare) / size / 1e3:.1f}", *rest,
            f"{resyncs / seconds:.0f}",
            *(f"{max(0.0, each):.1f}" for each in (since[0], since[size // 2], since[-1])))  # fmt: skip


def _resyncs(asterisk: SimulatedAsterisk) -> int:
    """Return how many resyncs there were: each begins with a look at the app."""
    return sum(request.path.startswith("/applications/") for request in asterisk.control.requests("GET"))


@contextlib.contextmanager
def _listener_of(folder: Path, size: int) -> Iterator[tuple[Pipeline, Usage, SimulatedAsterisk]]:
    """Run the servers and an Asterisk with `size` apps, each configured for an organization."""
    folders.make(folder, mode=0o711)
    usage = Usage()
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(counting_postgres(folder / "postgres"))
        with usage.named("Redis"):
            cache = stack.enter_context(servers.Redis(folder / "redis"))
        users = {f"app-{number}": PASSWORD for number in range(1, size + 1)}
        asterisk = stack.enter_context(
            SimulatedAsterisk(Settings(audio=False, session_limit=4 * size + 200), users=users)
        )
        migrations.upgrade(postgres.url)
        fill(postgres.url, size, endpoint=asterisk.url)
        pipeline = stack.enter_context(
            Pipeline(
                database_url=postgres.url,
                redis_url=cache.url,
                logs=folders.make(folder / "logs", mode=0o700),
                LISTENER_CAPACITY=str(size),
                RESYNC_SECONDS=str(_RESYNC_SECONDS),
                LOG_FORMAT="json",
            )
        )
        yield pipeline, usage, asterisk


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"{wanted} open files are needed, {hard} are allowed: ulimit -Hn {wanted}")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def calls(folder: Path, options: argparse.Namespace) -> None:
    """Measure the statements that read calls and timeline, with a history in them."""
    own = folders.make(folder / uuid.uuid4().hex[:8], mode=0o711)
    with servers.Postgres(own) as postgres:
        migrations.upgrade(postgres.url)
        size = history.Size(calls=options.calls)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_wal_size = '8GB'")
            connection.execute("SELECT pg_reload_conf()")
            for done in history.fill(connection, size):
                sys.stderr.write(f"{done} calls\n")
            connection.execute("VACUUM ANALYZE")
        heading("search of calls", "p50 ms", "p99 ms", "slowest ms")
        for name, took in history.search_seconds(postgres.url, size, SEARCHES).items():
            *_, p99 = statistics.quantiles(took, n=100)
            say(name, *(f"{seconds * 1000:.1f}" for seconds in (statistics.median(took), p99, max(took))))
        plans = Plans(postgres.url, own / "log")
        db = database.Database(postgres.url, size=1)
        db.open()
        heading("what reads", "ms (the longest statement)", "rows read", "indexes", "tables read from end to end")
        for name, read in history.readers(db, size, history.arictl_at(postgres.url)).items():
            read()
            seen = plans.new()
            say(name, f"{max(plan.milliseconds for plan in seen):.2f}", max(plan.read for plan in seen),
                ", ".join(sorted(frozenset().union(*(plan.indexes for plan in seen)))),
                ", ".join(sorted(frozenset().union(*(plan.scanned for plan in seen)))))  # fmt: skip
        db.close()


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "scheduler": scheduler, "listener": listener, "calls": calls,
}  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--sizes", type=lambda text: [int(part) for part in text.split(",")], default=list(SIZES))
    parser.add_argument("--sockets", type=int, default=SOCKETS, help="of the listener")
    parser.add_argument("--calls", type=int, default=history.CALLS, help="ended calls in the tables")
    parser.add_argument("--busy", type=float, default=0.0, help="part of the sockets that have events all the time")
    parser.add_argument("--seconds", type=float, default=REST_SECONDS)
    parser.add_argument("--statements", action="store_true", help="also show the statements that took longest")
    parser.add_argument("--environment", type=json.loads, default={}, help="settings of the scheduler, as JSON")
    options = parser.parse_args()
    with folders.temporary() as folder:
        for part in options.parts or PARTS:
            PARTS[part](folder, options)


if __name__ == "__main__":
    main()
