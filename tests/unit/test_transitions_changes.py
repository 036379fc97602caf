"""Every field that a fact changes, and that it changes no other."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from shared.call import facts, faults
from shared.call.calls import Call
from shared.call.states import Outcome, State
from tests.support.calls import (
    ADMITTED,
    ATTEMPTING,
    CONNECTED,
    ENDED,
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
REPLACED = facts.LegReplaced(replaced_id=CONNECTED.channel_id, channel_id="new", channel_name="Local/1001-1;1")
FAR_END = facts.FarEndAnswered(channel_name="PJSIP/trunk-1", channel_created="2026", stamp="2026-05-01")
ROUTE: dict[str, Any] = {"workflow_id": 41, "user_id": 42, "media_client": "agent", "call_seconds": 120.0}


def entered(state: State, deadline_at: datetime | None, **more: Any) -> dict[str, Any]:
    """Return what changes in any call that enters a state."""
    return {
        "state": state, "state_since": NOW, "deadline_at": deadline_at, "step_retries": 0, "obstacle": None, **more
    }  # fmt: skip


def ended(outcome: Outcome, reason: str, cause: int | None, **more: Any) -> dict[str, Any]:
    """Return what changes in any call that comes to its end."""
    fault = faults.fault_of(outcome, reason)
    return entered(
        State.ENDING, QUEUED, ending_at=NOW, outcome=outcome, reason=reason, fault=fault, hangup_cause=cause, **more
    )


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
            "deadline_at": QUEUED, "obstacle": "media not created: no answer",
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
        {
            "legs_created": False, "media_ready": False, "step_retries": 0, "deadline_at": QUEUED + seconds(0.5),
            "obstacle": "voice agent not reached: is gone",
        },
    ),
    (
        JOINING,
        facts.MediaGone(attempt=1, reason="ended", tech_cause=1002),
        ended(Outcome.FAILED, "voice agent not reached: ended", 41, tech_cause=1002),
    ),
    (
        CONNECTED,
        facts.MediaGone(attempt=1, tech_cause=1000),
        ended(Outcome.COMPLETED, "agent hung up", 16, tech_cause=1000),
    ),
    (
        CONNECTED,
        facts.MediaGone(attempt=1, hangup_cause=38, tech_cause=1001),
        ended(Outcome.FAILED, "agent lost: media leg ended", 16, tech_cause=1001),
    ),
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
    (CONNECTED, REPLACED, {"replacements": ("new",), "channel_name": "Local/1001-1;1"}),
    (
        replace(CONNECTED, destination_id=CONNECTED.channel_id, replacements=("other",)),
        REPLACED,
        {"destination_id": "new"},
    ),
    (
        replace(ENDED, caller_left=True, unverified=True),
        REPLACED,
        entered(
            State.ENDING, QUEUED, replacements=("new",), channel_name="Local/1001-1;1", caller_left=False,
            ended_at=None, unverified=False,
        ),
    ),
    (
        CONNECTED,
        facts.CallerLeft(stamp="then", is_up=True),
        ended(
            Outcome.COMPLETED, "caller left Stasis, and goes on elsewhere", None, caller_left=True, left_stamp="then"
        ),
    ),
    (RINGING, facts.CallerHangingUp(hangup_cause=17, tech_cause=486), {"hangup_cause": 17, "tech_cause": 486}),
    (replace(ENDING, tech_cause=487), facts.CallerHangingUp(tech_cause=200), {}),
    (ENDING, facts.CallerHangingUp(tech_cause=487), {"tech_cause": 487}),
    (
        JOINING,
        facts.CallerHangingUp(hangup_cause=16),
        ended(Outcome.ABANDONED, "caller hung up before an agent was on the line", 16),
    ),
    (
        replace(JOINING, obstacle="Asterisk gave no answer: 503"),
        facts.CallerHangingUp(hangup_cause=16),
        ended(
            Outcome.ABANDONED, "caller hung up before an agent was on the line: Asterisk gave no answer: 503", 16
        ),
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
    (
        RECEIVED,
        facts.DeadlinePassed(),
        {"step_retries": 1, "deadline_at": QUEUED, "obstacle": "no worker has done its step"},
    ),
    (
        replace(JOINING, obstacle="Asterisk gave no answer: 503"),
        facts.DeadlinePassed(),
        {"step_retries": 1, "deadline_at": QUEUED},
    ),
    (
        replace(ADMITTED, step_retries=2),
        facts.DeadlinePassed(),
        ended(Outcome.FAILED, "admitted for too long: no worker has done its step", 102),
    ),
    (
        replace(JOINING, step_retries=2, obstacle="Asterisk gave no answer: 503"),
        facts.DeadlinePassed(),
        ended(Outcome.FAILED, "joining for too long: Asterisk gave no answer: 503", 102),
    ),
    (JOINING, facts.Hindered(state=State.JOINING, obstacle="why"), {"obstacle": "why"}),
    (JOINING, facts.Hindered(state=State.PREPARED, obstacle="why"), {}),
    (CONNECTED, facts.Hindered(state=State.CONNECTED, obstacle="why"), {}),
    # Each check of a media leg says anew what it has found.
    (
        replace(WAITING, obstacle="Asterisk gave no answer: 503"),
        facts.DeadlinePassed(),
        {"step_retries": 1, "deadline_at": NOW + seconds(3), "obstacle": None},
    ),
    (
        replace(WAITING, step_retries=3, obstacle="Asterisk gave no answer: 503"),
        facts.DeadlinePassed(),
        ended(Outcome.FAILED, "media leg not ready in time: Asterisk gave no answer: 503", 41),
    ),
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
    assert len({type(fact) for _, fact, _ in CHANGES}) == 28
