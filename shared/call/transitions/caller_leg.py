"""The caller's leg is replaced by another channel, is being hung up, left Stasis, or is gone."""

from __future__ import annotations

from datetime import datetime

from shared.call import commands, dialling, facts
from shared.call.calls import Call, replace
from shared.call.limits import Limits
from shared.call.states import DIALLING, LIVE, Direction, Outcome, State
from shared.call.transitions import moves
from shared.call.transitions.moves import Advance


def leg_replaced(call: Call, fact: facts.LegReplaced, now: datetime, limits: Limits) -> Advance:
    if call.state is State.CONNECTED and fact.replaced_id == call.destination_id:
        return replace(call, destination_id=fact.channel_id), ()
    if fact.replaced_id != call.leg_id or len(call.replacements) > limits.replacements:
        return moves.unchanged(call)
    replaced = replace(
        call,
        replacements=(*call.replacements, fact.channel_id),
        channel_name=fact.channel_name,
        # Whatever has become of the one before.
        caller_left=False,
    )
    if call.state in LIVE and len(replaced.replacements) > limits.replacements:
        return moves.fail(replaced, now, limits, "the caller's leg was replaced too often")
    if call.state is State.ENDED:
        # The channel comes to a call that is over, and waits for nothing.
        replaced = moves.enter(replaced, State.ENDING, now, limits.queue_wait(), ended_at=None, unverified=False)
    return replaced, _started_again(replaced)


def _started_again(call: Call) -> tuple[commands.Command, ...]:
    """Order again the step that works with the caller's leg: it may have met a channel that was replaced."""
    match call.state:
        case State.JOINING:
            return (commands.JoinLegs.of(call),)
        case State.ENDING:
            return (commands.TearDown.of(call),)
    return ()


def _is_of_replaced(call: Call, fact: facts.CallerFact) -> bool:
    return fact.leg_id not in (None, call.leg_id)


def caller_hanging_up(call: Call, fact: facts.CallerHangingUp, now: datetime, limits: Limits) -> Advance:
    if _is_of_replaced(call, fact):
        return moves.unchanged(call)
    call = _with_tech_cause(call, fact)
    if call.state in DIALLING:
        # ChannelDestroyed follows; only that ends a leg that was not answered.
        known = dialling.clearer(call.hangup_cause, fact.hangup_cause)
        return (call if known == call.hangup_cause else replace(call, hangup_cause=known)), ()
    return _caller_ended(call, now, limits, cause=fact.hangup_cause, left=False)


def caller_left(call: Call, fact: facts.CallerLeft, now: datetime, limits: Limits) -> Advance:
    if _is_of_replaced(call, fact):
        return call, _started_again(call)
    stamped = replace(_with_tech_cause(call, fact), left_stamp=call.left_stamp or fact.stamp)
    how = "left Stasis, and goes on elsewhere" if fact.is_up else "hung up"
    return _caller_ended(stamped, now, limits, cause=fact.hangup_cause, left=True, how=how)


def caller_gone(call: Call, fact: facts.CallerGone, now: datetime, limits: Limits) -> Advance:
    if _is_of_replaced(call, fact):
        return call, _started_again(call)
    call = _with_tech_cause(call, fact)
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


def _with_tech_cause(call: Call, fact: facts.CallerFact) -> Call:
    """Return the call with what the technology of its leg told first."""
    if fact.tech_cause is None or call.tech_cause is not None:
        return call
    return replace(call, tech_cause=fact.tech_cause)


def _caller_ended(
    call: Call, now: datetime, limits: Limits, *, cause: int | None, left: bool, how: str = "hung up"
) -> Advance:
    left = left or call.caller_left
    if call.state in LIVE:
        if call.connected_at is not None:
            outcome, reason = Outcome.COMPLETED, f"caller {how}"
        else:
            is_inbound = call.direction is Direction.INBOUND
            outcome, party = (Outcome.ABANDONED, "caller") if is_inbound else (Outcome.CANCELED, "far end")
            reason = moves.with_obstacle(call, f"{party} {how} before an agent was on the line")
        return moves.end(call, now, limits, outcome=outcome, reason=reason, cause=cause, caller_left=left)
    # A second report may add the cause, or that the leg has left.
    known = call.hangup_cause if call.hangup_cause is not None else cause
    if (left, known) == (call.caller_left, call.hangup_cause):
        return moves.unchanged(call)
    return replace(call, caller_left=left, hangup_cause=known), ()
