"""Media leg and bridge: attempts, their outcomes, and the media leg becoming ready or going."""

from __future__ import annotations

from datetime import datetime, timedelta

from shared.call import commands, facts, faults
from shared.call.calls import Call, replace
from shared.call.limits import Limits
from shared.call.states import Cause, Outcome, State
from shared.call.steps import Step
from shared.call.transitions import moves
from shared.call.transitions.moves import Advance


def begin(call: Call, now: datetime, limits: Limits, nonce: str) -> facts.AttemptBegun:
    """Return the fact that the call's next attempt begins now.

    Its requests may take effect as long as the step may work, and one request longer.

    Args:
        nonce: Drawn for this attempt; empty if a release that knows no nonces may go on with the call.
    """
    wait = limits.claim(Step.MEDIA) + timedelta(seconds=limits.request_seconds)
    return facts.AttemptBegun(attempt=call.attempt + 1, nonce=nonce, in_doubt_until=now + wait)


def attempt_begun(call: Call, fact: facts.AttemptBegun, now: datetime, limits: Limits) -> Advance:
    is_next = fact.attempt == call.attempt + 1 and fact.attempt <= limits.attempts
    if call.state is not State.PREPARED or not is_next or call.legs_created:
        return moves.unchanged(call)
    # Still in doubt: a worker died during the attempt before, and its requests may yet take effect.
    begun = replace(
        call,
        attempt=fact.attempt,
        attempt_nonces=_with_nonce(call, fact.nonce),
        earlier_in_doubt_until=call.in_doubt_until,
        attempt_in_doubt_until=fact.in_doubt_until,
        legs_created=False,
        media_ready=False,
        step_retries=0,
        deadline_at=now + limits.attempt_wait(),
    )
    return begun, ()


def _with_nonce(call: Call, nonce: str) -> tuple[str, ...]:
    if not nonce:
        return call.attempt_nonces
    # An earlier release may have begun attempts since the last one with a nonce.
    missing = call.attempt - len(call.attempt_nonces)
    return (*call.attempt_nonces, *[""] * missing, nonce)


def legs_created(call: Call, fact: facts.LegsCreated, now: datetime, limits: Limits) -> Advance:
    if not moves.is_newest(call, fact):
        return call, (_removal(call, fact),)
    created = replace(_outcome_known(call), legs_created=True)
    match call.state:
        case State.PREPARED if _is_between_attempts(call) and not call.media_ready:
            # The attempt was given up: its leg has ended, or its worker is late. The next attempt looks which.
            return _outcome_known(call), ()
        case State.PREPARED if not call.legs_created:
            return _join_when_ready(created, now, limits)
        case State.ENDING if not call.legs_created:
            return created, (commands.TearDown.of(call),)
        case State.ENDED:
            return call, (_removal(call, fact),)
    return moves.unchanged(call)


def legs_found(call: Call, fact: facts.LegsFound, now: datetime, limits: Limits) -> Advance:
    if not moves.is_newest(call, fact) or call.state is not State.PREPARED or not _is_between_attempts(call):
        return moves.unchanged(call)
    found = replace(_outcome_known(call), legs_created=True)
    if fact.is_complete and call.attempt == 1 and call.request_id is None:
        # There was no other attempt, nor an originating request, that may still take effect.
        found = replace(found, earlier_in_doubt_until=None)
    return _join_when_ready(found, now, limits)


def _removal(call: Call, fact: facts.AttemptFact) -> commands.RemoveAttempt:
    return commands.RemoveAttempt(call_id=call.call_id, attempt=fact.attempt, nonce=fact.nonce)


def _join_when_ready(call: Call, now: datetime, limits: Limits) -> Advance:
    """The legs are created: join them, or wait for the media leg."""
    if call.media_ready:
        return moves.join(call, now, limits)
    return replace(call, step_retries=0, deadline_at=now + limits.media_wait()), ()


def _outcome_known(call: Call) -> Call:
    """Both requests of the last attempt were answered. What was asked for before it stays in doubt."""
    return replace(call, attempt_in_doubt_until=None)


def _is_between_attempts(call: Call) -> bool:
    """True if the last attempt of a prepared call is over, and the next one is ordered."""
    return call.attempt_in_doubt_until is None and not call.legs_created


def legs_refused(call: Call, fact: facts.LegsRefused, now: datetime, limits: Limits) -> Advance:
    if not moves.is_newest(call, fact) or call.legs_created:
        return moves.unchanged(call)
    refused = replace(call, attempt_in_doubt_until=None)
    if call.state is State.PREPARED:
        return moves.fail(refused, now, limits, f"media refused: {fact.reason}")
    if call.state is State.ENDING and call.attempt_in_doubt_until is not None:
        return refused, (commands.TearDown.of(call),)
    return moves.unchanged(call)


def legs_unknown(call: Call, fact: facts.LegsUnknown, now: datetime, limits: Limits) -> Advance:
    in_doubt = call.attempt_in_doubt_until is not None
    if call.state is not State.PREPARED or not moves.is_newest(call, fact) or call.legs_created or not in_doubt:
        return moves.unchanged(call)
    return next_attempt(call, now, limits, fact.reason)


def next_attempt(call: Call, now: datetime, limits: Limits, reason: str) -> Advance:
    """No effect of the attempt is known: go on to the next one."""
    if call.attempt >= limits.unknown_attempts:
        return moves.fail(call, now, limits, f"media not created: {reason}")
    return _order_next(call, now, limits, timedelta(), f"media not created: {reason}")


def after_death(call: Call, now: datetime, limits: Limits) -> Advance:
    """The attempt's worker has died: go on to the next one, which looks first for what this one has made.

    Asterisk is not to blame: there may be more of these than of attempts that it did not answer.
    """
    return _order_next(call, now, limits, timedelta(), faults.WORKER_DIED)


def _try_again(call: Call, fact: facts.MediaGone, now: datetime, limits: Limits) -> Advance:
    """The media leg has ended before the voice agent accepted it: try again after a pause, for the agent's sake.

    One that was found gone did not fail because of the agent, and the caller has waited for the look already.

    Asterisk could try again by itself. But while it does, every other request there that creates a channel under an id
    of ours waits (measured).
    """
    if _is_between_attempts(call):
        return moves.unchanged(call)
    pause = timedelta() if fact.is_found else limits.reach_pause(call.attempt)
    is_late = now + pause > call.state_since + limits.reach_wait()
    reason = f"voice agent not reached: {fact.reason}"
    if is_late or call.attempt >= limits.attempts:
        return moves.fail(call, now, limits, reason, tech_cause=fact.tech_cause)
    return _order_next(replace(call, legs_created=False), now, limits, pause, reason)


def _order_next(call: Call, now: datetime, limits: Limits, pause: timedelta, obstacle: str) -> Advance:
    """Order the next attempt, as the last one has met an obstacle. Its ids are new; an id is never used again."""
    # No worker is at work on this attempt any more: from here on the deadline is that of the next attempt's command.
    again = replace(
        call,
        earlier_in_doubt_until=call.in_doubt_until,
        attempt_in_doubt_until=None,
        step_retries=0,
        deadline_at=now + pause + limits.queue_wait(),
        obstacle=obstacle,
    )
    return again, (commands.StartMedia.of(call, pause=pause),)


def media_ready(call: Call, fact: facts.MediaReady, now: datetime, limits: Limits) -> Advance:
    if not moves.is_newest(call, fact) or call.state in (State.ENDING, State.ENDED):
        # A leg of another attempt or of an ended call is removed on sight.
        return call, (_removal(call, fact),)
    if call.media_ready or call.state is not State.PREPARED:
        return moves.unchanged(call)
    ready = replace(call, media_ready=True)
    return moves.join(ready, now, limits) if call.legs_created else (ready, ())


def media_gone(call: Call, fact: facts.MediaGone, now: datetime, limits: Limits) -> Advance:
    if not moves.is_newest(call, fact):
        return moves.unchanged(call)
    match call.state:
        case State.PREPARED if not call.media_ready:
            return _try_again(call, fact, now, limits)
        case State.PREPARED | State.JOINING:
            reason = f"voice agent not reached: {fact.reason}"
            return moves.fail(call, now, limits, reason, tech_cause=fact.tech_cause)
        case State.CONNECTED if call.destination_id is None:
            return _agent_gone(call, fact, now, limits)
    return moves.unchanged(call)


def _agent_gone(call: Call, fact: facts.MediaGone, now: datetime, limits: Limits) -> Advance:
    """End a connected call by how its agent has left it."""
    if fact.is_refusal:
        # The legs were joined in between.
        reason = f"voice agent not reached: {fact.reason}"
        return moves.fail(call, now, limits, reason, Cause.NORMAL, tech_cause=fact.tech_cause)
    if fact.hangup_cause == Cause.NETWORK_OUT_OF_ORDER:
        # Its websocket broke, or brought what is no websocket frame (measured, 22.10). A close frame, whatever its
        # code, and HANGUP have the cause 16.
        reason = f"agent lost: {fact.reason}"
        return moves.fail(call, now, limits, reason, Cause.NORMAL, tech_cause=fact.tech_cause)
    # Of a leg that was only found gone nothing tells how it ended.
    reason = "agent found gone" if fact.is_found else "agent hung up"
    return moves.end(
        call, now, limits, outcome=Outcome.COMPLETED, reason=reason, cause=Cause.NORMAL, tech_cause=fact.tech_cause
    )
