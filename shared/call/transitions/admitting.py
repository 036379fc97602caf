"""Admission and run: what admitting, refusing, attaching a run or creating one makes of a call."""

from __future__ import annotations

from datetime import datetime

from shared.call import commands, facts
from shared.call.calls import Call, replace
from shared.call.limits import Limits
from shared.call.states import Outcome, State
from shared.call.transitions import moves
from shared.call.transitions.moves import Advance


def admitted(call: Call, fact: facts.Admitted, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.RECEIVED:
        return moves.unchanged(call)
    admitted = moves.enter(
        call,
        State.ADMITTED,
        now,
        limits.queue_wait(),
        workflow_id=fact.workflow_id,
        user_id=fact.user_id,
        media_client=fact.media_client,
        call_seconds=fact.call_seconds,
        workflow_run_id=fact.workflow_run_id,
    )
    return admitted, (commands.CreateRun.of(call),)


def run_attached(call: Call, fact: facts.RunAttached, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.RECEIVED:
        return moves.unchanged(call)
    attached = replace(
        call,
        workflow_id=fact.workflow_id,
        user_id=fact.user_id,
        media_client=fact.media_client,
        call_seconds=fact.call_seconds,
        workflow_run_id=fact.workflow_run_id,
        caller_number=fact.caller_number or call.caller_number,
        called_number=fact.called_number or call.called_number,
    )
    return moves.prepare(attached, now, limits)


def refused(call: Call, fact: facts.Refused, now: datetime, limits: Limits) -> Advance:
    if call.state not in (State.RECEIVED, State.ADMITTED, State.ORIGINATING):
        return moves.unchanged(call)
    refused = replace(call, continue_in_dialplan=fact.continue_in_dialplan)
    # If nothing was dialled, no leg will appear: there is nothing to wait for, and the next teardown frees the slot.
    never_dialled = call.state is State.ORIGINATING and not call.is_dial_begun
    no_leg = {"caller_left": True} if never_dialled else {}
    return moves.end(
        refused, now, limits, outcome=Outcome.REFUSED, reason=fact.reason, cause=fact.hangup_cause, **no_leg
    )


def run_created(call: Call, fact: facts.RunCreated, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.ADMITTED:
        return moves.unchanged(call)
    return moves.prepare(replace(call, workflow_run_id=fact.workflow_run_id), now, limits)
