"""Resyncs are requested on a clock, and do not pile up."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from scheduler.resyncs import Resyncs
from shared import errors, messages
from shared.call.ids import ConnectionVersion
from shared.call.states import State
from tests.support.scheduler_harness import SchedulerHarness

pytestmark = pytest.mark.services


def connect(harness: SchedulerHarness) -> None:
    """Configure three connections, of which the sockets of the first two are open."""
    harness.configure(3)
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connected' WHERE connection_id < 3")


def make(harness: SchedulerHarness) -> Resyncs:
    return Resyncs(harness.db, harness.commands, seconds=15)


def make_due(harness: SchedulerHarness) -> None:
    harness.execute("UPDATE ari.resyncs SET due_at = clock_timestamp() - interval '1 hour'")


def waiting(harness: SchedulerHarness) -> int:
    return harness.broker.count(["resync"])["resync"].waiting


def test_every_fourth_resync_is_full(harness: SchedulerHarness) -> None:
    connect(harness)
    resyncs, requested = make(harness), []
    for _ in range(9):
        resyncs.request_resyncs()
        sent = harness.dequeue("resync")
        assert sorted(message.kwargs["connection_id"] for message in sent) == [1, 2], "only those whose socket is open"
        requested.append({message.kwargs["full"] for message in sent})
        make_due(harness)
    assert requested == [{number % 4 == 0} for number in range(9)]


def test_postgres_s_clock_was_set_back_and_resyncs_go_on_at_their_interval(harness: SchedulerHarness) -> None:
    connect(harness)
    resyncs = make(harness)
    resyncs.request_resyncs()
    harness.dequeue("resync")
    harness.execute("UPDATE ari.resyncs SET due_at = due_at + interval '1 hour'")
    resyncs.request_resyncs()
    assert len(harness.dequeue("resync")) == 2
    resyncs.request_resyncs()
    assert len(harness.dequeue("resync")) <= 1, "they are due within the interval again"
    (row,) = harness.rows("SELECT max(due_at) <= clock_timestamp() + interval '15 seconds' AS soon FROM ari.resyncs")
    assert row["soon"]


def test_resyncs_do_not_pile_up(harness: SchedulerHarness) -> None:
    connect(harness)
    resyncs = make(harness)
    for _ in range(3):
        resyncs.request_resyncs()
        make_due(harness)
    assert waiting(harness) == 2


def test_a_connection_whose_resync_waits_keeps_no_other_from_theirs(harness: SchedulerHarness) -> None:
    """One whose event socket flaps, and whose Asterisk is slow: the clock once left out all while one waited."""
    connect(harness)
    resyncs = make(harness)
    for _ in range(8):
        for number in range(3):
            harness.commands.send(
                messages.of_resync(connection=ConnectionVersion(1, 1), reason=f"connected {number}", full=True)
            )
        resyncs.request_resyncs()
        sent = harness.dequeue("resync")
        assert sorted((message.kwargs["connection_id"], message.kwargs["reason"]) for message in sent) == [
            (1, "connected 2"),
            (2, "clock"),
        ]
        make_due(harness)


def test_each_connection_has_its_own_time(harness: SchedulerHarness) -> None:
    connect(harness)
    resyncs = make(harness)
    resyncs.request_resyncs()
    harness.dequeue("resync")
    resyncs.request_resyncs()
    assert waiting(harness) == 0, "none is due"
    harness.execute("UPDATE ari.resyncs SET due_at = clock_timestamp() - interval '1 s' WHERE connection_id = 2")
    resyncs.request_resyncs()
    assert [message.kwargs["connection_id"] for message in harness.dequeue("resync")] == [2]
    rows = harness.rows("SELECT extract(epoch FROM due_at - clock_timestamp()) AS seconds FROM ari.resyncs"
                        " ORDER BY connection_id")  # fmt: skip
    assert 0 < rows[0]["seconds"] <= 15
    assert 13 < rows[1]["seconds"] <= 14, "an interval after it was due"


def test_connections_of_a_clock_that_was_away_are_spread_over_an_interval(harness: SchedulerHarness) -> None:
    harness.configure(40)
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connected'")
    resyncs = make(harness)
    resyncs.request_resyncs()
    for _ in range(2):
        rows = harness.rows("SELECT extract(epoch FROM max(due_at) - min(due_at)) AS seconds FROM ari.resyncs")
        assert 5 < rows[0]["seconds"] <= 15
        make_due(harness)
        resyncs.request_resyncs()


def test_what_redis_does_not_take_is_due_still(harness: SchedulerHarness) -> None:
    class Away:
        def send_all(self, made: Iterable[messages.Message]) -> None:
            raise errors.QueueUnavailable("away")

    connect(harness)
    with pytest.raises(errors.QueueUnavailable):
        Resyncs(harness.db, Away(), seconds=15).request_resyncs()
    make(harness).request_resyncs()
    assert waiting(harness) == 2


def test_a_lost_redis_requests_a_full_resync_of_everything(harness: SchedulerHarness) -> None:
    connect(harness)
    # The socket of this connection is down, but it has a call, whose orphans are to be found.
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connecting' WHERE connection_id = 1")
    harness.new_call("1.1", State.CONNECTED, due_in=100)
    make(harness).request_full_resyncs()
    sent = harness.dequeue("resync")
    assert sorted(message.kwargs["connection_id"] for message in sent) == [1, 2]
    assert all(message.kwargs["full"] for message in sent)


def test_a_retired_version_is_not_resynced(harness: SchedulerHarness) -> None:
    connect(harness)
    harness.execute("UPDATE ari.connection_versions SET retired_at = now()")
    make(harness).request_resyncs()
    assert waiting(harness) == 0
