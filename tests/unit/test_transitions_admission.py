"""Reception, admission, refusal, and runs."""

from __future__ import annotations

from dataclasses import replace

from shared.call import commands, facts, transitions
from shared.call.states import Cause, Direction, Outcome, State
from tests.support.calls import (
    CALL_ID,
    LIMITS,
    NOW,
    RECEIVED,
    advance,
)


def test_a_received_call_has_a_deadline() -> None:
    received = transitions.receive(replace(RECEIVED, deadline_at=None), LIMITS)
    assert received.deadline_at == RECEIVED.received_at + LIMITS.queue_wait()


def test_admission_keeps_the_route() -> None:
    after, _ = advance(RECEIVED, facts.Admitted(workflow_id=41, user_id=42, media_client="agent"))
    assert (after.workflow_id, after.user_id, after.media_client) == (41, 42, "agent")


def test_a_refused_call_ends_with_the_reason_and_cause_given() -> None:
    after, _ = advance(RECEIVED, facts.Refused(reason="no route", hangup_cause=Cause.UNALLOCATED))
    assert (after.outcome, after.reason, after.hangup_cause) == (Outcome.REFUSED, "no route", 1)
    assert after.ending_at == NOW


def test_an_attached_leg_has_its_run_already() -> None:
    taken = facts.RunAttached(workflow_id=1, user_id=2, media_client="media", workflow_run_id=9, call_seconds=60)
    prepared, ordered = advance(replace(RECEIVED, direction=Direction.OUTBOUND), taken)
    assert (prepared.state, prepared.workflow_run_id, prepared.call_seconds) == (State.PREPARED, 9, 60)
    assert ordered == [commands.StartMedia(call_id=CALL_ID, attempt=1)]


def test_an_attached_leg_has_the_numbers_that_its_run_names() -> None:
    leg = replace(RECEIVED, direction=Direction.OUTBOUND, caller_number="unknown", called_number="s")
    taken = facts.RunAttached(workflow_id=1, user_id=2, media_client="media", workflow_run_id=9)
    for fact, numbers in (
        (replace(taken, called_number="+4930111"), ("unknown", "+4930111")),
        (replace(taken, caller_number="+4930222", called_number="+4930111"), ("+4930222", "+4930111")),
        (taken, ("unknown", "s")),
    ):
        prepared, _ = advance(leg, fact)
        assert (prepared.caller_number, prepared.called_number) == numbers


def test_a_refused_caller_may_continue_in_the_dialplan() -> None:
    after, _ = advance(RECEIVED, facts.Refused(reason="busy", hangup_cause=17, continue_in_dialplan=True))
    assert (after.state, after.continue_in_dialplan) == (State.ENDING, True)
