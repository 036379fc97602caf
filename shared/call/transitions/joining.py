"""Joining caller and agent, transferring the caller to another leg, and losing the bridge later."""

from __future__ import annotations

from datetime import datetime, timedelta

from shared.call import facts
from shared.call.calls import Call, replace
from shared.call.limits import Limits
from shared.call.states import Cause, Outcome, State
from shared.call.transitions import moves
from shared.call.transitions.moves import Advance


def joined(call: Call, fact: facts.Joined, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.JOINING or not moves.is_newest(call, fact):
        return moves.unchanged(call)
    longest = timedelta(seconds=call.call_seconds or limits.call_seconds)
    return moves.enter(call, State.CONNECTED, now, longest, connected_at=now), ()


def join_refused(call: Call, fact: facts.JoinRefused, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.JOINING or not moves.is_newest(call, fact):
        return moves.unchanged(call)
    return moves.fail(call, now, limits, f"legs not joined: {fact.reason}")


def bridge_lost(call: Call, fact: facts.BridgeLost, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.CONNECTED or not moves.is_newest(call, fact):
        return moves.unchanged(call)
    return moves.end(
        call, now, limits, outcome=Outcome.FAILED, reason=f"bridge lost: {fact.reason}", cause=Cause.NORMAL
    )


def transferred(call: Call, fact: facts.Transferred, _now: datetime, _limits: Limits) -> Advance:
    # Told again, it may name a leg that was replaced since.
    is_known = call.destination_id is not None
    if call.state is not State.CONNECTED or not moves.is_newest(call, fact) or is_known:
        return moves.unchanged(call)
    return replace(call, destination_id=fact.destination_id), ()


def destination_gone(call: Call, fact: facts.DestinationGone, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.CONNECTED or call.destination_id != fact.destination_id:
        return moves.unchanged(call)
    cause = fact.hangup_cause or Cause.NORMAL
    reason = "the leg it was transferred to hung up"
    return moves.end(call, now, limits, outcome=Outcome.COMPLETED, reason=reason, cause=cause)
