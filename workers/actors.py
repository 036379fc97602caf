"""The actors: each reads its message and calls one handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dramatiq

from shared import errors, messages, ongoing
from shared.call import steps
from shared.call.call_requests import CallRequest
from shared.call.commands import AttemptCommand
from shared.call.ids import ConnectionVersion
from workers.step_ports import Handler

_Body = dict[str, Any]
_Read = Callable[[_Body], dict[str, Any]]

#: How long a message is retried after it first failed. The sweep repeats a command once its deadline has passed; a lost
#: event is found by the next resync only.
_COMMAND_MS = 5_000
_EVENT_MS = 20_000


def _call(body: _Body) -> dict[str, Any]:
    return {"call_id": messages.call_id(body["call_id"])}


def _attempt(body: _Body) -> dict[str, Any]:
    return {**_call(body), "attempt": int(body["attempt"])}


def _removal(body: _Body) -> dict[str, Any]:
    return {**_attempt(body), "nonce": str(body.get("nonce", ""))}


def _connection(body: _Body) -> dict[str, Any]:
    return {"connection": ConnectionVersion(int(body["connection_id"]), int(body["connection_version"]))}


def _event(body: _Body) -> dict[str, Any]:
    return {**_connection(body), "event": messages.event(body)}


def _arrival(body: _Body) -> dict[str, Any]:
    return {**_event(body), "at_ms": int(body["at_ms"])}


def _entry(body: _Body) -> dict[str, Any]:
    return {**_arrival(body), "looks": int(body.get("looks", 0))}


def _looks(body: _Body) -> dict[str, Any]:
    return {**_event(body), "looks": int(body["looks"])}


def _request(body: _Body) -> dict[str, Any]:
    request = CallRequest(**{key: value for key, value in body.items() if key != "v"})
    texts = (request.number, request.request_id, request.caller_id or "")
    numbers = (request.organization_id, request.workflow_id or 0, request.workflow_run_id or 0)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a text or a number of the request has another type")
    return {"request": request}


def _resync(body: _Body) -> dict[str, Any]:
    return {**_connection(body), "full": bool(body["full"]), "reason": str(body["reason"])}


#: Actor → how its message is read.
_READERS: dict[str, _Read] = {
    actor: _attempt if issubclass(command, AttemptCommand) else _call for command, (actor, _) in steps.ACTORS.items()
} | {
    "remove_attempt": _removal,
    "caller_entered": _entry,
    "media_leg_ready": _event,
    "leg_ended": _event,
    "request_call": _request,
    "far_end_answered": _arrival,
    "dial_ended": _event,
    "leg_unanswered": _looks,
    "resync_connection": _resync,
    "ask_for_app": _connection,
    "party_heard": _arrival,
}


def declare(broker: dramatiq.Broker, handlers: Mapping[str, Handler]) -> None:
    """Make the actors known to the broker."""
    for name, read in _READERS.items():
        dramatiq.actor(
            actor_name=name,
            queue_name=messages.ACTORS[name],
            broker=broker,
            throws=errors.PermanentError,
            retry_for_ms=_COMMAND_MS if read in (_call, _attempt, _removal) else _EVENT_MS,
        )(_actor(name, read, handlers[name]))


def arguments(name: str, body: _Body) -> dict[str, Any]:
    """Read an actor's message. Raises InvalidMessage for one that cannot be read."""
    messages.check_version(body.get("v"))
    try:
        return _READERS[name](body)
    except (KeyError, TypeError, ValueError) as exc:
        raise errors.InvalidMessage(f"{name}: unreadable message: {exc!r}") from exc


def _actor(name: str, _read: _Read, handler: Handler) -> Callable[..., None]:
    def act(**body: Any) -> None:
        with ongoing.task(name):
            handler(**arguments(name, body))

    return act
