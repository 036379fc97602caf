"""The step `originate`: legs that we begin are dialled, followed until they are answered, or end unanswered."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from shared import errors, messages
from shared.asterisk import events
from shared.call import calls, facts, ids
from shared.call.call_requests import CallRequest
from shared.call.calls import Call, State
from shared.call.limits import Step
from shared.call.stasis_args import RunArgs
from workers import claims, inbound, media
from workers.ports import Tools

#: The last Dial event and the end of a leg come together, and may be worked on in any order: the end waits for it.
_STATUS_LOOKS_SECONDS = (0.02, 0.05, 0.1, 0.2)
#: The platform writes under which channel it called only after Asterisk has answered it: looked for again after these.
_RUN_LOOKS_SECONDS = (0.3, 0.6, 2.0, 5.0)


def request_call(tools: Tools, *, request: CallRequest) -> None:
    """A call asked for by message."""
    tools.originates.place(request)


def originate_leg(tools: Tools, *, call_id: UUID) -> None:
    """Asks Asterisk for the leg. Its id derives from the request: asked for twice, the second is answered 409."""
    claim = claims.claim(tools.writer, call_id, Step.ORIGINATE)
    if claim is None:
        return
    with claim:
        try:
            fact = _asked(tools, claim)
        except errors.TransientError as exc:
            claim.give_up(str(exc))
        else:
            claim.record(fact)


def far_end_answered(tools: Tools, *, connection_id: int, version: int, at_ms: int, event: events.Event) -> None:
    """A leg that we begin entered Stasis: the far end has answered, and media may start."""
    call = tools.writer.store.originated(connection_id, event.leg.id)
    if call is None or call.channel_created or (call.state is State.ENDED and not call.caller_left):
        # Told before, back again, or come when its call was long over: the caller's rules tell which.
        inbound.caller_entered(tools, connection_id=connection_id, version=version, at_ms=at_ms, event=event)
        return
    fact = answered(event.leg, event.stamp)
    if media.may_begin(tools, call):
        _, claim = claims.take(tools.writer, call, Step.MEDIA, fact, media.begun(tools))
        media.carry_out(tools, claim)
    else:
        tools.writer.record(call, fact)


def dial_ended(tools: Tools, *, connection_id: int, version: int, event: events.Event) -> None:
    """The dialling of a leg came out: busy, not answered, …"""
    if not ids.is_originated(tools.prefix, event.leg.id):
        unknown_unanswered(tools, connection_id=connection_id, version=version, event=event)
        return
    call = tools.writer.store.originated(connection_id, event.leg.id)
    if call is not None:
        tools.writer.record(call, facts.Dialled(status=event.dial_status))


def unknown_unanswered(tools: Tools, *, connection_id: int, version: int, event: events.Event) -> None:
    """A leg that no call of ours knows came to nothing (Dial, ChannelDestroyed): perhaps one the platform has begun.

    What does not tell how it came out waits for what does.
    """
    if inbound.is_no_caller(event.leg) or event.leg.name.endswith(";2"):
        # The far half of a Local channel is nobody's call.
        return
    look = leg_unanswered if calls.is_conclusive(event.dial_status or None, event.cause) else _look_later
    look(tools, connection_id=connection_id, version=version, event=event, looks=0)


def leg_unanswered(tools: Tools, *, connection_id: int, version: int, event: events.Event, looks: int) -> None:
    """Ends the run that waits for such a leg.

    Args:
        looks: How often it was looked for before.
    """
    if not inbound.record_unanswered(tools, connection_id=connection_id, version=version, event=event):
        _look_later(tools, connection_id=connection_id, version=version, event=event, looks=looks)


def _look_later(tools: Tools, *, connection_id: int, version: int, event: events.Event, looks: int) -> None:
    if looks < len(_RUN_LOOKS_SECONDS):
        again = messages.of_unanswered(event, connection_id=connection_id, connection_version=version, looks=looks + 1)
        tools.send_later(again, timedelta(seconds=_RUN_LOOKS_SECONDS[looks]))


def answered(leg: events.Channel, stamp: str) -> facts.FarEndAnswered:
    """The fact that a leg of ours is in Stasis. The stamp is empty when a resync found it."""
    return facts.FarEndAnswered(channel_name=leg.name, channel_created=leg.created, stamp=stamp or None)


def with_dial_status(tools: Tools, call: Call) -> Call:
    """The call of a leg that ended unanswered, once how its dialling came out is known, or nobody tells."""
    for pause_seconds in _STATUS_LOOKS_SECONDS:
        if call.state not in calls.DIALLING or call.dial_status is not None:
            break
        tools.writer.clock.sleep(pause_seconds)
        call = tools.writer.store.load(call.call_id) or call
    return call


def _asked(tools: Tools, claim: claims.Claim) -> facts.Fact:
    call = claim.call
    assert call.dial_endpoint is not None
    assert call.workflow_run_id is not None
    assert call.workflow_id is not None
    args = RunArgs(workflow_run_id=call.workflow_run_id, workflow_id=call.workflow_id, user_id=call.user_id)
    asterisk = tools.asterisks.of(call, claim)
    if call.step_retries and asterisk.channel(call.channel_id) is not None:
        # Asked for before, by a worker that did not report back.
        return facts.Originated()
    assert call.user_id is not None
    refusal = tools.quota.refusal(call, user_id=call.user_id, budget=claim)
    if refusal is not None:
        return refusal
    try:
        asterisk.originate(
            call.channel_id,
            endpoint=call.dial_endpoint,
            args=str(args),
            caller_id=call.caller_number if call.caller_number != calls.UNKNOWN_NUMBER else None,
            ring_seconds=call.ring_seconds or tools.writer.limits.ring_seconds,
        )
    except errors.PermanentError as exc:
        return facts.OriginateRefused(reason=str(exc))
    return facts.Originated()
