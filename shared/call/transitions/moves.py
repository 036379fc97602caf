"""What the transitions share: entering a state, ending a call, starting a state's step again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from shared.call import commands, facts, faults, steps
from shared.call.calls import Call, replace
from shared.call.commands import Command
from shared.call.limits import Limits
from shared.call.states import Cause, Outcome, State

#: What a fact makes of a call: the call to store, and the commands to enqueue once it is stored.
Advance = tuple[Call, tuple[Command, ...]]


def is_newest(call: Call, fact: facts.AttemptFact) -> bool:
    """True if a fact is about the call's last attempt, and not about another one of that number."""
    return (fact.attempt, fact.nonce) == (call.attempt, call.nonce)


def unchanged(call: Call) -> Advance:
    """The fact does not apply."""
    return call, ()


def enter(call: Call, state: State, now: datetime, wait: timedelta | None, **changes: Any) -> Call:
    """Put the call into a state whose deadline is `wait` from now."""
    deadline_at = None if wait is None else now + wait
    return replace(
        call, state=state, state_since=now, deadline_at=deadline_at, step_retries=0, obstacle=None, **changes
    )


def with_obstacle(call: Call, reason: str) -> str:
    """Return a reason together with what has held the call up until then, if anything has."""
    return f"{reason}: {call.obstacle}" if call.obstacle else reason


def prepare(call: Call, now: datetime, limits: Limits) -> Advance:
    """The run exists: media may start."""
    prepared = enter(call, State.PREPARED, now, limits.queue_wait())
    return prepared, (commands.StartMedia.of(prepared),)


def join(call: Call, now: datetime, limits: Limits) -> Advance:
    """Legs and bridge were created, and the media leg is ready."""
    joining = enter(call, State.JOINING, now, limits.queue_wait())
    return joining, (commands.JoinLegs.of(joining),)


def end(
    call: Call, now: datetime, limits: Limits, *, outcome: Outcome, reason: str, cause: int | None, **changes: Any
) -> Advance:
    """The one way into `ending`. An outcome and a cause that are known already are kept."""
    outcome, reason = call.outcome or outcome, call.reason or reason
    ending = enter(
        call,
        State.ENDING,
        now,
        limits.queue_wait(),
        ending_at=now,
        outcome=outcome,
        reason=reason,
        fault=faults.fault_of(outcome, reason),
        hangup_cause=call.hangup_cause if call.hangup_cause is not None else cause,
        **changes,
    )
    return ending, (commands.TearDown.of(ending),)


def fail(
    call: Call,
    now: datetime,
    limits: Limits,
    reason: str,
    cause: int = Cause.TEMPORARY_FAILURE,
    *,
    tech_cause: int | None = None,
) -> Advance:
    """End the call as failed."""
    return end(
        call, now, limits, outcome=Outcome.FAILED, reason=reason, cause=cause, tech_cause=call.tech_cause or tech_cause
    )


def retry_step(call: Call, now: datetime, limits: Limits) -> Advance:
    """The step of this state was lost: order it again, or give up."""
    # What has kept a worker from it is told; if nothing was, none has done it.
    obstacle = call.obstacle or faults.NOT_DONE
    if call.step_retries >= limits.max_step_retries:
        return fail(call, now, limits, f"{call.state} for too long: {obstacle}", Cause.RECOVERY_ON_TIMER)
    step = steps.step_of(call.state)
    assert step is not None, "only states with a step are retried"
    retries, deadline_at = call.step_retries + 1, now + limits.queue_wait()
    again = replace(call, step_retries=retries, deadline_at=deadline_at, obstacle=obstacle)
    return again, (steps.STEPS[step].command.of(again),)
