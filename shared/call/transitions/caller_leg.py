"""The caller's leg is being hung up, left Stasis, or is gone."""

from __future__ import annotations

from datetime import datetime

from shared.call import dialling, facts
from shared.call.calls import Call, replace
from shared.call.limits import Limits
from shared.call.states import DIALLING, LIVE, Direction, Outcome
from shared.call.transitions import moves
from shared.call.transitions.moves import Advance


def caller_hanging_up(call: Call, fact: facts.CallerHangingUp, now: datetime, limits: Limits) -> Advance:
    if call.state in DIALLING:
        # ChannelDestroyed follows; only that ends a leg that was not answered.
        known = dialling.clearer(call.hangup_cause, fact.hangup_cause)
        return (call if known == call.hangup_cause else replace(call, hangup_cause=known)), ()
    return _caller_ended(call, now, limits, cause=fact.hangup_cause, left=False)


def caller_left(call: Call, fact: facts.CallerLeft, now: datetime, limits: Limits) -> Advance:
    stamped = replace(call, left_stamp=call.left_stamp or fact.stamp)
    return _caller_ended(stamped, now, limits, cause=fact.hangup_cause, left=True)


def caller_gone(call: Call, fact: facts.CallerGone, now: datetime, limits: Limits) -> Advance:
    if call.state in DIALLING:
        known_cause = dialling.clearer(fact.hangup_cause, call.hangup_cause)
        outcome, reason, cause = dialling.dial_outcome(call.dial_status, known_cause)
        known = replace(call, hangup_cause=cause)
        # It was dialled once: no other leg of this id will come.
        return moves.end(
            known, now, limits, outcome=outcome, reason=reason, cause=cause, caller_left=True,
            attempt_in_doubt_until=None,
        )  # fmt: skip
    return _caller_ended(call, now, limits, cause=fact.hangup_cause, left=True)


def _caller_ended(call: Call, now: datetime, limits: Limits, *, cause: int | None, left: bool) -> Advance:
    left = left or call.caller_left
    if call.state in LIVE:
        if call.connected_at is not None:
            outcome, reason = Outcome.COMPLETED, "caller hung up"
        elif call.direction is Direction.INBOUND:
            outcome, reason = Outcome.ABANDONED, "caller hung up before an agent was on the line"
        else:
            outcome, reason = Outcome.CANCELED, "far end hung up before an agent was on the line"
        return moves.end(call, now, limits, outcome=outcome, reason=reason, cause=cause, caller_left=left)
    # A second report may add the cause, or that the leg has left.
    known = call.hangup_cause if call.hangup_cause is not None else cause
    if (left, known) == (call.caller_left, call.hangup_cause):
        return moves.unchanged(call)
    return replace(call, caller_left=left, hangup_cause=known), ()
