"""Legs that the product originates: asked for, dialled, answered, or refused."""

from __future__ import annotations

from datetime import datetime

from shared.call import commands, dialling, facts
from shared.call.calls import Call, replace
from shared.call.limits import Limits
from shared.call.states import DIALLING, Cause, Outcome, State
from shared.call.transitions import moves
from shared.call.transitions.moves import Advance


def _may_still_ring(call: Call) -> bool:
    """True if the originated leg may still ring or be answered although the call is over."""
    return call.is_unanswered and not call.caller_left


def dial_begun(call: Call, fact: facts.DialBegun, _now: datetime, _limits: Limits) -> Advance:
    # Once for a call: of two workers that are about to dial, one may.
    if call.state is not State.ORIGINATING or call.is_dial_begun:
        return moves.unchanged(call)
    return replace(call, attempt_in_doubt_until=fact.in_doubt_until), ()


def dial_unsent(call: Call, fact: facts.DialUnsent, _now: datetime, _limits: Limits) -> Advance:
    if fact.in_doubt_until != call.attempt_in_doubt_until:
        return moves.unchanged(call)
    unsent = replace(call, attempt_in_doubt_until=None)
    match call.state:
        case State.ORIGINATING:
            return replace(unsent, obstacle=fact.reason), ()
        case State.ENDING if _may_still_ring(call):
            # The call was cancelled while the request was under way.
            return replace(unsent, caller_left=True), (commands.TearDown.of(call),)
    return moves.unchanged(call)


def dial_lost(call: Call, _fact: facts.DialLost, now: datetime, limits: Limits) -> Advance:
    return lose(call, now, limits) if call.is_dial_begun else moves.unchanged(call)


def lose(call: Call, now: datetime, limits: Limits) -> Advance:
    """End a call whose far end may have been rung: it is not rung again."""
    reason = moves.with_obstacle(call, "dialled, and what came of it is unknown")
    return moves.fail(call, now, limits, reason, Cause.RECOVERY_ON_TIMER)


def originated(call: Call, _fact: facts.Originated, now: datetime, limits: Limits) -> Advance:
    match call.state:
        case State.ORIGINATING:
            ringing = replace(call, attempt_in_doubt_until=None)
            return moves.enter(ringing, State.RINGING, now, limits.ring_wait(call.ring_seconds)), ()
        case State.ENDING if _may_still_ring(call):
            # The call was cancelled while the request was under way: the leg rings and has to go.
            return replace(call, attempt_in_doubt_until=None), (commands.TearDown.of(call),)
    return moves.unchanged(call)


def dialled(call: Call, fact: facts.Dialled, _now: datetime, _limits: Limits) -> Advance:
    # Only one that tells more counts after the first: an Asterisk that reports one after the other would write the call
    # for each.
    if call.state not in DIALLING:
        return moves.unchanged(call)
    if call.dial_status is not None and dialling.doubt(fact.status, None) >= dialling.doubt(call.dial_status, None):
        return moves.unchanged(call)
    return replace(call, dial_status=fact.status), ()


def far_end_answered(call: Call, fact: facts.FarEndAnswered, now: datetime, limits: Limits) -> Advance:
    if call.state is State.ENDING and _may_still_ring(call):
        # The leg appeared after the teardown had looked: its far end would sit in silence.
        return call, (commands.TearDown.of(call),)
    if call.state not in DIALLING:
        return moves.unchanged(call)
    answered = replace(
        call, channel_name=fact.channel_name, channel_created=fact.channel_created, entered_stamp=fact.stamp,
        attempt_in_doubt_until=None,
    )  # fmt: skip
    return moves.prepare(answered, now, limits)


def originate_refused(call: Call, fact: facts.OriginateRefused, now: datetime, limits: Limits) -> Advance:
    match call.state:
        case State.ORIGINATING:
            reason = f"not originated: {fact.reason}"
            return moves.end(
                call, now, limits, outcome=Outcome.FAILED, reason=reason, cause=Cause.UNALLOCATED, caller_left=True,
                attempt_in_doubt_until=None,
            )  # fmt: skip
        case State.ENDING if _may_still_ring(call):
            # The call was cancelled while the request was under way.
            refused = replace(call, caller_left=True, attempt_in_doubt_until=None)
            return refused, (commands.TearDown.of(call),)
    return moves.unchanged(call)
