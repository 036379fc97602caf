"""Event sockets are assigned to the listeners that are alive, on a real Postgres and Redis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.listeners import Listeners, Snapshot
from scheduler.socket_rows import EventSocket, SocketRows
from shared import errors, keys, queues
from shared.assignments import SocketState
from tests.support import failover
from tests.support.scheduler_harness import SEALER, TIMEOUT, PlayedListeners, SchedulerHarness, until

pytestmark = pytest.mark.services


def test_a_connection_is_assigned_to_a_listener(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(1)
    harness.tick()
    assert harness.owners() == {"1:1": (None, 0)}, "no listener is alive"
    listeners.beat("l1")
    harness.tick()
    (assignment,) = listeners.assigned("l1").values()
    assert (assignment.key, assignment.epoch) == ("1:1", 1)
    assert (assignment.endpoint, assignment.app, assignment.user) == ("http://pbx1", "a", "a")
    assert assignment.organization_id == 101
    assert SEALER.open(assignment.sealed_password) == "p"
    assert listeners.redis.ttl(keys.assignments("l1")) > 3000


def test_what_did_not_change_is_not_written_again(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    before = listeners.revision("l1")
    harness.tick()
    assert listeners.revision("l1") == before > 0


def test_sockets_are_spread_evenly_and_within_each_capacity(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(30)
    listeners.beat("l1", "l2", "l3")
    harness.tick()
    assert listeners.spread("l1", "l2", "l3") == [10, 10, 10]
    listeners.redis.hset(keys.CAPACITIES, mapping={"l1": 3, "l2": 4, "l3": 5})
    harness.configure(31)
    harness.tick()
    assert sum(owner is None for owner, _ in harness.owners().values()) == 1, "no room for one more"
    assert listeners.spread("l1", "l2", "l3") == [10, 10, 10], "an assigned socket is not dropped"


def test_a_new_listener_gets_its_share_a_few_at_a_time_each_opened_before_the_old_one_closes(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(120)
    listeners.beat("l1", "l2")
    harness.tick()
    listeners.report_all("l1", "l2")
    before = {name: listeners.assigned(name) for name in ("l1", "l2")}
    for moved in (20, 40):
        listeners.beat("l1", "l2", "l3")
        harness.tick()
        assert len(listeners.assigned("l3")) == moved, "a few at a time"
        assigned = listeners.assigned("l1") | listeners.assigned("l2")
        assert {key for key, each in assigned.items() if each.draining} == assigned.keys() & listeners.assigned(
            "l3"
        ).keys()
        assert sum(each.draining for each in assigned.values()) == 20, "the previous listener keeps them open"
        listeners.report_all("l3")
    harness.tick()
    assert listeners.spread("l1", "l2", "l3") == [40, 40, 40]
    assert not [key for key in listeners.assigned("l3") if key in listeners.assigned("l1") | listeners.assigned("l2")]
    assert sum(epoch == 2 for _, epoch in harness.owners().values()) == 40, "nothing else moved"
    for name in ("l1", "l2"):
        now = listeners.assigned(name)
        assert now == {key: each for key, each in before[name].items() if key in now}


def test_a_socket_that_the_new_listener_cannot_open_goes_back_to_the_previous_listener(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(2)
    listeners.beat("l1")
    harness.tick()
    listeners.report_all("l1")
    listeners.beat("l1", "l2")
    harness.tick()
    ((key, moving),) = listeners.assigned("l2").items()
    listeners.report("l2", moving, SocketState.CONNECTING, error="no connection")
    harness.tick()
    assert listeners.assigned("l1")[key].draining
    harness.execute("UPDATE ari.connection_versions SET assigned_at = assigned_at - interval '11 seconds'")
    harness.tick(2)
    assert harness.owners()[key] == ("l1", 3)
    assert (listeners.assigned("l1")[key].draining, listeners.assigned("l2")) == (False, {})


def test_a_socket_whose_new_listener_dies_early_stays_with_the_previous_one_until_a_third_has_it(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(2)
    listeners.beat("l1")
    harness.tick()
    listeners.report_all("l1")
    listeners.beat("l1", "l2")
    harness.tick()
    (key,) = listeners.assigned("l2")
    listeners.die("l2")
    listeners.beat("l3")
    harness.tick()
    row = next(
        row for row in harness.rows("SELECT * FROM ari.connection_versions") if row["previous_listener_id"] is not None
    )
    assert (row["listener_id"], row["epoch"], row["previous_listener_id"], row["previous_epoch"]) == ("l3", 3, "l1", 1)
    assert (listeners.assigned("l1")[key].epoch, listeners.assigned("l1")[key].draining) == (1, True)


def test_a_listener_that_was_only_asleep_finds_nothing_to_open(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(4)
    listeners.beat("l1", "l2")
    harness.tick()
    slept_on = listeners.assigned("l1")
    assert slept_on
    listeners.die("l1")
    listeners.beat("l2")
    harness.tick()
    assert listeners.redis.zscore(keys.LISTENERS, "l1") is None
    assert listeners.redis.get(keys.revision("l1")) is None
    assert listeners.assigned("l1") == {}
    # Awake, it reports under old epochs: those reports are ignored, and it gets a share under new epochs.
    listeners.beat("l1", "l2")
    for assignment in slept_on.values():
        listeners.report("l1", assignment, SocketState.REPLACED)
    listeners.report_all("l2")
    harness.tick()
    assert {socket["socket_state"] for socket in harness.rows("SELECT * FROM ari.connection_versions")} == {"connected"}
    assert len(listeners.assigned("l1")) == 2
    assert all(each.epoch == 2 + (key in slept_on) for key, each in listeners.assigned("l1").items())


def test_when_redis_answers_late_no_listener_is_evicted(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    class Slow(Listeners):
        late = False

        def snapshot(self, term: int) -> Snapshot:
            snapshot = super().snapshot(term)
            return replace(snapshot, took_seconds=TIMEOUT) if self.late else snapshot

    harness.configure(4)
    slow = Slow(harness.client, timeout_seconds=TIMEOUT, monotonic=listeners.monotonic)
    assigner = harness.new_assigner(listeners=slow)
    listeners.beat("l1", "l2")
    assigner.tick()
    before = harness.owners()
    slow.late = True
    listeners.die("l1")
    assigner.tick()
    slow.late = False
    assigner.tick()
    assert harness.owners() == before


def test_a_new_leader_that_finds_no_listener_alive_gives_them_a_grace_period(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(6)
    listeners.beat("l1", "l2")
    harness.tick()
    before = harness.owners()
    listeners.die("l1")
    listeners.die("l2")
    successor = harness.new_assigner()
    successor.tick()
    listeners.beat("l1")
    successor.tick()
    assert harness.owners() == before


def test_a_higher_epoch_than_postgres_knows_is_adopted(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(2)
    listeners.beat("l1", "l2")
    harness.tick()
    ((key, assignment),) = listeners.assigned("l1").items()
    listeners.report("l2", replace(assignment, epoch=7))
    harness.tick()
    assert harness.owners()[key] == ("l2", 7)
    assert listeners.assigned("l2")[key].epoch == 7


class CountedSockets(SocketRows):
    """Counts how often the sockets are read, and how often it is asked whether they have changed."""

    reads = 0
    looks = 0

    def wanted(self) -> list[EventSocket]:
        self.reads += 1
        return super().wanted()

    def fingerprint(self) -> str:
        self.looks += 1
        return super().fingerprint()


def test_while_nothing_is_new_postgres_is_not_asked(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(2)
    listeners.beat("l1")
    counted = CountedSockets(harness.db, drain_seconds=60, reclaim_seconds=60, quarantine_seconds=60)
    assigner = harness.new_assigner(sockets=counted, full_scan_seconds=60)
    for _ in range(5):
        assigner.tick()
    assert (counted.reads, counted.looks) == (1, 1)
    listeners.beat("l2")
    assigner.tick()
    assert counted.reads == 2


def test_new_reports_are_written_without_reading_the_sockets(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(3)
    listeners.beat("l1")
    counted = CountedSockets(harness.db, drain_seconds=60, reclaim_seconds=60, quarantine_seconds=60)
    assigner = harness.new_assigner(sockets=counted)
    for _ in range(3):
        assigner.tick()
    before = counted.reads
    first, second, third = (assignment for _, assignment in sorted(listeners.assigned("l1").items()))
    listeners.report("l1", first)
    listeners.report("l1", second, SocketState.CONNECTING, error="refused", last_error="refused", last_error_ms=1)
    listeners.report("l1", replace(third, epoch=third.epoch - 1))
    for _ in range(2):
        assigner.tick()
    read = "SELECT socket_state, last_error, past_error FROM ari.connection_versions ORDER BY connection_id"
    assert [tuple(row.values()) for row in harness.rows(read)] == [
        ("connected", "", ""), ("connecting", "refused", "refused"), ("unassigned", "", ""),
    ]  # fmt: skip
    listeners.report("l1", second)
    assigner.tick()
    assert [tuple(row.values()) for row in harness.rows(read)][1] == ("connected", "", "refused")
    assert counted.reads == before


def test_the_time_of_an_event_is_not_written_again_within_seconds(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick(3)
    (assignment,) = listeners.assigned("l1").values()
    now_ms = listeners.now_ms()
    written = []
    for later_ms in (0, 5_000, 12_000):
        listeners.report("l1", assignment, since_ms=now_ms, last_event_ms=now_ms + later_ms)
        harness.tick()
        written.append(round(harness.socket()["last_event_at"].timestamp() * 1000) - now_ms)
    assert written == [0, 0, 12_000]


def test_a_new_report_that_asks_for_an_action_is_acted_on_at_once(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    assigner = harness.new_assigner(full_scan_seconds=60)
    assigner.tick()
    (assignment,) = listeners.assigned("l1").values()
    listeners.report("l1", assignment, SocketState.REPLACED)
    assigner.tick()
    assert harness.socket()["preempted_at"] is not None
    listeners.report("l1", replace(assignment, epoch=7))
    assigner.tick()
    assert harness.owners() == {"1:1": ("l1", 7)}, "a higher epoch is adopted"


def test_without_a_live_listener_a_silent_one_is_not_a_reason_to_read_on(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick(2)
    listeners.die("l1")
    counted = CountedSockets(harness.db, drain_seconds=60, reclaim_seconds=60, quarantine_seconds=60)
    assigner = harness.new_assigner(sockets=counted, timeout_seconds=0.2)

    def settles() -> bool:
        assigner.tick()
        return assigner._settled is not None

    until(settles, "the grace period is over")
    before = counted.reads
    for _ in range(3):
        assigner.tick()
    assert counted.reads == before


def test_assignments_that_redis_lost_are_written_again(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick(3)
    listeners.redis.delete(keys.assignments("l1"), keys.revision("l1"))
    harness.tick()
    assert listeners.assigned("l1")


@pytest.mark.parametrize(
    "change",
    [
        "superseded_at = now()",
        "retired_at = now()",
        "listener_id = 'l9'",
        "epoch = 9",
        "previous_listener_id = 'l8'",
        "parked_at = now()",
        "reclaims = 1",
        # What follows is decided by the time that has passed.
        "preempted_at = now() - interval '61 seconds'",
        "previous_listener_id = 'l9', assigned_at = now() - interval '11 seconds'",
        "reclaims = 2, assigned_at = now() - interval '601 seconds'",
        "superseded_at = '2026-01-01'",
    ],
)
def test_a_change_of_a_socket_by_another_process_is_seen(
    harness: SchedulerHarness, listeners: PlayedListeners, change: str
) -> None:
    harness.configure(2)
    listeners.beat("l1")
    counted = CountedSockets(harness.db, drain_seconds=60, reclaim_seconds=60, quarantine_seconds=60)
    assigner = harness.new_assigner(sockets=counted)
    for _ in range(3):
        assigner.tick()
    before = counted.reads
    harness.execute(f"UPDATE ari.connection_versions SET {change} WHERE connection_id = 1")
    assigner.tick()
    assert counted.reads == before + 1


def test_sockets_of_a_dead_listener_move_to_live_ones_under_a_higher_epoch(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(20)
    listeners.beat("l1", "l2")
    harness.tick()
    kept = listeners.assigned("l2")
    lost = listeners.assigned("l1")
    assert lost
    listeners.die("l1")
    harness.tick()
    now = listeners.assigned("l2")
    assert len(now) == 20
    assert {key: now[key] for key in kept} == kept, "a live listener keeps its sockets"
    assert {now[key].epoch for key in lost} == {2}
    assert all(owner == "l2" for owner, _ in harness.owners().values())


def test_no_listener_is_evicted_while_none_is_alive(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    listeners.die("l1")
    harness.tick()
    assert harness.owners() == {"1:1": ("l1", 1)}
    assert harness.socket()["socket_state"] == "unassigned"
    listeners.beat("l1")
    harness.tick()
    assert listeners.assigned("l1")["1:1"].epoch == 1


def test_a_flushed_redis_is_rewritten_with_the_same_epochs(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(10)
    listeners.beat("l1", "l2")
    harness.tick()
    before, owners = {name: listeners.assigned(name) for name in ("l1", "l2")}, harness.owners()
    assert not harness.assigner.redis_was_emptied
    listeners.redis.flushdb()
    # One listener is back at once, the other not yet: a flush evicts neither.
    listeners.beat("l1")
    harness.tick()
    assert harness.assigner.redis_was_emptied
    assert (listeners.assigned("l1"), harness.owners()) == (before["l1"], owners)
    listeners.beat("l1", "l2")
    harness.tick()
    assert {name: listeners.assigned(name) for name in ("l1", "l2")} == before
    assert harness.owners() == owners


def test_a_listener_that_stays_away_after_a_flush_is_evicted_in_the_end(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    quick = harness.new_assigner(timeout_seconds=0.3)
    harness.configure(1)
    listeners.beat("l1")
    quick.tick()
    listeners.redis.flushdb()

    def moved() -> bool:
        listeners.beat("l2")
        quick.tick()
        return harness.owners() == {"1:1": ("l2", 2)}

    assert not moved()
    until(moved, "moved to the listener that is back")


def test_hashes_that_vanish_alone_are_rewritten(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    before = listeners.assigned("l1")
    listeners.redis.delete(keys.assignments("l1"), keys.revision("l1"))
    harness.tick()
    assert listeners.assigned("l1") == before != {}


def test_redis_away_is_transient(harness: SchedulerHarness) -> None:
    harness.configure(1)
    with queues.client("redis://127.0.0.1:1") as client:
        cut_off = harness.new_assigner(client=client)
        with pytest.raises(errors.QueueUnavailable):
            cut_off.tick()


def test_an_old_master_that_refuses_is_left(harness: SchedulerHarness, stack_folder: Path) -> None:
    with failover.servers_in(stack_folder) as servers, queues.client(servers.url) as client:
        assigner = harness.new_assigner(client=client)
        assigner.tick()
        servers.happen()
        with pytest.raises(errors.QueueUnavailable):
            assigner.tick()
        assigner.tick()
        assert servers.new.exists(keys.BOOT_MARKER)


def test_unreadable_reports_are_skipped(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(1)
    listeners.beat("l1")
    listeners.redis.hset(keys.reports("l1"), mapping={"1:1": "{", "2:1": "[]", "3:1": b"\xff"})
    harness.tick()
    assert set(listeners.assigned("l1")) == {"1:1"}


def test_a_scheduler_that_lost_its_lease_unawares_assigns_nothing(
    harness: SchedulerHarness, listeners: PlayedListeners
) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.execute("UPDATE ari.leases SET holder = 'another', term = term + 1")
    with pytest.raises(errors.LeadershipLost):
        harness.tick()
    assert harness.owners() == {"1:1": (None, 0)}


def test_what_a_listener_reports_is_shown(harness: SchedulerHarness, listeners: PlayedListeners) -> None:
    harness.configure(1)
    listeners.beat("l1")
    harness.tick()
    (assignment,) = listeners.assigned("l1").values()
    listeners.report(
        "l1", assignment, SocketState.CONNECTING, reconnects=3, error="401", last_event_ms=listeners.now_ms()
    )
    harness.tick()
    row = harness.socket()
    assert (row["socket_state"], row["reconnects"], row["last_error"]) == ("connecting", 3, "401")
    assert row["last_event_at"] is not None
    listeners.report("l1", replace(assignment, epoch=0), SocketState.CONNECTED)
    harness.tick()
    assert harness.socket()["socket_state"] == "connecting", "a report under another epoch is ignored"
    listeners.die("l1")
    harness.tick()
    assert harness.socket()["socket_state"] == "unassigned"
