"""The broker messages: which queue and actor each goes to, and their shape. Senders enqueue by name.

The option `group` is the connection's id: within a queue the connections are served in rotation. The option `bounded`
marks what an Asterisk may cause at will: of a connection, so many may be in the queues. Commands, resyncs and requests
for calls are not bounded: the product orders them itself.

What changes nothing that a step does rides in the options (PUSHED, TRACEPARENT): an earlier release ignores them.

{"v": 1, "call_id": "…", "attempt": 1}                                             a command of the core
{"v": 1, "connection_id": 7, "connection_version": 2, "at_ms": …, "event": {…}}    an event, from a listener
{"v": 1, "connection_id": 7, "connection_version": 2, "reason": "connected", "full": true}    a resync
{"v": 1, "connection_id": 7, "connection_version": 2}                              a question: who has its app?
{"v": 1, "organization_id": 3, "number": "+49301234", "workflow_id": 5, "request_id": "…"}    a request for a call
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

import dramatiq

from shared import errors
from shared.asterisk import events
from shared.call import dialling, ids, stasis_args, steps
from shared.call.call_requests import CallRequest
from shared.call.commands import AttemptCommand, Command, RemoveAttempt
from shared.call.ids import ConnectionVersion
from shared.call.steps import STEPS, Step

_LONGEST_TAG = 16
#: Raised when the shape changes.
VERSION = 1
#: Option of a message that a listener pushes: when it does, by Redis's clock in ms. The message is encoded when it is
#: buffered, as its size counts, and the moment is filled in when it is pushed: both have 13 digits.
PUSHED = "pushed_ms"
NOT_PUSHED = 10**12
_NOT_PUSHED = f'"{PUSHED}":{NOT_PUSHED}'.encode()
#: Option with the header of W3C's trace context: the span that ordered it, in the trace of its call.
TRACEPARENT = "traceparent"

#: Why a resync is asked for, where it matters: on the clock, or for calls that the one before found too young to judge.
RESYNC_CLOCK = "clock"
RESYNC_FOLLOW_UP = "follow-up"

#: The queue that is no step's: it compares a whole connection.
RESYNC = "resync"
#: A queue of its own, which no worker of v0.1.0-rc1 serves: that release does not know its actors.
APPS = "apps"
#: Every queue, ordered by need: where some share threads, the first one is served first.
QUEUES: tuple[str, ...] = (*map(str, STEPS), RESYNC, APPS)

#: Actor → its queue, for all that is no command: an event waits in the queue of the step it leads to.
_EVENT_ACTORS = {
    "caller_entered": Step.ADMISSION,
    "far_end_answered": Step.BRIDGE,
    "media_leg_ready": Step.BRIDGE,
    "leg_ended": Step.TEARDOWN,
    "dial_ended": Step.ORIGINATE,
    "leg_unanswered": Step.ORIGINATE,
    "request_call": Step.ORIGINATE,
    "resync_connection": RESYNC,
    "ask_for_app": APPS,
    # No step, and no hurry.
    "party_heard": APPS,
}
#: Actor → its queue. An actor is what a worker does with one kind of message.
ACTORS: dict[str, str] = {actor: str(queue) for actor, queue in (*_EVENT_ACTORS.items(), *steps.ACTORS.values())}

Message = dramatiq.Message[Any]


def of_command(command: Command, *, connection_id: int) -> Message:
    """Return the message that carries a command to its actor, for a call of this connection."""
    actor, _ = steps.ACTORS[type(command)]
    body: dict[str, Any] = {"v": VERSION, "call_id": str(command.call_id)}
    if isinstance(command, AttemptCommand):
        body["attempt"] = command.attempt
    if isinstance(command, RemoveAttempt) and command.nonce:
        body["nonce"] = command.nonce
    return _message(actor, body, connection_id)


def of_event(event: events.Event, *, connection: ConnectionVersion, at_ms: int, looks: int = 0) -> Message | None:
    """Return the message that carries an event to its actor; None for an event that concerns none.

    Args:
        at_ms: When the listener read the event, by Redis's clock.
        looks: How often a worker has looked at it before. A process of v0.1.0-rc1 does not read that.
    """
    actor = _actor_of_event(event)
    if actor is None:
        return None
    read = replace(event, args=_args(event, actor))
    body = {
        "v": VERSION,
        **_connection(connection),
        "at_ms": at_ms,
        **_event(read),
    }
    if looks:
        body["looks"] = looks
    message = _event_message(actor, body, connection, at_ms=at_ms)
    if actor == "media_leg_ready" and event.args:
        # The tag of the worker that waits for the leg, as it was given to Asterisk. It comes from a peer: a hint.
        message.options["affinity"] = event.args[0][:_LONGEST_TAG]
    if actor == "leg_ended" and ids.parse(event.leg.id) is not None:
        # Asterisk reports the end of a media leg twice, by StasisEnd and ChannelDestroyed: one message is enough.
        return message.copy(message_id=f"{event.leg.id}.end")
    return message


def of_unanswered(event: events.Event, *, connection: ConnectionVersion, looks: int) -> Message:
    """Return the message that looks again for a platform's run that waits for a leg that was not answered."""
    body = {
        "v": VERSION,
        **_connection(connection),
        **_event(event),
        "looks": looks,
    }
    return _event_message("leg_unanswered", body, connection)


def _event(event: events.Event) -> dict[str, Any]:
    """Return the part of a message's body that carries an event. A process of v0.1.0-rc1 reads `event` alone."""
    beside = {} if event.tech_cause is None else {"tech_cause": event.tech_cause}
    return {"event": events.encode(event), **beside}


def event(body: Mapping[str, Any]) -> events.Event:
    """Return the event that a message's body carries. Raises InvalidEvent if it has another shape."""
    carried, tech_cause = events.decode(body["event"]), body.get("tech_cause")
    return carried if tech_cause is None else replace(carried, tech_cause=int(tech_cause))


def of_request(request: CallRequest) -> Message:
    """Return the message that requests an outbound call."""
    body = {key: value for key, value in asdict(request).items() if value is not None}
    # Its connection is not known yet: the organization is the group.
    return _message("request_call", {"v": VERSION, **body}, f"organization-{request.organization_id}")


def of_resync(*, connection: ConnectionVersion, reason: str, full: bool) -> Message:
    """Return the message that asks for a resync of one connection; `full` also looks at the bridges.

    Of a connection version one waits. It finds what happens until it begins, so a further request takes its place. One
    by the clock, or one that follows another, says less than the one that waits may say, and is dropped.
    """
    body = {
        "v": VERSION,
        **_connection(connection),
        "reason": reason,
        "full": full,
    }
    message = _message("resync_connection", body, connection.connection_id)
    message.options.update(unique=str(connection.number))
    if reason not in (RESYNC_CLOCK, RESYNC_FOLLOW_UP):
        message.options.update(supersedes=True)
    return message


def of_app_question(connection: ConnectionVersion) -> Message:
    """Return the message that asks who has the app of a connection version. Of a version one waits."""
    message = _message("ask_for_app", {"v": VERSION, **_connection(connection)}, connection.connection_id)
    message.options.update(unique=f"app {connection.number}")
    return message


def pushed(body: bytes, at_ms: int) -> bytes:
    """Return an encoded message with the moment at which it is pushed.

    No text in it can be taken for the option: in JSON a quote within a text has a backslash before it.
    """
    return body.replace(_NOT_PUSHED, f'"{PUSHED}":{at_ms:013d}'.encode(), 1) if at_ms > NOT_PUSHED else body


def check_version(version: object) -> None:
    """Raise InvalidMessage for a message of a version that this worker cannot read."""
    if type(version) is not int or version != VERSION:
        raise errors.InvalidMessage(
            f"message version {version!r} is not {VERSION}: workers and senders need one release"
        )


def call_id(text: object) -> UUID:
    """Read a call id. Raises InvalidMessage for anything else."""
    try:
        return UUID(str(text))
    except ValueError as exc:
        raise errors.InvalidMessage(f"not a call id: {text!r}") from exc


def _args(event: events.Event, actor: str) -> tuple[str, ...]:
    """Return the arguments that a step reads."""
    if actor == "media_leg_ready":
        # The tag is all that counts.
        return ()
    if event.type is events.EventType.STASIS_END:
        # Such a leg is no caller, and no call tells so: its channel shows with which arguments it came.
        came_with = event.leg.stasis_args
        return came_with if stasis_args.is_transfer(came_with) else ()
    return event.args


def _actor_of_event(event: events.Event) -> str | None:
    match event.type:
        case events.EventType.STASIS_START:
            return _actor_of_entry(event.leg.id)
        case events.EventType.CHANNEL_HANGUP_REQUEST if ids.parse(event.leg.id) is not None:
            # Of a media leg only its end counts, which follows.
            return None
        case events.EventType.STASIS_END | events.EventType.CHANNEL_DESTROYED | events.EventType.CHANNEL_HANGUP_REQUEST:
            return "leg_ended"
        case events.EventType.DIAL:
            return "dial_ended" if event.dial_status in dialling.UNANSWERED_STATUSES else None
        case events.EventType.CHANNEL_TALKING_STARTED:
            return "party_heard"
        case events.EventType.APPLICATION_REPLACED:
            return None


def _actor_of_entry(leg_id: str) -> str:
    if ids.is_originated(leg_id):
        return "far_end_answered"
    return "media_leg_ready" if ids.parse(leg_id) is not None else "caller_entered"


def _connection(connection: ConnectionVersion) -> dict[str, int]:
    return {"connection_id": connection.connection_id, "connection_version": connection.number}


def _event_message(actor: str, body: dict[str, Any], connection: ConnectionVersion, *, at_ms: int = 0) -> Message:
    """Return a message that an Asterisk may cause at will: it counts against the bounds of its connection."""
    message = _message(actor, body, connection.connection_id, at_ms=at_ms)
    message.options["bounded"] = True
    return message


def _message(actor: str, body: dict[str, Any], group: int | str, *, at_ms: int = 0) -> Message:
    """Return a message.

    Args:
        at_ms: When it was due, by Redis's clock; 0: the broker says so when it enqueues it, if it knows that clock.
    """
    options = {"group": group}
    return dramatiq.Message(
        queue_name=ACTORS[actor], actor_name=actor, args=(), kwargs=body, options=options, message_timestamp=at_ms
    )
