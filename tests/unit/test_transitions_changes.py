"""Every field that a fact changes, and that it changes no other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from shared.call import facts
from shared.call.calls import Call
from shared.call.states import Outcome, State
from tests.support.calls import (
    ADMITTED,
    ATTEMPTING,
    CONNECTED,
    ENDING,
    JOINING,
    LIMITS,
    NOW,
    ORIGINATING,
    PREPARED,
    RECEIVED,
    RINGING,
    WAITING,
    advance,
    seconds,
)  # fmt: skip

QUEUED = NOW + LIMITS.queue_wait()
FAR_END = facts.FarEndAnswered(channel_name="PJSIP/trunk-1", channel_created="2026", stamp="2026-05-01")
ROUTE: dict[str, Any] = {"workflow_id": 41, "user_id": 42, "media_client": "agent", "call_seconds": 120.0}


def entered(state: State, deadline_at: datetime | None, **more: Any) -> dict[str, Any]:
    """Return what changes in any call that enters a state."""
    return {"state": state, "state_since": NOW, "deadline_at": deadline_at, "step_retries": 0, **more}


def ended(outcome: Outcome, reason: str, cause: int | None, **more: Any) -> dict[str, Any]:
    """Return what changes in any call that comes to its end."""
    return entered(State.ENDING, QUEUED, ending_at=NOW, outcome=outcome, reason=reason, hangup_cause=cause, **more)


CHANGES: list[tuple[Call, facts.Fact, dict[str, Any]]] = [
    # Admission and run.
    (RECEIVED, facts.Admitted(**ROUTE), entered(State.ADMITTED, QUEUED, **ROUTE)),
    (
        RECEIVED,
        facts.RunAttached(**ROUTE, workflow_run_id=9),
        entered(State.PREPARED, QUEUED, **ROUTE, workflow_run_id=9),
    ),
    (ADMITTED, facts.RunCreated(workflow_run_id=9), entered(State.PREPARED, QUEUED, workflow_run_id=9)),
    (
        ADMITTED,
        facts.Refused(reason="blocked", hangup_cause=57, continue_in_dialplan=True),
        ended(Outcome.REFUSED, "blocked", 57, continue_in_dialplan=True),
    ),
    (
        replace(ORIGINATING, attempt_in_doubt_until=NOW),
        facts.Refused(reason="blocked", hangup_cause=57),
        ended(Outcome.REFUSED, "blocked", 57),
    ),
    (
        ORIGINATING,
        facts.Refused(reason="blocked", hangup_cause=57),
        ended(Outcome.REFUSED, "blocked", 57, caller_left=True),
    ),
    # Attempts.
    (
        replace(PREPARED, media_ready=True, earlier_in_doubt_until=NOW),
        facts.AttemptBegun(attempt=1, in_doubt_until=NOW + seconds(14)),
        {
            "attempt": 1, "attempt_in_doubt_until": NOW + seconds(14), "earlier_in_doubt_until": NOW,
            "media_ready": False, "step_retries": 0, "deadline_at": NOW + seconds(11),
        },
    ),
    (
        ATTEMPTING,
        facts.LegsCreated(attempt=1),
        {"legs_created": True, "attempt_in_doubt_until": None, "step_retries": 0, "deadline_at": NOW + seconds(3)},
    ),
    (
        replace(ATTEMPTING, media_ready=True),
        facts.LegsCreated(attempt=1),
        entered(State.JOINING, QUEUED, legs_created=True, attempt_in_doubt_until=None),
    ),
    (
        ATTEMPTING,
        facts.LegsRefused(attempt=1, reason="400"),
        ended(Outcome.FAILED, "media refused: 400", 41, attempt_in_doubt_until=None),
    ),
    (
        ATTEMPTING,
        facts.LegsUnknown(attempt=1, reason="no answer"),
        {
            "attempt_in_doubt_until": None, "earlier_in_doubt_until": NOW + seconds(14), "step_retries": 0,
            "deadline_at": QUEUED,
        },
    ),
    (
        replace(ATTEMPTING, attempt=2),
        facts.LegsUnknown(attempt=2, reason="no answer"),
        ended(Outcome.FAILED, "media not created: no answer", 41),
    ),
    (ATTEMPTING, facts.MediaReady(attempt=1), {"media_ready": True}),
    (WAITING, facts.MediaReady(attempt=1), entered(State.JOINING, QUEUED, media_ready=True)),
    (
        WAITING,
        facts.MediaGone(attempt=1, reason="is gone"),
        {"legs_created": False, "media_ready": False, "step_retries": 0, "deadline_at": QUEUED + seconds(0.5)},
    ),
    (
        JOINING,
        facts.MediaGone(attempt=1, reason="ended"),
        ended(Outcome.FAILED, "voice agent not reached: ended", 41),
    ),
    (CONNECTED, facts.MediaGone(attempt=1), ended(Outcome.COMPLETED, "agent hung up", 16)),
    # Joining.
    (JOINING, facts.Joined(attempt=1), entered(State.CONNECTED, NOW + seconds(4 * 3600), connected_at=NOW)),
    (
        replace(JOINING, call_seconds=60.0),
        facts.Joined(attempt=1),
        entered(State.CONNECTED, NOW + seconds(60), connected_at=NOW),
    ),
    (JOINING, facts.JoinRefused(attempt=1, reason="422"), ended(Outcome.FAILED, "legs not joined: 422", 41)),
    (CONNECTED, facts.BridgeLost(attempt=1, reason="gone"), ended(Outcome.FAILED, "bridge lost: gone", 16)),
    # The caller's leg.
    (RINGING, facts.CallerHangingUp(hangup_cause=17), {"hangup_cause": 17}),
    (
        JOINING,
        facts.CallerHangingUp(hangup_cause=16),
        ended(Outcome.ABANDONED, "caller hung up before an agent was on the line", 16),
    ),
    (
        CONNECTED,
        facts.CallerLeft(stamp="then", hangup_cause=16),
        ended(Outcome.COMPLETED, "caller hung up", 16, caller_left=True, left_stamp="then"),
    ),
    (ENDING, facts.CallerLeft(stamp="then"), {"left_stamp": "then", "caller_left": True}),
    (replace(ENDING, hangup_cause=None), facts.CallerHangingUp(hangup_cause=17), {"hangup_cause": 17}),
    (
        replace(PREPARED, direction=ORIGINATING.direction),
        facts.CallerGone(hangup_cause=16),
        ended(Outcome.CANCELED, "far end hung up before an agent was on the line", 16, caller_left=True),
    ),
    (
        replace(ORIGINATING, dial_status="BUSY", attempt_in_doubt_until=NOW),
        facts.CallerGone(),
        ended(Outcome.BUSY, "busy", 17, caller_left=True, attempt_in_doubt_until=None),
    ),
    (
        replace(ORIGINATING, hangup_cause=21),
        facts.CallerGone(),
        ended(Outcome.FAILED, "rejected", 21, caller_left=True),
    ),
    # Originated legs.
    (ORIGINATING, facts.Originated(), entered(State.RINGING, NOW + seconds(65))),
    (
        replace(ORIGINATING, state=State.ENDING, attempt_in_doubt_until=NOW),
        facts.Originated(),
        {"attempt_in_doubt_until": None},
    ),
    (RINGING, facts.Dialled(status="BUSY"), {"dial_status": "BUSY"}),
    (
        RINGING,
        FAR_END,
        entered(
            State.PREPARED, QUEUED, channel_name="PJSIP/trunk-1", channel_created="2026", entered_stamp="2026-05-01"
        ),
    ),
    (
        ORIGINATING,
        facts.OriginateRefused(reason="400"),
        ended(Outcome.FAILED, "not originated: 400", 1, caller_left=True),
    ),
    (
        replace(ORIGINATING, state=State.ENDING, attempt_in_doubt_until=NOW),
        facts.OriginateRefused(reason="400"),
        {"caller_left": True, "attempt_in_doubt_until": None},
    ),
    # Deadlines, and the end.
    (RECEIVED, facts.DeadlinePassed(), {"step_retries": 1, "deadline_at": QUEUED}),
    (replace(ADMITTED, step_retries=2), facts.DeadlinePassed(), ended(Outcome.FAILED, "admitted for too long", 102)),
    (
        WAITING,
        facts.DeadlinePassed(),
        {"step_retries": 1, "deadline_at": NOW + seconds(3)},
    ),
    (RINGING, facts.DeadlinePassed(), ended(Outcome.NO_ANSWER, "not answered in time", 19)),
    (CONNECTED, facts.DeadlinePassed(), ended(Outcome.COMPLETED, "longest call time reached", 16)),
    (replace(ENDING, step_retries=4), facts.DeadlinePassed(), {"step_retries": 5, "deadline_at": NOW + seconds(16)}),
    (ENDING, facts.DeadlinePassed(), {"step_retries": 1, "deadline_at": QUEUED}),
    (ENDING, facts.RemovalPending(reason="away"), {"step_retries": 1, "deadline_at": NOW + seconds(1)}),
    (ENDING, facts.LegsRemoved(), entered(State.ENDED, None, ended_at=NOW)),
    (CONNECTED, facts.Transferred(attempt=1, destination_id="d"), {"destination_id": "d"}),
    (
        replace(CONNECTED, destination_id="d"),
        facts.DestinationGone(destination_id="d", hangup_cause=19),
        ended(Outcome.COMPLETED, "the leg it was transferred to hung up", 19),
    ),
    (CONNECTED, facts.EndRequested(reason="by an operator"), ended(Outcome.COMPLETED, "by an operator", 16)),
    (RECEIVED, facts.EndRequested(reason="by an operator"), ended(Outcome.CANCELED, "by an operator", 16)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "fact", "changes"),
    CHANGES,
    ids=[f"{number}-{call.state}-{type(fact).__name__}" for number, (call, fact, _) in enumerate(CHANGES)],
)
def test_a_fact_changes_these_fields_and_no_other(call: Call, fact: facts.Fact, changes: dict[str, Any]) -> None:
    after, _ = advance(call, fact)
    assert after == replace(call, **changes)


def test_every_fact_is_among_them() -> None:
    assert len({type(fact) for _, fact, _ in CHANGES}) == 26
