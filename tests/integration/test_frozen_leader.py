"""A leader is frozen anywhere in its work, and another one leads: when it wakes up it changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from scheduler.app_questions import AppQuestions
from scheduler.assigner import Assigner
from scheduler.leader import Leader, LeaderDatabase
from scheduler.listeners import Listeners
from scheduler.quarantine import Quarantine
from scheduler.reconciler import Reconciler
from scheduler.resyncs import Resyncs
from scheduler.retention import Retention
from scheduler.socket_rows import SocketRows
from shared import errors, keys
from shared.assignments import SocketState
from shared.call.states import State
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests.support.scheduler_harness import SEALER, TIMEOUT, PlayedListeners, SchedulerHarness

pytestmark = pytest.mark.services


class Frozen:
    """Counts what a scheduler asks Postgres and Redis for, and freezes it before one of these requests."""

    def __init__(self) -> None:
        self._left = -1
        self._meanwhile: Callable[[], object] = lambda: None

    def at(self, number: int, meanwhile: Callable[[], object]) -> None:
        """Freeze it before the request of this number, from 0, while something else happens."""
        self._left, self._meanwhile = number, meanwhile

    def request(self) -> None:
        """A request is about to be made."""
        self._left -= 1
        if self._left == -1:
            self._meanwhile()


class FrozenDatabase(LeaderDatabase):
    """The leader's database: for those that hardly do anything but write."""

    frozen: Frozen

    @contextlib.contextmanager
    def connection(self) -> Iterator[database.Connection]:
        self.frozen.request()
        with super().connection() as connection:
            yield connection


class FrozenTransactions(LeaderDatabase):
    """The leader's database: for those that write in transactions."""

    frozen: Frozen

    @contextlib.contextmanager
    def transaction(self) -> Iterator[database.Connection]:
        self.frozen.request()
        with super().transaction() as connection:
            yield connection


class FrozenSockets(SocketRows):
    """The event sockets."""

    frozen: Frozen

    def move(self, moves: Any) -> Any:
        self.frozen.request()
        return super().move(moves)

    def write_statuses(self, statuses: Any) -> Any:
        if statuses:
            self.frozen.request()
        return super().write_statuses(statuses)

    def quarantine(self, connection: Any, reason: str) -> bool:
        self.frozen.request()
        return super().quarantine(connection, reason)

    def _write(self, statement: str, socket: Any, **more: object) -> bool:
        self.frozen.request()
        return super()._write(statement, socket, **more)


class FrozenListeners(Listeners):
    """The listeners' keys."""

    frozen: Frozen

    def snapshot(self, term: int) -> Any:
        self.frozen.request()
        return super().snapshot(term)

    def evict(self, name: str, snapshot: Any) -> bool:
        self.frozen.request()
        return super().evict(name, snapshot)

    def take_suspect(self, name: str) -> Any:
        self.frozen.request()
        return super().take_suspect(name)

    def write_assignments(self, listener: str, fields: Any) -> None:
        self.frozen.request()
        super().write_assignments(listener, fields)


class Scheduler:
    """One of two schedulers on the same servers."""

    def __init__(self, harness: SchedulerHarness, database_url: str, name: str) -> None:
        self._harness = harness
        self._name = name
        self.frozen = Frozen()
        self.leader = Leader(harness.db, holder=name, seconds=60)
        self._writes = FrozenDatabase(self.leader, database_url, size=1)
        self._transactions = FrozenTransactions(self.leader, database_url, size=1)
        self._writes.frozen = self._transactions.frozen = self.frozen
        self._writes.open()
        self._transactions.open()
        self.start()

    def close(self) -> None:
        """End it."""
        self._writes.close()
        self._transactions.close()

    def start(self) -> None:
        """Begin as a new process does."""
        harness, self.leader.term = self._harness, 0
        sockets = FrozenSockets(self._transactions, drain_seconds=60, reclaim_seconds=60, quarantine_seconds=60)
        store = PostgresCalls(self._writes, who=self._name, prefix="aip-")
        listeners = FrozenListeners(
            harness.client, timeout_seconds=TIMEOUT, leader=self._name, monotonic=harness.listeners.monotonic
        )
        sockets.frozen = listeners.frozen = self.frozen
        quarantine = Quarantine(sockets, store, deaths=1)
        self._assigner = Assigner(
            sockets, listeners, self.leader, store, quarantine, timeout_seconds=TIMEOUT, full_scan_seconds=0.0
        )
        self._reconciler = Reconciler(self._transactions, harness.platform, SEALER)
        self._questions = AppQuestions(self._writes, harness.commands, occupied_seconds=15)
        self._resyncs = Resyncs(self._writes, harness.commands, seconds=15)
        self._retention = Retention(self._writes, days=1)

    def lead(self) -> None:
        """Take the lease from the other one, as if it had run out."""
        self._harness.execute("UPDATE ari.leases SET expires_at = clock_timestamp()")
        self.leader.renew()
        assert self.leader.begin_job()

    def work(self) -> None:
        """Do what a leader does, once."""
        self._reconciler.reconcile()
        self._questions.ask()
        # The workers answer: no other process has the apps.
        self._harness.execute("UPDATE ari.connection_versions SET asked_at = NULL")
        self._assigner.tick()
        self._resyncs.request_resyncs()
        self._retention.delete_old()


#: What is to be compared: all that a leader writes.
TABLES = ("connections", "connection_versions", "resyncs", "timeline", "calls")


def seen(harness: SchedulerHarness) -> dict[str, Any]:
    client: redis.Redis = harness.client
    hashes = {
        key: client.hgetall(key) for key in sorted(client.scan_iter(match="ari:*")) if client.type(key) == b"hash"
    }
    numbers = {key: client.get(key) for key in sorted(client.scan_iter(match="ari:revision:*"))}
    return tables(harness) | hashes | numbers | {"listeners": client.zrange(keys.LISTENERS, 0, -1)}


def tables(harness: SchedulerHarness) -> dict[str, Any]:
    return {name: sorted(map(str, harness.rows(f"SELECT * FROM ari.{name}"))) for name in TABLES}


def a_listener_is_lost(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """It is evicted, its suspect is quarantined, its other sockets are moved."""
    harness.client.hset(keys.SUSPECTS, "l1", next(iter(listeners.assigned("l1"))))
    listeners.die("l1")


def a_listener_joins(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """It is handed sockets."""
    listeners.beat("l3")


def a_hand_off_ends(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """The previous listener's socket is released."""
    harness.execute(
        "UPDATE ari.connection_versions SET previous_listener_id = 'l2', previous_epoch = epoch - 1"
        " WHERE listener_id = 'l1'"
    )


def an_app_is_taken(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """One is noted as preempted, one is reclaimed, one is parked."""
    listeners.beat("l1", "l2")
    for name in ("l1", "l2"):
        for assignment in listeners.assigned(name).values():
            listeners.report(name, assignment, SocketState.REPLACED)
    harness.execute("UPDATE ari.connection_versions SET preempted_at = now() - interval '1 hour' WHERE version = 1"
                    " AND connection_id = 1")  # fmt: skip
    harness.execute("UPDATE ari.connection_versions SET reclaims = 1 WHERE connection_id = 2")


def a_configuration_is_removed(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """Its connection is deactivated, and its socket retired; another one is changed, and one added."""
    del harness.platform.values[1]
    harness.platform.set(2, app_password="new")
    harness.platform.set(9)


def a_quarantine_ends(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.execute(
        "UPDATE ari.connection_versions SET parked_at = now() - interval '1 hour', socket_state = 'quarantined',"
        " listener_id = NULL WHERE connection_id = 1"
    )


def a_call_is_old(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    """It is deleted."""
    harness.store = PostgresCalls(harness.db, who="test", prefix="aip-")
    call = harness.new_call("1.1", State.CONNECTED, due_in=100)
    harness.execute(
        "UPDATE ari.calls SET state = 'ended', received_at = now() - interval '9 days', ended_at = now() - interval"
        " '9 days' WHERE call_id = %s",
        call.call_id,
    )


@pytest.mark.parametrize(
    "happens",
    [
        a_listener_is_lost, a_listener_joins, a_hand_off_ends, an_app_is_taken, a_configuration_is_removed,
        a_quarantine_ends, a_call_is_old,
    ],
)  # fmt: skip
def test_a_leader_that_wakes_up_changes_nothing(
    harness: SchedulerHarness,
    listeners: PlayedListeners,
    database_url: str,
    happens: Callable[[SchedulerHarness, PlayedListeners], None],
) -> None:
    def follow(leading: Scheduler, _frozen: Scheduler) -> None:
        leading.lead()
        work_twice(leading)

    freeze_at_each_request(harness, listeners, database_url, happens, follow, look=seen)


@pytest.mark.parametrize("has_worked", [True, False])
def test_a_leader_that_a_fail_over_has_forgotten_changes_nothing_under_the_term_of_the_next_one(
    harness: SchedulerHarness, listeners: PlayedListeners, database_url: str, has_worked: bool
) -> None:
    """The standby lacks the commit by which it became leader: the next one counts to the same term.

    With its first work it raises that term. Until then Redis does not know of it, and Postgres alone does.
    """

    def follow(leading: Scheduler, frozen: Scheduler) -> None:
        harness.execute("UPDATE ari.leases SET term = term - 1")
        leading.lead()
        assert leading.leader.term == frozen.leader.term
        if has_worked:
            with pytest.raises(errors.LeadershipLost):
                leading.work()
            assert leading.leader.begin_job()
            work_twice(leading)

    look = seen if has_worked else tables
    freeze_at_each_request(harness, listeners, database_url, a_listener_is_lost, follow, look=look)


def work_twice(scheduler: Scheduler) -> None:
    for _ in range(2):
        scheduler.work()


def freeze_at_each_request(
    harness: SchedulerHarness,
    listeners: PlayedListeners,
    database_url: str,
    happens: Callable[[SchedulerHarness, PlayedListeners], None],
    follow: Callable[[Scheduler, Scheduler], None],
    *,
    look: Callable[[SchedulerHarness], dict[str, Any]],
) -> None:
    """Freeze a leader before each of its requests that write, one after the other; when it wakes up it changes nothing.

    Args:
        happens: What it is at work on.
        follow: What another one (the first) does meanwhile.
        look: What is compared.
    """
    frozen, leading = (Scheduler(harness, database_url, name) for name in ("one", "two"))
    with contextlib.closing(frozen), contextlib.closing(leading):
        for number in range(200):
            settle(harness, listeners, frozen)
            happens(harness, listeners)
            leading.start()
            states: list[dict[str, Any]] = []

            def meanwhile(states: list[dict[str, Any]] = states) -> None:
                follow(leading, frozen)
                states.append(look(harness))

            frozen.frozen.at(number, meanwhile)
            with contextlib.suppress(errors.LeadershipLost):
                frozen.work()
            if not states:
                break
            assert look(harness) == states[0], f"frozen before request {number}"
        assert number > 2, "so many requests it has made in all"


def settle(harness: SchedulerHarness, listeners: PlayedListeners, scheduler: Scheduler) -> None:
    """Let a scheduler begin with four connections on two listeners, all connected."""
    harness.execute("TRUNCATE ari.connections, ari.connection_versions, ari.resyncs, ari.calls, ari.timeline"
                    " RESTART IDENTITY CASCADE")  # fmt: skip
    for key in harness.client.scan_iter(match="ari:*"):
        if key != keys.BOOT_MARKER.encode():
            harness.client.delete(key)
    harness.platform.values.clear()
    for source_id in range(1, 5):
        harness.platform.set(source_id)
    listeners.beat("l1", "l2")
    scheduler.start()
    scheduler.lead()
    scheduler.work()
    listeners.report_all("l1", "l2")
    scheduler.work()
