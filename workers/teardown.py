"""The step `teardown`: ends the run, removes both legs and the bridge of every attempt, verifies that they are gone.

Works from the call's row alone, at any moment of the set-up.
"""

from __future__ import annotations

from uuid import UUID

from shared import errors
from shared.asterisk import ari, events
from shared.call import calls, facts, ids, stasis_entry
from shared.call.calls import Call
from shared.call.limits import Step
from workers import bridge, claims, inbound, outbound
from workers.ports import Tools

#: A channel told to hang up takes a moment to go (measured: a few ms, about 1 s while its media still connects).
_LOOKS = (0.0, 0.05, 0.2, 0.5, 1.0)


def leg_ended(tools: Tools, *, connection_id: int, version: int, event: events.Event) -> None:
    """A leg left Stasis, is being hung up, or is gone."""
    own = ids.parse(tools.prefix, event.leg.id)
    if own is not None:
        _media_ended(tools, connection_id, own, event)
        return
    call = _call_of(tools, connection_id, event)
    if call is None:
        call = _unknown_ended(tools, connection_id=connection_id, version=version, event=event)
    if call is None or _is_of_an_earlier_entry(tools, call, event):
        return
    _, claim = claims.take(tools.writer, call, Step.TEARDOWN, _caller_fact(event))
    if claim is not None:
        with claim:
            _tear_down(tools, claim)


def _call_of(tools: Tools, connection_id: int, event: events.Event) -> Call | None:
    call = tools.writer.store.last_entry(connection_id, event.leg.id, event.leg.created)
    if call is None and ids.is_originated(tools.prefix, event.leg.id):
        call = tools.writer.store.originated(connection_id, event.leg.id)
        if call is not None and event.type is events.EventType.CHANNEL_DESTROYED:
            call = outbound.with_dial_status(tools, call)
    return call


def _unknown_ended(tools: Tools, *, connection_id: int, version: int, event: events.Event) -> Call | None:
    """A leg we never heard of is gone: a caller who left before being picked up, or one the platform dialled in vain.

    Returns:
        The call, when one turned up in between.
    """
    if inbound.is_no_caller(event.leg) or ids.is_originated(tools.prefix, event.leg.id):
        return None
    if event.type is events.EventType.STASIS_END:
        return inbound.record_abandoned(tools, connection_id=connection_id, version=version, event=event)
    if event.type is events.EventType.CHANNEL_DESTROYED:
        outbound.unknown_unanswered(tools, connection_id=connection_id, version=version, event=event)
    return None


def tear_down(tools: Tools, *, call_id: UUID) -> None:
    """The teardown as ordered: after a refusal, a failure, a deadline; and once more when one was lost."""
    claim = claims.claim(tools.writer, call_id, Step.TEARDOWN)
    if claim is not None:
        with claim:
            _tear_down(tools, claim)


def _media_ended(tools: Tools, connection_id: int, own: ids.OwnId, event: events.Event) -> None:
    if own.kind is not ids.Kind.MEDIA or event.type is events.EventType.CHANNEL_HANGUP_REQUEST:
        return
    call = bridge.own_call(tools, connection_id, own.call_id, event.leg.id)
    if call is None:
        return
    reason = f"media leg ended, cause {event.cause} {event.cause_text}".strip() if event.cause else "media leg ended"
    fact = facts.MediaGone(attempt=own.attempt, hangup_cause=event.cause, reason=reason)
    _, claim = claims.take(tools.writer, call, Step.TEARDOWN, fact)
    if claim is not None:
        with claim:
            _tear_down(tools, claim)


def _is_of_an_earlier_entry(tools: Tools, call: Call, event: events.Event) -> bool:
    """Whether the event is about an entry before this one: the channel came back into Stasis since."""
    entered = call.entered_stamp
    is_unclear = entered is None or entered == event.stamp
    if is_unclear and event.type is events.EventType.STASIS_END and call.state is not calls.State.ENDED:
        # A resync found the leg in Stasis and nobody knows since when, or it came back within a millisecond: only
        # Asterisk can tell.
        return inbound.is_in_stasis(tools, call.connection_id, call.connection_version, event.leg)
    return entered is not None and bool(event.stamp) and stasis_entry.later(entered, event.stamp)


def _caller_fact(event: events.Event) -> facts.Fact:
    match event.type:
        case events.EventType.STASIS_END:
            return facts.CallerLeft(stamp=event.stamp or None)
        case events.EventType.CHANNEL_DESTROYED:
            return facts.CallerGone(hangup_cause=event.cause)
        case _:
            return facts.CallerHangingUp(hangup_cause=event.cause)


def _tear_down(tools: Tools, claim: claims.Claim) -> None:
    call = claim.call
    # The run ends without waiting for an Asterisk, and the legs go without waiting for the run: the platform may hold
    # its row just now.
    left = [_end_run(tools, call)]
    try:
        left.append(_remove_all(tools, tools.asterisks.of(call, claim), claim))
    except errors.PipelineError as exc:
        left.append(str(exc))
    if reason := "; ".join(text for text in left if text):
        claim.record(facts.RemovalPending(reason=reason))
    elif call.in_doubt_until is not None and tools.writer.store.now() < call.in_doubt_until:
        reason = "a request whose outcome is unknown may still take effect"
        claim.record(facts.RemovalPending(reason=reason, not_before=call.in_doubt_until))
    else:
        claim.record(facts.LegsRemoved())


def _end_run(tools: Tools, call: Call) -> str:
    """Ends the run; says why it could not."""
    try:
        tools.runs.end(call, media_id=tools.media_id(call), bridge_id=tools.bridge_id(call))
    except errors.PipelineError as exc:
        return f"the run is not ended: {exc}"
    return ""


def _remove_all(tools: Tools, asterisk: ari.Ari, claim: claims.Claim) -> str:
    """Removes everything the call may have left; says what could not be verified gone."""
    call = claim.call
    asks = []
    for attempt in range(1, call.attempt + 1):
        media_id, bridge_id = tools.media_id(call, attempt), tools.bridge_id(call, attempt)
        asks += [_Removal(asterisk, media_id, claim), _BridgeRemoval(asterisk, bridge_id)]
    if not call.caller_left:
        asks.append(_removal_of_caller(asterisk, call, claim))
    if not asks:
        return ""
    failures = [result for result in tools.in_parallel(*asks) if isinstance(result, errors.PipelineError)]
    return "; ".join(str(failure) for failure in failures)


def _removal_of_caller(asterisk: ari.Ari, call: Call, claim: claims.Claim) -> _Removal:
    if call.is_unanswered:
        return _Removal(asterisk, call.channel_id, claim, call.hangup_cause)
    return (
        _ContinueInDialplan(asterisk, call, claim)
        if call.continue_in_dialplan
        else _CallerRemoval(asterisk, call, claim)
    )


class _Removal:
    """Hangs a channel up and sees it gone. Raises a PipelineError when it is not."""

    def __init__(self, asterisk: ari.Ari, channel_id: str, claim: claims.Claim, cause: int | None = None) -> None:
        self._asterisk = asterisk
        self._channel_id = channel_id
        self._claim = claim
        self._cause = cause

    def __call__(self) -> None:
        if not self._asterisk.hang_up(self._channel_id, self._cause):
            return
        for pause in _LOOKS:
            self._claim.pause(pause)
            if self._asterisk.channel(self._channel_id) is None:
                return
        raise errors.TransientError(f"channel {self._channel_id} was hung up and is still there")


class _CallerRemoval(_Removal):
    """Hangs the caller up, if its leg is still in our app: anywhere else it is not ours to touch."""

    def __init__(self, asterisk: ari.Ari, call: Call, claim: claims.Claim) -> None:
        super().__init__(asterisk, call.channel_id, claim, call.hangup_cause)
        self._call = call

    def __call__(self) -> None:
        if self._is_ours():
            super().__call__()

    def _is_ours(self) -> bool:
        leg = self._asterisk.channel(self._channel_id)
        return leg is not None and leg.created == self._call.channel_created and leg.stasis_app == self._asterisk.app


class _ContinueInDialplan(_CallerRemoval):
    """Lets a refused caller go on in the dialplan behind Stasis, told why; sees it gone from our app."""

    def __call__(self) -> None:
        if not self._is_ours():
            return
        told = {
            "AIP_OUTCOME": self._call.outcome,
            "AIP_REASON": self._call.reason,
            "AIP_CAUSE": self._call.hangup_cause,
        }
        for name, value in told.items():
            self._asterisk.set_variable(self._channel_id, name, str(value))
        self._asterisk.continue_in_dialplan(self._channel_id)
        for pause in _LOOKS:
            self._claim.pause(pause)
            if not self._is_ours():
                return
        raise errors.TransientError(f"channel {self._channel_id} was sent on and is still in our app")


class _BridgeRemoval:
    """Removes a bridge; its answer is proof."""

    def __init__(self, asterisk: ari.Ari, bridge_id: str) -> None:
        self._asterisk = asterisk
        self._bridge_id = bridge_id

    def __call__(self) -> None:
        self._asterisk.remove_bridge(self._bridge_id)
