"""The step `bridge`: the media leg is ready, so the caller is answered and both legs are joined, side by side."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import structlog

from shared import errors
from shared.asterisk import ari, events
from shared.call import calls, facts, ids
from shared.call.calls import Call
from shared.call.limits import Step
from shared.storage.call_store import TimelineEntry
from workers import claims
from workers.ports import Tools

log = structlog.stdlib.get_logger(__name__)


def media_leg_ready(tools: Tools, *, connection_id: int, version: int, event: events.Event) -> None:
    """A leg with one of our ids entered Stasis, on whichever version of its connection."""
    del version
    own = ids.parse(tools.prefix, event.leg.id)
    if own is None or own.kind is not ids.Kind.MEDIA:
        return
    call = own_call(tools, connection_id, own.call_id, event.leg.id)
    if call is not None:
        _ready(tools, call, own.attempt)


def check_media(tools: Tools, *, call_id: UUID, attempt: int) -> None:
    """The media leg's StasisStart is overdue: asks whether the leg is ready, still connecting, or gone."""
    call = tools.writer.store.load(call_id)
    if call is None or call.state is not calls.State.PREPARED or call.attempt != attempt or not call.legs_created:
        return
    budget = claims.TimedBudget(tools.writer, tools.writer.limits.request_seconds)
    asterisk = tools.asterisks.of(call, budget)
    try:
        leg = asterisk.channel(tools.media_id(call))
    except errors.AsteriskUnreachable as exc:
        # The deadline asks again, and ends the call when that is of no use.
        log.info("media not checked", call=str(call_id), reason=str(exc))
        return
    finally:
        tools.writer.store.append_timeline(budget.timeline(), call=call)
    if leg is None:
        tools.writer.record(call, facts.MediaGone(attempt=attempt, reason="media leg is gone", reported_by_event=False))
    elif leg.stasis_app == asterisk.app:
        _ready(tools, call, attempt)


def join_legs(tools: Tools, *, call_id: UUID, attempt: int) -> None:
    """The join once more, for a call whose first one was lost: looks before it repeats anything."""
    claim = claims.claim(tools.writer, call_id, Step.BRIDGE)
    if claim is None:
        return
    if claim.call.attempt == attempt:
        with claim:
            _join(tools, claim, look_first=True)
    else:
        claim.give_up(f"ordered for attempt {attempt}, the call is at {claim.call.attempt}")


def own_call(tools: Tools, connection_id: int, call_id: UUID, leg_id: str) -> Call | None:
    """The call one of our ids names, if it came in by this connection; a foreign one is refused and recorded.

    Whoever owns a PBX can create a channel named like another tenant's media leg.
    """
    call = tools.writer.store.load(call_id)
    if call is None or call.connection_id == connection_id:
        return call
    detail = f"connection {connection_id} reported leg {leg_id}, which is of another connection's call"
    log.warning("a leg id of another tenant was refused", connection=connection_id, leg=leg_id)
    tools.writer.store.append_timeline(
        [TimelineEntry(kind="refusal", name="ForeignLeg", detail=detail)], connection_id=connection_id
    )
    return None


def _ready(tools: Tools, call: Call, attempt: int) -> None:
    _, claim = claims.take(tools.writer, call, Step.BRIDGE, facts.MediaReady(attempt=attempt))
    carry_out(tools, claim)


def carry_out(tools: Tools, claim: claims.Claim | None) -> None:
    """Joins the legs of a call that was just taken for it."""
    if claim is not None:
        with claim:
            _join(tools, claim, look_first=False)


def _join(tools: Tools, claim: claims.Claim, *, look_first: bool) -> None:
    call = claim.call
    asterisk = tools.asterisks.of(call, claim)
    try:
        fact = _joined(tools, asterisk, call, look_first=look_first)
    except errors.TransientError as exc:
        claim.give_up(str(exc))
        return
    after = claim.record(fact)
    if after.state is calls.State.CONNECTED:
        tools.runs.note_media(after, media_id=tools.media_id(after), bridge_id=tools.bridge_id(after))


def _joined(tools: Tools, asterisk: ari.Ari, call: Call, *, look_first: bool) -> facts.Fact:
    bridge_id, legs = tools.bridge_id(call), [call.channel_id, tools.media_id(call)]
    missing = legs
    if look_first:
        bridge = asterisk.bridge(bridge_id)
        if bridge is None:
            return facts.JoinRefused(attempt=call.attempt, reason="the bridge is gone")
        # A leg that is in already would leave and come back, which is heard.
        missing = [leg for leg in legs if leg not in bridge.channels]
    asks: list[Callable[[], object]] = [lambda: asterisk.answer(call.channel_id)]
    if missing:
        asks.append(lambda: asterisk.add_legs(bridge_id, missing))
    for result in tools.in_parallel(*asks):
        if isinstance(result, errors.TransientError):
            raise result
        if isinstance(result, errors.PermanentError):
            return _why_not(tools, asterisk, call, str(result))
        if result is False:
            return facts.CallerGone()
    return _verified(tools, asterisk, call)


def _verified(tools: Tools, asterisk: ari.Ari, call: Call) -> facts.Fact:
    """Success of both requests is not yet both legs in the bridge: one may have left in between."""
    bridge = asterisk.bridge(tools.bridge_id(call))
    if bridge is not None and bridge.channels >= {call.channel_id, tools.media_id(call)}:
        return facts.Joined(attempt=call.attempt)
    return _why_not(tools, asterisk, call, "a leg is not in the bridge")


def _why_not(tools: Tools, asterisk: ari.Ari, call: Call, said: str) -> facts.Fact:
    """Whose fault it was, by what is still there."""
    caller = asterisk.channel(call.channel_id)
    if caller is None:
        return facts.CallerGone()
    if caller.stasis_app != asterisk.app:
        return facts.CallerLeft()
    if asterisk.channel(tools.media_id(call)) is None:
        return facts.MediaGone(attempt=call.attempt, reason="media leg ended while being joined")
    return facts.JoinRefused(attempt=call.attempt, reason=said)
