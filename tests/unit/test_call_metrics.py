"""What the metrics make of the changes of calls."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest

from shared.call import facts, transitions
from shared.call.calls import Call, Change, replace
from shared.call.states import Cause, Direction, Fault, Outcome, State
from shared.process import call_metrics, metric_kinds, metrics
from shared.process.call_metrics import CallMetrics
from tests.support.calls import LIMITS, RECEIVED


def make(state: State) -> Call:
    return replace(RECEIVED, state=state, call_id=uuid4())


def changed(before: Call, after: Call, fact: facts.Fact | None = None) -> Change:
    return Change(before=before, after=after, fact=fact or facts.DeadlinePassed())


def value(metric: metric_kinds.Counter | metric_kinds.Histogram, name: str, **labels: str) -> float:
    """Return one sample of a metric; 0 if it has none."""
    samples = [sample for family in metric.family.collect() for sample in family.samples]
    return sum(each.value for each in samples if each.name == metric.name + name and each.labels == labels)


def test_the_set_up_time_begins_when_the_event_was_read() -> None:
    observer, call = CallMetrics(), make(State.JOINING)
    before = value(metrics.CALL_SETUP, "_sum", direction="inbound")
    observer.arrived(call, 2.0)
    connected = replace(call, state=State.CONNECTED, connected_at=call.received_at + timedelta(seconds=3))
    observer.changed([changed(call, connected)])
    assert value(metrics.CALL_SETUP, "_sum", direction="inbound") == before + 5.0
    # What was remembered of the call is forgotten.
    assert observer._waited == {}


def test_a_call_counts_once_by_outcome_and_fault() -> None:
    labels = {"direction": "inbound", "outcome": "failed", "fault": "agent"}
    before = value(metrics.CALLS_ENDED, "", **labels)
    ending = replace(make(State.ENDING), outcome=Outcome.FAILED, fault=Fault.AGENT)
    ended = replace(ending, state=State.ENDED)
    observer = CallMetrics()
    observer.changed([changed(ending, ended)])
    # Facts about a call that has ended change its row, and end it no more.
    observer.changed([changed(ended, replace(ended, unverified=True))])
    assert value(metrics.CALLS_ENDED, "", **labels) == before + 1
    observer.ended(ended)
    assert value(metrics.CALLS_ENDED, "", **labels) == before + 2


def test_a_call_whose_caller_is_found_after_its_end_counts_once() -> None:
    labels = {"direction": "inbound", "outcome": "abandoned", "fault": "caller"}
    before, observer, now = value(metrics.CALLS_ENDED, "", **labels), CallMetrics(), RECEIVED.received_at
    happened: list[facts.Fact] = [
        facts.CallerLeft(), facts.RemovalPending(reason="away"), facts.CallerFound(), facts.LegsRemoved(),
    ]  # fmt: skip
    call = make(State.PREPARED)
    for fact in happened:
        now += timedelta(days=2)
        after, _ = transitions.advance(call, fact, now, LIMITS)
        assert after != call
        observer.changed([changed(call, after, fact)])
        call = after
    assert call.state is State.ENDED
    assert value(metrics.CALLS_ENDED, "", **labels) == before + 1


def test_a_refusal_counts_by_its_limit() -> None:
    before = value(metrics.QUOTA_REFUSALS, "", limit="quota")
    received = make(State.RECEIVED)
    for limit in ("quota", ""):
        fact = facts.Refused(reason="no", hangup_cause=Cause.BUSY, limit=limit)
        CallMetrics().changed([changed(received, replace(received, state=State.ENDING), fact)])
    assert value(metrics.QUOTA_REFUSALS, "", limit="quota") == before + 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_metrics, "_KEPT", 3)
    observer, calls = CallMetrics(), [make(State.RECEIVED) for _ in range(9)]
    for call in calls:
        observer.arrived(call, 1.0)
    assert list(observer._waited) == [call.call_id for call in calls[-3:]]


def test_what_cannot_be_counted_breaks_no_call() -> None:
    failures = metric_kinds.failures()
    CallMetrics().changed([cast(Any, None)])
    CallMetrics().ended(cast(Any, None))
    assert metric_kinds.failures() == failures + 2


def test_the_labels_are_those_of_the_core() -> None:
    assert set(metrics.CALLS_ENDED.labels["outcome"] or ()) == set(Outcome)
    assert set(metrics.CALLS_ENDED.labels["direction"] or ()) == set(Direction)
