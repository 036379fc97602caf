"""The actors: each reads its message and calls one function of its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq

from shared import errors, messages
from shared.asterisk import events
from shared.call.call_requests import CallRequest
from workers import bridge, inbound, media, outbound, resync, runs, teardown
from workers.ports import Tools

_Body = dict[str, Any]
_Read = Callable[[_Body], dict[str, Any]]
_Step = Callable[..., None]


#: How long a message is tried after it first failed. The sweep gives an order again when its deadline has passed; an
#: event that is lost is found by the next resync only.
_ORDER_MS = 5_000
_EVENT_MS = 20_000


def _call(body: _Body) -> dict[str, Any]:
    return {"call_id": messages.call_id(body["call_id"])}


def _attempt(body: _Body) -> dict[str, Any]:
    return {**_call(body), "attempt": int(body["attempt"])}


def _connection(body: _Body) -> dict[str, Any]:
    return {"connection_id": int(body["connection_id"]), "version": int(body["connection_version"])}


def _event(body: _Body) -> dict[str, Any]:
    return {**_connection(body), "event": events.decode(body["event"])}


def _arrival(body: _Body) -> dict[str, Any]:
    return {**_event(body), "at_ms": int(body["at_ms"])}


def _looks(body: _Body) -> dict[str, Any]:
    return {**_event(body), "looks": int(body["looks"])}


def _request(body: _Body) -> dict[str, Any]:
    request = CallRequest(**{key: value for key, value in body.items() if key != "v"})
    texts = (request.number, request.request_id, request.caller_id or "")
    numbers = (request.organization_id, request.workflow_id or 0, request.workflow_run_id or 0)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a text or a number of it is of another type")
    return {"request": request}


def _resync(body: _Body) -> dict[str, Any]:
    return {**_connection(body), "full": bool(body["full"]), "reason": str(body["reason"])}


#: Actor → how its message is read, and the function of its step.
ACTORS: dict[str, tuple[_Read, _Step]] = {
    "caller_entered": (_arrival, inbound.caller_entered),
    "decide_admission": (_call, inbound.decide_admission),
    "create_run": (_call, runs.create_run),
    "start_media": (_attempt, media.start_media),
    "media_leg_ready": (_event, bridge.media_leg_ready),
    "check_media": (_attempt, bridge.check_media),
    "join_legs": (_attempt, bridge.join_legs),
    "leg_ended": (_event, teardown.leg_ended),
    "tear_down": (_call, teardown.tear_down),
    "remove_attempt": (_attempt, media.remove_attempt),
    "request_call": (_request, outbound.request_call),
    "originate_leg": (_call, outbound.originate_leg),
    "far_end_answered": (_arrival, outbound.far_end_answered),
    "dial_ended": (_event, outbound.dial_ended),
    "leg_unanswered": (_looks, outbound.leg_unanswered),
    "resync_connection": (_resync, resync.resync_connection),
}


def declare(broker: dramatiq.Broker, tools: Tools) -> None:
    """Makes the actors known to the broker."""
    for name, (read, step) in ACTORS.items():
        act = _act(tools, name, read, step)
        queue = messages.ACTORS[name]
        dramatiq.actor(
            actor_name=name,
            queue_name=queue,
            broker=broker,
            throws=errors.PermanentError,
            retry_for_ms=_ORDER_MS if read in (_call, _attempt) else _EVENT_MS,
        )(act)


def _act(tools: Tools, name: str, read: _Read, step: _Step) -> Callable[..., None]:
    def act(**body: Any) -> None:
        messages.check_version(body.get("v"))
        try:
            arguments = read(body)
        except (KeyError, TypeError, ValueError) as exc:
            raise errors.InvalidMessage(f"{name}: unreadable message: {exc!r}") from exc
        step(tools, **arguments)

    return act
