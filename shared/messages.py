"""The broker messages: which queue and actor each goes to, and their shape. Carry a version; enqueued by name;
their option `group` is the connection's id, so that within a queue connections take turns.

{"v": 1, "call_id": "…", "attempt": 1}                                             an order of the core
{"v": 1, "connection_id": 7, "connection_version": 2, "at_ms": …, "event": {…}}    an event, from a listener
{"v": 1, "connection_id": 7, "connection_version": 2, "reason": "connected", "full": true}    a resync
{"v": 1, "organization_id": 3, "number": "+49301234", "workflow_id": 5, "request_id": "…"}    a call to be placed
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

import dramatiq

from shared import errors
from shared.asterisk import events
from shared.call import calls, commands, ids
from shared.call.call_requests import CallRequest

#: Raised when the shape changes; workers read this version and the one before.
VERSION = 1
_READABLE = frozenset({VERSION - 1, VERSION}) - {0}

#: Why a resync is asked for, where it matters: on the clock, or for what the one before found too young to judge.
RESYNC_CLOCK = "clock"
RESYNC_FOLLOW_UP = "follow-up"

#: Every queue, in order of need: where some share threads, the first one is served first. A call that has been begun is
#: finished before another one is begun.
QUEUES = ("bridge", "media", "runs", "admission", "originate", "teardown", "resync")

#: Actor name → its queue. An actor is what a worker does with one kind of message.
ACTORS: dict[str, str] = {
    "caller_entered": "admission",
    "decide_admission": "admission",
    "create_run": "runs",
    "start_media": "media",
    "far_end_answered": "bridge",
    "media_leg_ready": "bridge",
    "check_media": "bridge",
    "join_legs": "bridge",
    "leg_ended": "teardown",
    "tear_down": "teardown",
    "remove_attempt": "teardown",
    "request_call": "originate",
    "originate_leg": "originate",
    "dial_ended": "originate",
    "leg_unanswered": "originate",
    "resync_connection": "resync",
}

_ACTOR_OF_COMMAND: dict[type[commands.Command], str] = {
    commands.DecideAdmission: "decide_admission",
    commands.CreateRun: "create_run",
    commands.OriginateLeg: "originate_leg",
    commands.StartMedia: "start_media",
    commands.CheckMedia: "check_media",
    commands.JoinLegs: "join_legs",
    commands.TearDown: "tear_down",
    commands.RemoveAttempt: "remove_attempt",
}

Message = dramatiq.Message[Any]


def of_command(command: commands.Command, *, connection_id: int) -> Message:
    """The message that carries an order of the core, on a call of this connection, to its step."""
    body: dict[str, Any] = {"v": VERSION, "call_id": str(command.call_id)}
    if isinstance(command, commands.StartMedia | commands.CheckMedia | commands.JoinLegs | commands.RemoveAttempt):
        body["attempt"] = command.attempt
    return _message(_ACTOR_OF_COMMAND[type(command)], body, connection_id)


def of_event(
    event: events.Event, *, prefix: str, connection_id: int, connection_version: int, at_ms: int
) -> Message | None:
    """The message that carries an event to the step it concerns; None for an event that concerns none.

    Args:
        prefix: Begins the ids of our own legs.
        at_ms: When the listener read the event, by Redis's clock.
    """
    actor = _actor_of_event(event, prefix)
    if actor is None:
        return None
    body = {
        "v": VERSION,
        "connection_id": connection_id,
        "connection_version": connection_version,
        "at_ms": at_ms,
        "event": events.encode(event),
    }
    message = _message(actor, body, connection_id)
    if actor == "leg_ended" and ids.parse(prefix, event.leg.id) is not None:
        # A media leg's end is told twice, by StasisEnd and by ChannelDestroyed: once is enough.
        return message.copy(message_id=f"{event.leg.id}.end")
    return message


def of_unanswered(event: events.Event, *, connection_id: int, connection_version: int, looks: int) -> Message:
    """Asks once more whether a run of the platform waits for a leg that came to nothing."""
    body = {
        "v": VERSION,
        "connection_id": connection_id,
        "connection_version": connection_version,
        "event": events.encode(event),
        "looks": looks,
    }
    return _message("leg_unanswered", body, connection_id)


def of_request(request: CallRequest) -> Message:
    """Asks for a call to be placed."""
    body = {key: value for key, value in asdict(request).items() if value is not None}
    # By which connection it goes is not known yet: an organization takes its turn like one.
    return _message("request_call", {"v": VERSION, **body}, f"organization-{request.organization_id}")


def of_resync(*, connection_id: int, connection_version: int, reason: str, full: bool) -> Message:
    """Asks for a resync of one connection; `full` also looks at the bridges."""
    body = {
        "v": VERSION,
        "connection_id": connection_id,
        "connection_version": connection_version,
        "reason": reason,
        "full": full,
    }
    return _message("resync_connection", body, connection_id)


def check_version(version: object) -> None:
    """Raises InvalidMessage for a message of a version that this worker cannot read."""
    if not isinstance(version, int) or version not in _READABLE:
        raise errors.InvalidMessage(f"message version {version!r} is not one of {sorted(_READABLE)}")


def call_id(text: object) -> UUID:
    """Reads a call id; raises InvalidMessage when it is none."""
    try:
        return UUID(str(text))
    except ValueError as exc:
        raise errors.InvalidMessage(f"not a call id: {text!r}") from exc


def _actor_of_event(event: events.Event, prefix: str) -> str | None:
    match event.type:
        case events.EventType.STASIS_START:
            if ids.is_originated(prefix, event.leg.id):
                return "far_end_answered"
            return "media_leg_ready" if ids.parse(prefix, event.leg.id) is not None else "caller_entered"
        case events.EventType.CHANNEL_HANGUP_REQUEST if ids.parse(prefix, event.leg.id) is not None:
            # Of a leg of ours only its end counts, which follows.
            return None
        case events.EventType.STASIS_END | events.EventType.CHANNEL_DESTROYED | events.EventType.CHANNEL_HANGUP_REQUEST:
            return "leg_ended"
        case events.EventType.DIAL:
            return "dial_ended" if event.dial_status in calls.UNANSWERED_STATUSES else None
        case events.EventType.APPLICATION_REPLACED:
            return None


def _message(actor: str, body: dict[str, Any], group: int | str) -> Message:
    options = {"group": group}
    return dramatiq.Message(queue_name=ACTORS[actor], actor_name=actor, args=(), kwargs=body, options=options)
