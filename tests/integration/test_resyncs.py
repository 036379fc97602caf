"""Resyncs are requested on a clock, and do not pile up."""

from __future__ import annotations

import pytest

from scheduler.resyncs import Resyncs
from shared.call.states import State
from tests.support.scheduler_harness import SchedulerHarness

pytestmark = pytest.mark.services


def connect(harness: SchedulerHarness) -> None:
    """Configure three connections, of which the sockets of the first two are open."""
    harness.configure(3)
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connected' WHERE connection_id < 3")


def test_every_fourth_resync_is_full(harness: SchedulerHarness) -> None:
    connect(harness)
    resyncs, requested = Resyncs(harness.db, harness.commands), []
    for _ in range(9):
        resyncs.request_resyncs()
        sent = harness.dequeue("resync")
        assert sorted(message.kwargs["connection_id"] for message in sent) == [1, 2], "only those whose socket is open"
        requested.append({message.kwargs["full"] for message in sent})
    assert requested == [{number % 4 == 0} for number in range(9)]


def test_resyncs_do_not_pile_up(harness: SchedulerHarness) -> None:
    connect(harness)
    resyncs = Resyncs(harness.db, harness.commands)
    for _ in range(3):
        resyncs.request_resyncs()
    assert harness.commands.waiting("resync") == 2
    harness.dequeue("resync")
    resyncs.request_resyncs()
    assert [message.kwargs["full"] for message in harness.dequeue("resync")] == [False, False]


def test_a_lost_redis_requests_a_full_resync_of_everything(harness: SchedulerHarness) -> None:
    connect(harness)
    # The socket of this connection is down, but it has a call, whose orphans are to be found.
    harness.execute("UPDATE ari.connection_versions SET socket_state = 'connecting' WHERE connection_id = 1")
    harness.new_call("1.1", State.CONNECTED, due_in=100)
    Resyncs(harness.db, harness.commands).request_full_resyncs()
    sent = harness.dequeue("resync")
    assert sorted(message.kwargs["connection_id"] for message in sent) == [1, 2]
    assert all(message.kwargs["full"] for message in sent)


def test_a_retired_version_is_not_resynced(harness: SchedulerHarness) -> None:
    connect(harness)
    harness.execute("UPDATE ari.connection_versions SET retired_at = now()")
    Resyncs(harness.db, harness.commands).request_resyncs()
    assert harness.commands.waiting("resync") == 0
