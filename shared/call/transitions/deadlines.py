"""Overdue calls, requests to end one, and the end of a teardown."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from shared.call import commands, facts, faults, steps
from shared.call.calls import Call, replace
from shared.call.limits import Limits
from shared.call.states import LIVE, Cause, Outcome, State
from shared.call.transitions import media_leg, moves, originated_leg
from shared.call.transitions.moves import Advance


def end_requested(call: Call, fact: facts.EndRequested, now: datetime, limits: Limits) -> Advance:
    if call.state not in LIVE:
        return moves.unchanged(call)
    outcome = Outcome.COMPLETED if call.connected_at is not None else Outcome.CANCELED
    return moves.end(call, now, limits, outcome=outcome, reason=fact.reason, cause=Cause.NORMAL)


def deadline_passed(call: Call, _fact: facts.DeadlinePassed, now: datetime, limits: Limits) -> Advance:
    if call.deadline_at is None or now < call.deadline_at:
        return moves.unchanged(call)
    return _OVERDUE[call.state](call, now, limits)


def worker_died(call: Call, _fact: facts.WorkerDied, now: datetime, limits: Limits) -> Advance:
    is_prepared = call.state is State.PREPARED
    if steps.step_of(call.state) is None or (is_prepared and call.attempt_in_doubt_until is None):
        return moves.unchanged(call)
    if is_prepared and call.attempt < limits.attempts:
        return media_leg.after_death(call, now, limits)
    if call.deadline_at is None or call.deadline_at <= now:
        return moves.unchanged(call)
    # The step is lost: what is overdue later otherwise is so now.
    return replace(call, deadline_at=now), ()


def hindered(call: Call, fact: facts.Hindered, _now: datetime, _limits: Limits) -> Advance:
    if call.state is not fact.state or fact.state in (State.CONNECTED, State.ENDING, State.ENDED):
        return moves.unchanged(call)
    return replace(call, obstacle=fact.obstacle), ()


def _longest_call(call: Call, now: datetime, limits: Limits) -> Advance:
    reason = "longest call time reached"
    return moves.end(call, now, limits, outcome=Outcome.COMPLETED, reason=reason, cause=Cause.NORMAL)


def _dial_overdue(call: Call, now: datetime, limits: Limits) -> Advance:
    if call.is_dial_begun and call.step_retries >= limits.max_step_retries:
        return originated_leg.lose(call, now, limits)
    return moves.retry_step(call, now, limits)


def _rang_too_long(call: Call, now: datetime, limits: Limits) -> Advance:
    reason = "not answered in time"
    return moves.end(call, now, limits, outcome=Outcome.NO_ANSWER, reason=reason, cause=Cause.NO_ANSWER)


def _preparation_overdue(call: Call, now: datetime, limits: Limits) -> Advance:
    if call.legs_created:
        return _media_overdue(call, now, limits)
    if call.attempt_in_doubt_until is not None:
        return media_leg.next_attempt(call, now, limits, "the worker did not report back")
    return moves.retry_step(call, now, limits)


def _teardown_overdue(call: Call, now: datetime, limits: Limits) -> Advance:
    wait = max(limits.queue_wait(), limits.teardown_pause(call.step_retries))
    again = replace(call, step_retries=call.step_retries + 1, deadline_at=now + wait)
    return again, (commands.TearDown.of(call),)


def _media_overdue(call: Call, now: datetime, limits: Limits) -> Advance:
    if call.step_retries >= limits.media_checks:
        reason = "media leg not ready in time"
        if call.obstacle == faults.NOT_ACCEPTED:
            return moves.fail(call, now, limits, f"voice agent not reached: {reason}")
        return moves.fail(call, now, limits, f"{reason}: {call.obstacle or faults.NOT_DONE}")
    # Each check says anew what it has found.
    waiting = replace(call, step_retries=call.step_retries + 1, deadline_at=now + limits.media_wait(), obstacle=None)
    return waiting, (commands.CheckMedia.of(call),)


def removal_pending(call: Call, fact: facts.RemovalPending, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.ENDING:
        return moves.unchanged(call)
    waits_for_asterisk = fact.run_is_over and fact.not_before is None and not _is_in_doubt(call, now)
    if waits_for_asterisk and now - call.state_since >= limits.teardown_wait():
        reason = f"{(call.reason or '').removesuffix(faults.NOT_VERIFIED)}{faults.NOT_VERIFIED}"
        return moves.enter(call, State.ENDED, now, None, ended_at=now, unverified=True, reason=reason), ()
    if fact.not_before is None:
        retry_at = now + limits.teardown_pause(call.step_retries)
    else:
        # All is gone, and only a moment is waited for: the pauses do not grow. If the outcome became known meanwhile,
        # that moment is no longer waited for.
        retry_at = max(now + limits.teardown_pause(0), min(fact.not_before, call.in_doubt_until or now))
    return replace(call, step_retries=call.step_retries + 1, deadline_at=retry_at), ()


def legs_removed(call: Call, fact: facts.LegsRemoved, now: datetime, _limits: Limits) -> Advance:
    if call.state is not State.ENDING or _is_in_doubt(call, now):
        return moves.unchanged(call)
    if fact.leg_id not in (None, call.leg_id):
        # Another channel has come in its place meanwhile.
        return call, (commands.TearDown.of(call),)
    return moves.enter(call, State.ENDED, now, None, ended_at=now), ()


def caller_found(call: Call, _fact: facts.CallerFound, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.ENDED or not call.unverified:
        return moves.unchanged(call)
    # Its Asterisk is back, and the caller waits for nothing: the teardown goes on.
    again = moves.enter(call, State.ENDING, now, limits.queue_wait(), ended_at=None, unverified=False)
    return again, (commands.TearDown.of(again),)


def _is_in_doubt(call: Call, now: datetime) -> bool:
    return call.in_doubt_until is not None and now < call.in_doubt_until


_OVERDUE: dict[State, Callable[[Call, datetime, Limits], Advance]] = {
    State.ORIGINATING: _dial_overdue,
    State.RINGING: _rang_too_long,
    State.RECEIVED: moves.retry_step,
    State.ADMITTED: moves.retry_step,
    State.PREPARED: _preparation_overdue,
    State.JOINING: moves.retry_step,
    State.CONNECTED: _longest_call,
    State.ENDING: _teardown_overdue,
    State.ENDED: lambda call, _now, _limits: moves.unchanged(call),
}
