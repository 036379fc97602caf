"""Overdue calls are dispatched again, once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scheduler import sweep
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import State
from shared.call.steps import Step
from shared.storage.call_store import ClaimRequest
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from tests.support.scheduler_harness import SchedulerHarness

pytestmark = pytest.mark.services


def dispatched(harness: SchedulerHarness, queue: str) -> list[str]:
    """The calls in the messages of a queue, which is empty then."""
    return [message.kwargs["call_id"] for message in harness.dequeue(queue)]


def test_overdue_calls_are_dispatched_again(harness: SchedulerHarness) -> None:
    harness.configure(1)
    store = harness.store
    writer = CallWriter(store, harness.commands, Limits(), who="test")
    received = harness.new_call("1", State.RECEIVED, due_in=-1)
    ending = harness.new_call("2", State.ENDING, due_in=-2)
    harness.new_call("3", State.RECEIVED, due_in=100)
    claimed = harness.new_call("4", State.RECEIVED, due_in=-1)
    claim = ClaimRequest(owner="w", step=Step.ADMISSION, duration=timedelta(seconds=60))
    assert store.claim(claimed.call_id, claim) is not None
    assert sweep.dispatch_overdue(writer, store, batch=1) == 1
    assert dispatched(harness, "teardown") == [str(ending.call_id)]
    assert sweep.dispatch_overdue(writer, store, batch=10) == 1
    assert dispatched(harness, "admission") == [str(received.call_id)]
    # Its deadline was moved before the command was enqueued: it is not due again at once.
    assert sweep.dispatch_overdue(writer, store, batch=10) == 0
    again = store.load(received.call_id)
    assert again is not None
    assert (again.step_retries, again.deadline_at is not None and again.deadline_at > store.now()) == (1, True)


def test_two_sweeps_at_once_dispatch_once(harness: SchedulerHarness) -> None:
    harness.configure(1)
    writer = CallWriter(harness.store, harness.commands, Limits(), who="test")
    call = harness.new_call("1", State.RECEIVED, due_in=-1)
    overdue = harness.store.overdue(10)

    class Stale(PostgresCalls):
        def overdue(self, limit: int) -> list[Call]:
            return overdue

    for _ in range(2):
        sweep.dispatch_overdue(writer, Stale(harness.db, who="test", prefix="aip-"), batch=10)
    assert dispatched(harness, "admission") == [str(call.call_id)]


def test_postgres_s_clock_was_set_back_and_what_waits_is_swept_all_the_same(harness: SchedulerHarness) -> None:
    harness.configure(1)
    store, limits = harness.store, Limits()
    writer = CallWriter(store, harness.commands, limits, who="test")
    waits = harness.new_call("1", State.RECEIVED, due_in=3600)
    rings = harness.new_call("2", State.RINGING, due_in=600)
    talks = harness.new_call("3", State.CONNECTED, due_in=4 * 3600)
    claimed = harness.new_call("4", State.RECEIVED, due_in=3)
    claim = ClaimRequest(owner="w", step=Step.ADMISSION, duration=timedelta(hours=1))
    assert store.claim(claimed.call_id, claim) is not None
    before = {call.call_id: call.deadline_at for call in (rings, talks)}
    store.recall_misdated(limits.longest_wait())
    assert sweep.dispatch_overdue(writer, store, batch=10) == 1
    assert dispatched(harness, "admission") == [str(waits.call_id)]
    assert {
        row["call_id"]: row["deadline_at"]
        for row in harness.rows("SELECT call_id, deadline_at FROM ari.calls WHERE call_id = ANY(%s)", list(before))
    } == before, "as late as that they may be"
    (row,) = harness.rows(
        "SELECT extract(epoch FROM claim_until - clock_timestamp())::float AS left FROM ari.calls WHERE call_id = %s",
        claimed.call_id,
    )
    assert 60 < row["left"] <= limits.longest_wait().total_seconds(), "its owner may be alive"
    store.recall_misdated(limits.longest_wait())
    assert sweep.dispatch_overdue(writer, store, batch=10) == 0
