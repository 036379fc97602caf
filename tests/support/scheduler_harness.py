"""The scheduler's parts on a real Postgres and Redis, with the platform and the listeners played by the test."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from typing import Any, cast

import dramatiq
import redis

from scheduler.assigner import Assigner
from scheduler.leader import Leader, LeaderDatabase
from scheduler.listeners import Listeners
from scheduler.quarantine import Quarantine
from scheduler.reconciler import Reconciler
from scheduler.socket_rows import SocketRows
from shared import assignments, errors, keys, messages, queues
from shared.assignments import Assignment, Report, SocketState
from shared.broker import redis_broker
from shared.call.calls import Call
from shared.call.states import Direction, State
from shared.platform import dograh
from shared.process import sealing
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests.support import queued

SEALER = sealing.Sealer(("a key of the scheduler's tests",))
TIMEOUT = 3.0


class Platform:
    """The platform's configurations, as a test sets them."""

    def __init__(self) -> None:
        self.values: dict[int, object] = {}
        #: Row → organization; by default the row's id and a hundred.
        self.organizations: dict[int, int] = {}
        self.away = False

    def set(self, source_id: int, **changes: object) -> None:
        value = {"provider": "ari", "ari_endpoint": f"http://pbx{source_id}", "app_name": "a", "app_password": "p"}
        self.values[source_id] = value | changes

    def save_anew(self, source_id: int, *, under: int, **changes: object) -> None:
        """Remove a row and add it again, under another id."""
        self.organizations[under] = self.organization_of(source_id)
        value = self.values.pop(source_id)
        assert isinstance(value, dict)
        self.values[under] = value | changes

    def organization_of(self, source_id: int) -> int:
        return self.organizations.get(source_id, 100 + source_id)

    def all(self) -> list[dograh.ConfigurationRow]:
        if self.away:
            raise errors.DatabaseUnavailable("away")
        return [
            dograh.ConfigurationRow(source_id=source_id, organization_id=self.organization_of(source_id), value=value)
            for source_id, value in self.values.items()
        ]

    def deactivate(self, *, source_id: int, organization_id: int, reason: str) -> bool:
        return False

    def inactive(self) -> Collection[int]:
        return ()

    def fingerprint(self) -> str:
        if self.away:
            raise errors.DatabaseUnavailable("away")
        return repr(self.values)


class PlayedListeners:
    """Listeners as Redis shows them: their heartbeats, their assignments, their reports."""

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client
        self._passed_seconds = 0.0
        self._heartbeats = 0
        self._alive: set[str] = set()

    def monotonic(self) -> float:
        """The scheduler's clock, by which it judges heartbeats."""
        return time.monotonic() + self._passed_seconds

    def now_ms(self) -> int:
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def beat(self, *names: str) -> None:
        # No two are the same.
        self._heartbeats += 1
        self.redis.zadd(keys.LISTENERS, {name: self.now_ms() + self._heartbeats / 1000 for name in names})
        self._alive |= set(names)

    def die(self, name: str) -> None:
        """Let a listener send no heartbeat for too long, and the others go on."""
        self._alive.discard(name)
        self._passed_seconds += TIMEOUT + 0.5
        # By Redis's clock as well, which a new scheduler goes by.
        self.redis.zadd(keys.LISTENERS, {name: self.now_ms() - (TIMEOUT + 0.5) * 1000})
        self.beat(*self._alive) if self._alive else None

    def assigned(self, name: str) -> dict[str, Assignment]:
        texts = cast(dict[bytes, bytes], self.redis.hgetall(keys.assignments(name)))
        return {key.decode(): assignments.decode_assignment(text) for key, text in texts.items()}

    def revision(self, name: str) -> int:
        return int(cast(bytes, self.redis.get(keys.revision(name))) or 0)

    def report(
        self, name: str, assignment: Assignment, state: SocketState = SocketState.CONNECTED, **fields: Any
    ) -> None:
        report = Report(
            connection_id=assignment.connection_id, version=assignment.version, epoch=assignment.epoch, socket_id="s",
            state=state, **({"since_ms": self.now_ms()} | fields),
        )  # fmt: skip
        self.redis.hset(keys.reports(name), report.key, assignments.encode(report))
        self.redis.incr(keys.REPORTS_REVISION)

    def report_all(self, *names: str) -> None:
        """Report every assigned socket as open, except for those that drain."""
        for name in names:
            for assignment in self.assigned(name).values():
                if not assignment.draining:
                    self.report(name, assignment)

    def spread(self, *names: str) -> list[int]:
        """How many sockets each has, those that it hands off not counted."""
        return [sum(not assignment.draining for assignment in self.assigned(name).values()) for name in names]


class SchedulerHarness:
    """A leading scheduler's parts. The test calls them instead of a clock."""

    def __init__(
        self,
        leader: Leader,
        db: database.Database,
        leader_db: LeaderDatabase,
        client: redis.Redis,
        broker: redis_broker.Broker,
    ) -> None:
        self.db = db
        self.leader_db = leader_db
        self.client = client
        self.platform = Platform()
        self.listeners = PlayedListeners(client)
        self.broker = broker
        self.commands = queues.BrokerCommandQueue(broker)
        self.leader = leader
        self.leader.renew()
        self.store = PostgresCalls(leader_db, who="test", prefix="aip-")
        self.reconciler = Reconciler(leader_db, self.platform, SEALER)
        self.are_apps_free = True
        self.sockets = socket_rows(leader_db)
        self.assigner = self.new_assigner()
        # A Redis that was in use before: the assigner does not wait for listeners to come back.
        client.set(keys.BOOT_MARKER, "x")

    def new_assigner(
        self,
        *,
        client: redis.Redis | None = None,
        sockets: SocketRows | None = None,
        listeners: Listeners | None = None,
        timeout_seconds: float = TIMEOUT,
        full_scan_seconds: float = 0.0,
    ) -> Assigner:
        sockets = sockets or socket_rows(self.leader_db)
        return Assigner(
            sockets,
            listeners or self.new_listeners(client or self.client, timeout_seconds=timeout_seconds),
            self.leader,
            self.store,
            Quarantine(sockets, self.store, deaths=2),
            timeout_seconds=timeout_seconds,
            full_scan_seconds=full_scan_seconds,
        )

    def new_listeners(self, client: redis.Redis, *, timeout_seconds: float = TIMEOUT) -> Listeners:
        """The listeners as a scheduler sees them."""
        return Listeners(client, timeout_seconds=timeout_seconds, monotonic=self.listeners.monotonic)

    def configure(self, count: int) -> None:
        """Give the platform the configurations 1 to `count`, and reconcile."""
        for source_id in range(1, count + 1):
            self.platform.set(source_id)
        self.reconcile()

    def reconcile(self) -> None:
        """Read the configurations. By default no other process has their apps, and workers have told so."""
        self.reconciler.reconcile()
        if self.are_apps_free:
            self.execute("UPDATE ari.connection_versions SET asked_at = NULL")

    def tick(self, times: int = 1) -> None:
        """Let the assigner work."""
        for _ in range(times):
            self.assigner.tick()

    def dequeue(self, queue: str) -> list[messages.Message]:
        """Take out of a queue what waits in it."""
        waiting = queued.messages(self.client, queue)
        self.broker.flush(queue)
        return [dramatiq.Message(**message) for message in waiting]

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        with self.db.connection() as connection:
            return connection.execute(query, values).fetchall()

    def execute(self, query: str, *values: object) -> None:
        with self.db.connection() as connection:
            connection.execute(query, values)

    def connections(self) -> dict[int, tuple[str, str, int]]:
        """Configuration → state, reason and newest version of its connection."""
        found = self.rows("SELECT source_id, state, reason, version FROM ari.connections")
        return {row["source_id"]: (row["state"], row["reason"], row["version"]) for row in found}

    def versions(self, source_id: int) -> list[dict[str, Any]]:
        return self.rows(
            "SELECT v.* FROM ari.connection_versions v JOIN ari.connections USING (connection_id)"
            " WHERE source_id = %s ORDER BY v.version",
            source_id,
        )

    def owners(self) -> dict[str, tuple[str | None, int]]:
        """Connection version → the listener its socket is assigned to, and the epoch."""
        found = self.rows("SELECT connection_id, version, listener_id, epoch FROM ari.connection_versions")
        return {f"{row['connection_id']}:{row['version']}": (row["listener_id"], row["epoch"]) for row in found}

    def socket(self, version: int = 1) -> dict[str, Any]:
        """The only row of this version."""
        (row,) = self.rows("SELECT * FROM ari.connection_versions WHERE version = %s", version)
        return row

    def new_call(self, channel_id: str, state: State, *, due_in: float) -> Call:
        """Write a call of connection version 1:1."""
        now = self.store.now()
        call = Call(
            call_id=uuid.uuid4(), connection_id=1, connection_version=1, organization_id=101, channel_id=channel_id,
            channel_created="c", entry=1, direction=Direction.INBOUND, state=state, received_at=now, state_since=now,
            deadline_at=now + timedelta(seconds=due_in),
        )  # fmt: skip
        assert self.store.insert(call, [], None)
        return call


def socket_rows(db: database.Database) -> SocketRows:
    """Event sockets, with bounds for tests."""
    return SocketRows(db, drain_seconds=60, reclaim_seconds=60, quarantine_seconds=60)


@contextlib.contextmanager
def running(database_url: str, redis_url: str) -> Iterator[SchedulerHarness]:
    """A harness until the end of the block."""
    db = database.Database(database_url, size=6)
    leader = Leader(db, holder="test", seconds=60)
    leader_db = LeaderDatabase(leader, database_url, size=6)
    db.open()
    leader_db.open()
    with (
        contextlib.closing(db),
        contextlib.closing(leader_db),
        contextlib.closing(queues.client(redis_url)) as client,
        contextlib.closing(queues.broker(redis_url)) as broker,
    ):
        yield SchedulerHarness(leader, db, leader_db, client, broker)


def until(holds: Callable[[], object], what: str, seconds: float = 4.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)
