"""The step `media`: asks for the media leg and the bridge, side by side, under ids never used before."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from shared import errors, messages
from shared.asterisk import ari, events
from shared.call import calls, commands, facts
from shared.call.calls import Call
from shared.call.limits import Step
from shared.platform.dograh import media_url
from shared.storage.call_writer import UnitOfWork
from workers import bridge, claims
from workers.ports import Tools

log = structlog.stdlib.get_logger(__name__)

#: Bounds the look at an attempt of unknown outcome, before the next one begins.
_LOOK_SECONDS = 2.0
#: Until an Asterisk that is left alone is tried again for a call that waits.
_PUT_OFF_SECONDS = 0.5


def start_media(tools: Tools, *, call_id: UUID, attempt: int) -> None:
    """Begins an attempt, unless it was begun before: whoever did it may have asked, and nobody may ask twice."""
    call = tools.writer.store.load(call_id)
    if call is None or call.state is not calls.State.PREPARED or attempt != call.attempt + 1:
        return
    try:
        _ensure_answering(tools, call)
    except errors.AsteriskUnreachable as exc:
        _put_off(tools, call, attempt, str(exc))
        return
    if attempt > 1 and _is_whole(tools, call):
        # The attempt before had its effect; only the answer, or the worker that waited for it, was lost.
        tools.writer.record(call, facts.LegsCreated(attempt=call.attempt))
        return
    recorded, claim = claims.take(tools.writer, call, Step.MEDIA, begun(tools, attempt))
    if recorded.applied:
        carry_out(tools, claim)


def may_begin(tools: Tools, call: Call) -> bool:
    """Whether the first attempt may begin with what leads to it.

    These threads must serve the step, and the Asterisk must not be one that has to show first that it answers.
    """
    if Step.MEDIA not in tools.serves:
        return False
    budget = claims.TimedBudget(tools.writer, tools.writer.limits.request_seconds)
    try:
        return not tools.asterisks.of(call, budget).must_probe
    except errors.PipelineError:
        return False


def decide_and_begin(tools: Tools, claim: claims.Claim, decide: Callable[[UnitOfWork], None]) -> None:
    """Stores what `decide` comes to; where that leads to media, the first attempt begins with it and is carried out."""
    begins = may_begin(tools, claim.call)

    def with_attempt(decision: UnitOfWork) -> None:
        decide(decision)
        if begins and decision.call.state is calls.State.PREPARED:
            decision.learn(begun(tools))

    carry_out(tools, claim.decide(with_attempt, Step.MEDIA if begins else None))


def carry_out(tools: Tools, claim: claims.Claim | None) -> None:
    """Asks for what an attempt that was just begun needs; joins the legs, should the media leg be ready by then."""
    if claim is None:
        return
    with claim:
        asterisk = tools.asterisks.of(claim.call, claim)
        if claim.call.attempt > 1:
            remove(tools, asterisk, claim.call, claim.call.attempt - 1)
        bridge.carry_out(tools, claim.hand_over(_ask(tools, asterisk, claim.call), Step.BRIDGE))


def begun(tools: Tools, attempt: int = 1) -> facts.AttemptBegun:
    """An attempt that begins now."""
    limits = tools.writer.limits
    wait = limits.claim(Step.MEDIA).total_seconds() + limits.request_seconds
    return facts.AttemptBegun(attempt=attempt, in_doubt_until=_after(tools, wait))


def _ensure_answering(tools: Tools, call: Call) -> None:
    """Raises AsteriskUnreachable when it is left alone; one that was until now is asked for the caller first.

    Raises PermanentError when it is not known. Neither costs the call an attempt.
    """
    budget = claims.TimedBudget(tools.writer, tools.writer.limits.request_seconds)
    asterisk = tools.asterisks.of(call, budget)
    if asterisk.must_probe:
        try:
            asterisk.channel(call.channel_id)
        finally:
            tools.writer.store.append_timeline(budget.timeline(), call=call)


def _put_off(tools: Tools, call: Call, attempt: int, reason: str) -> None:
    """Gives the order again in a moment, unless the sweep is to do that by then: so there is one, and not for ever."""
    log.info("media put off", call=str(call.call_id), reason=reason)
    if call.deadline_at is not None and _after(tools, _PUT_OFF_SECONDS) < call.deadline_at:
        order = commands.StartMedia(call_id=call.call_id, attempt=attempt)
        message = messages.of_command(order, connection_id=call.connection_id)
        tools.send_later(message, timedelta(seconds=_PUT_OFF_SECONDS))


def _is_whole(tools: Tools, call: Call) -> bool:
    """Whether both the leg and the bridge of the call's newest attempt are there; False when nobody can tell.

    A bridge that is missing beside its leg is made now: the agent is on the line, and would take no second leg for the
    run. Of a bridge, unlike a leg, asking twice is answered (409).
    """
    budget = claims.TimedBudget(tools.writer, _LOOK_SECONDS)
    asterisk = tools.asterisks.of(call, budget)
    media_id, bridge_id = tools.media_id(call), tools.bridge_id(call)
    leg, bridge = tools.in_parallel(lambda: asterisk.channel(media_id), lambda: asterisk.bridge(bridge_id))
    if isinstance(leg, events.Channel) and bridge is None:
        (failure,) = tools.in_parallel(lambda: asterisk.create_bridge(bridge_id))
        bridge = ari.Bridge(id=bridge_id, channels=frozenset()) if failure is None else failure
    tools.writer.store.append_timeline(budget.timeline(), call=call)
    return isinstance(leg, events.Channel) and isinstance(bridge, ari.Bridge)


def remove_attempt(tools: Tools, *, call_id: UUID, attempt: int) -> None:
    """Removes what an attempt that no longer counts has left."""
    call = tools.writer.store.load(call_id)
    if call is None:
        return
    budget = claims.TimedBudget(tools.writer, 2 * tools.writer.limits.request_seconds)
    try:
        # What is not removed now is found by the call's teardown, or by the resync.
        remove(tools, tools.asterisks.of(call, budget), call, attempt)
    finally:
        tools.writer.store.append_timeline(budget.timeline(), call=call)


def remove(tools: Tools, asterisk: ari.Ari, call: Call, attempt: int) -> list[object]:
    """Hangs up an attempt's media leg and removes its bridge; gives each one's result or error."""
    media_id, bridge_id = tools.media_id(call, attempt), tools.bridge_id(call, attempt)
    return tools.in_parallel(lambda: asterisk.hang_up(media_id), lambda: asterisk.remove_bridge(bridge_id))


def _ask(tools: Tools, asterisk: ari.Ari, call: Call) -> facts.Fact:
    media_id, bridge_id = tools.media_id(call), tools.bridge_id(call)
    client, parameters = call.media_client or "", _parameters(tools, call)
    results = tools.in_parallel(
        lambda: asterisk.create_media(media_id, client=client, parameters=parameters),
        lambda: asterisk.create_bridge(bridge_id),
    )
    failures = [result for result in results if isinstance(result, errors.PipelineError)]
    refusals = [failure for failure in failures if isinstance(failure, errors.PermanentError)]
    unknown = [failure for failure in failures if failure not in refusals]
    # A refusal settles nothing while the other request may yet take effect.
    if unknown:
        return facts.LegsUnknown(attempt=call.attempt, reason=str(unknown[0]))
    if refusals:
        return facts.LegsRefused(attempt=call.attempt, reason=_explained(refusals[0], client))
    return facts.LegsCreated(attempt=call.attempt)


def _explained(refusal: errors.PermanentError, client: str) -> str:
    if isinstance(refusal, errors.AsteriskRefused) and refusal.status == 400:
        return f"{refusal} (is the websocket client {client!r} in websocket_client.conf?)"
    return str(refusal)


def _parameters(tools: Tools, call: Call) -> dict[str, str]:
    """The query of the media URL, as the platform's endpoint reads it."""
    assert call.workflow_id is not None
    assert call.user_id is not None
    assert call.workflow_run_id is not None
    whose = {"workflow_id": call.workflow_id, "user_id": call.user_id, "workflow_run_id": call.workflow_run_id}
    parameters = {name: str(value) for name, value in whose.items()}
    if tools.token_secret is not None:
        parameters["token"] = media_url.token(tools.token_secret, **whose)
    return parameters


def _after(tools: Tools, seconds: float) -> datetime:
    return tools.writer.store.now() + timedelta(seconds=seconds)
