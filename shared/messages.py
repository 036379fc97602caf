"""The broker messages: which queue and actor each goes to, and their shape. Senders enqueue by name.

The option `group` is the connection's id: within a queue the connections are served in rotation. The option `bounded`
marks what an Asterisk may cause at will: of a connection, so many may be in the queues. Commands, resyncs and requests
for calls are not bounded: the product orders them itself.

{"v": 1, "call_id": "…", "attempt": 1}                                             a command of the core
{"v": 1, "connection_id": 7, "connection_version": 2, "at_ms": …, "event": {…}}    an event, from a listener
{"v": 1, "connection_id": 7, "connection_version": 2, "reason": "connected", "full": true}    a resync
{"v": 1, "organization_id": 3, "number": "+49301234", "workflow_id": 5, "request_id": "…"}    a request for a call
"""

from __future__ import annotations

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

#: Why a resync is asked for, where it matters: on the clock, or for calls that the one before found too young to judge.
RESYNC_CLOCK = "clock"
RESYNC_FOLLOW_UP = "follow-up"

#: The queue that is no step's: it compares a whole connection.
RESYNC = "resync"
#: Every queue, ordered by need: where some share threads, the first one is served first.
QUEUES: tuple[str, ...] = (*map(str, STEPS), RESYNC)

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


def of_event(event: events.Event, *, connection: ConnectionVersion, at_ms: int) -> Message | None:
    """Return the message that carries an event to its actor; None for an event that concerns none.

    Args:
        at_ms: When the listener read the event, by Redis's clock.
    """
    actor = _actor_of_event(event)
    if actor is None:
        return None
    read = replace(event, args=_args(event, actor))
    body = {
        "v": VERSION,
        **_connection(connection),
        "at_ms": at_ms,
        "event": events.encode(read),
    }
    message = _event_message(actor, body, connection)
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
        "event": events.encode(event),
        "looks": looks,
    }
    return _event_message("leg_unanswered", body, connection)


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
            if ids.is_originated(event.leg.id):
                return "far_end_answered"
            return "media_leg_ready" if ids.parse(event.leg.id) is not None else "caller_entered"
        case events.EventType.CHANNEL_HANGUP_REQUEST if ids.parse(event.leg.id) is not None:
            # Of a media leg only its end counts, which follows.
            return None
        case events.EventType.STASIS_END | events.EventType.CHANNEL_DESTROYED | events.EventType.CHANNEL_HANGUP_REQUEST:
            return "leg_ended"
        case events.EventType.DIAL:
            return "dial_ended" if event.dial_status in dialling.UNANSWERED_STATUSES else None
        case events.EventType.APPLICATION_REPLACED:
            return None


def _connection(connection: ConnectionVersion) -> dict[str, int]:
    return {"connection_id": connection.connection_id, "connection_version": connection.number}


def _event_message(actor: str, body: dict[str, Any], connection: ConnectionVersion) -> Message:
    """Return a message that an Asterisk may cause at will: it counts against the bounds of its connection."""
    message = _message(actor, body, connection.connection_id)
    message.options["bounded"] = True
    return message


def _message(actor: str, body: dict[str, Any], group: int | str) -> Message:
    options = {"group": group}
    return dramatiq.Message(queue_name=ACTORS[actor], actor_name=actor, args=(), kwargs=body, options=options)
