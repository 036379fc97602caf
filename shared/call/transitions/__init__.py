"""What a fact makes of a call. The table at the end is the list of contents: one handler for each fact.

`advance` is pure and total: any fact in any state, any number of times. A fact that does not apply leaves the call
unchanged and orders nothing. Facts that may arrive in any order (legs created, media ready) are recorded on the call
and are no states; the one stored last orders the join.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from shared.call import commands, facts
from shared.call.calls import Call, replace
from shared.call.commands import Command
from shared.call.limits import Limits
from shared.call.states import State
from shared.call.transitions import admitting, caller_leg, deadlines, joining, media_leg, originated_leg
from shared.call.transitions.moves import Advance

_Handler = Callable[[Call, Any, datetime, Limits], Advance]


def receive(call: Call, limits: Limits) -> Call:
    """Give a call whose leg entered Stasis its first deadline."""
    return replace(call, state=State.RECEIVED, deadline_at=call.received_at + limits.queue_wait())


def originate(call: Call, limits: Limits) -> tuple[Call, Command]:
    """Give a call that the product starts its first deadline and its first command."""
    begun = replace(call, state=State.ORIGINATING, deadline_at=call.received_at + limits.queue_wait())
    return begun, commands.OriginateLeg.of(begun)


def advance(call: Call, fact: facts.Fact, now: datetime, limits: Limits) -> Advance:
    """Return what becomes of a call when something happened to it.

    Args:
        call: As last read from the store.
        fact: What happened.
        now: Postgres's clock.
        limits: The bounds to live under.

    Returns:
        The call to store, and the commands to enqueue once it is stored. The very same call and no command when the
        fact no longer applies.
    """
    return _HANDLERS[type(fact)](call, fact, now, limits)


_HANDLERS: dict[type[facts.Fact], _Handler] = {
    facts.Admitted: admitting.admitted,
    facts.RunAttached: admitting.run_attached,
    facts.Refused: admitting.refused,
    facts.RunCreated: admitting.run_created,
    facts.AttemptBegun: media_leg.attempt_begun,
    facts.LegsCreated: media_leg.legs_created,
    facts.LegsFound: media_leg.legs_found,
    facts.LegsRefused: media_leg.legs_refused,
    facts.LegsUnknown: media_leg.legs_unknown,
    facts.MediaReady: media_leg.media_ready,
    facts.MediaGone: media_leg.media_gone,
    facts.Joined: joining.joined,
    facts.JoinRefused: joining.join_refused,
    facts.BridgeLost: joining.bridge_lost,
    facts.Transferred: joining.transferred,
    facts.DestinationGone: joining.destination_gone,
    facts.LegReplaced: caller_leg.leg_replaced,
    facts.CallerHangingUp: caller_leg.caller_hanging_up,
    facts.CallerLeft: caller_leg.caller_left,
    facts.CallerGone: caller_leg.caller_gone,
    facts.DialBegun: originated_leg.dial_begun,
    facts.DialUnsent: originated_leg.dial_unsent,
    facts.DialLost: originated_leg.dial_lost,
    facts.Originated: originated_leg.originated,
    facts.Dialled: originated_leg.dialled,
    facts.FarEndAnswered: originated_leg.far_end_answered,
    facts.OriginateRefused: originated_leg.originate_refused,
    facts.EndRequested: deadlines.end_requested,
    facts.Hindered: deadlines.hindered,
    facts.DeadlinePassed: deadlines.deadline_passed,
    facts.WorkerDied: deadlines.worker_died,
    facts.LegsRemoved: deadlines.legs_removed,
    facts.RemovalPending: deadlines.removal_pending,
    facts.CallerFound: deadlines.caller_found,
}
