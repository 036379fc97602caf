"""Broker messages: each event and command goes to its queue, with a version; every message has an actor."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any
from uuid import UUID

import dramatiq
import pytest
from dramatiq.brokers import stub

from shared import errors, messages
from shared.asterisk import events
from shared.asterisk.events import Event, EventType
from shared.broker import redis_broker, retries
from shared.call import commands, ids, steps
from shared.call.call_requests import CallRequest
from workers import actors

PREFIX = "aip-"
CONNECTION = ids.ConnectionVersion(7, 2)
CALL = UUID("0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11")
CALLER = "1762000000.12"
MEDIA = ids.media_id(PREFIX, CALL, 1)
ORIGINATED = ids.originated_id(PREFIX, 7, "request 1")


def event(kind: EventType, channel_id: str = CALLER) -> Event:
    channel = events.Channel(
        id=channel_id, name="", state="Up", created="c", caller_number="", called_number="", app_name="", app_data=""
    )
    return Event(type=kind, application="voiceai", stamp="s", channel=channel)


def sent(happened: Event) -> messages.Message | None:
    return messages.of_event(happened, connection=CONNECTION, at_ms=1234)


@pytest.mark.parametrize(
    ("kind", "channel_id", "actor"),
    [
        (EventType.STASIS_START, CALLER, "caller_entered"),
        (EventType.STASIS_START, MEDIA, "media_leg_ready"),
        (EventType.STASIS_START, ORIGINATED, "far_end_answered"),
        (EventType.STASIS_START, ORIGINATED + ";2", "caller_entered"),
        (EventType.CHANNEL_DESTROYED, ORIGINATED, "leg_ended"),
        (EventType.STASIS_START, MEDIA.replace("aip-", "aip-k3x9q2-"), "media_leg_ready"),
        (EventType.STASIS_START, MEDIA.replace("aip-", ""), "caller_entered"),
        (EventType.STASIS_START, MEDIA + "x", "caller_entered"),
        (EventType.STASIS_END, CALLER, "leg_ended"),
        (EventType.STASIS_END, MEDIA, "leg_ended"),
        (EventType.CHANNEL_DESTROYED, CALLER, "leg_ended"),
        (EventType.CHANNEL_DESTROYED, MEDIA, "leg_ended"),
        (EventType.CHANNEL_HANGUP_REQUEST, CALLER, "leg_ended"),
        (EventType.CHANNEL_HANGUP_REQUEST, MEDIA, None),
        (EventType.DIAL, CALLER, None),
        (EventType.APPLICATION_REPLACED, CALLER, None),
        (EventType.CHANNEL_TALKING_STARTED, CALLER, "party_heard"),
        (EventType.CHANNEL_TALKING_STARTED, MEDIA, "party_heard"),
    ],
)
def test_where_an_event_goes(kind: EventType, channel_id: str, actor: str | None) -> None:
    message = sent(event(kind, channel_id))
    assert (message.actor_name if message is not None else None) == actor


@pytest.mark.parametrize(
    ("status", "actor"),
    [
        ("", None),
        ("RINGING", None),
        ("PROGRESS", None),
        ("ANSWER", None),
        ("BUSY", "dial_ended"),
        ("NOANSWER", "dial_ended"),
        ("CANCEL", "dial_ended"),
        ("CONGESTION", "dial_ended"),
        ("CHANUNAVAIL", "dial_ended"),
    ],
)
def test_only_unanswered_dialling_has_an_actor(status: str, actor: str | None) -> None:
    message = sent(replace(event(EventType.DIAL), dial_status=status))
    assert (message.actor_name if message is not None else None) == actor


def test_a_ready_media_leg_is_reported_to_the_worker_whose_tag_it_brings() -> None:
    """Another channel's args are its own, and those of a peer may be long."""
    ready = replace(event(EventType.STASIS_START, MEDIA), args=("a1b2c3d4" * 100,))
    message = sent(ready)
    assert message is not None
    assert redis_broker.affinity(message) == "a1b2c3d4a1b2c3d4"
    for other in (replace(ready, args=()), replace(ready, channel=event(EventType.STASIS_START).channel)):
        message = sent(other)
        assert message is not None
        assert redis_broker.affinity(message) == ""


def test_the_end_of_a_media_leg_is_one_message_however_often_reported() -> None:
    """The broker enqueues a message once for each id."""
    reported = [sent(event(kind, MEDIA)) for kind in (EventType.STASIS_END, EventType.CHANNEL_DESTROYED)]
    assert len({message.message_id for message in reported if message is not None}) == 1
    other = sent(event(EventType.STASIS_END, ids.media_id(PREFIX, CALL, 2)))
    callers = [sent(event(kind)) for kind in (EventType.STASIS_END, EventType.CHANNEL_DESTROYED)]
    assert len({message.message_id for message in [*reported, other, *callers] if message is not None}) == 4


def test_every_type_of_event_has_a_queue_or_no_message() -> None:
    for kind in EventType:
        message = sent(event(kind))
        assert message is None or message.queue_name == messages.ACTORS[message.actor_name]


def test_an_event_is_carried_with_what_steps_read() -> None:
    happened = event(EventType.STASIS_START)
    message = sent(happened)
    assert message is not None
    body = json.loads(json.dumps(message.kwargs))
    assert events.decode(body.pop("event")) == events.carried(happened)
    assert body == {"v": messages.VERSION, "connection_id": 7, "connection_version": 2, "at_ms": 1234}


def test_the_cause_of_the_technology_is_beside_the_event_for_v0_1_0_rc1_reads_no_such_field() -> None:
    ended = replace(event(EventType.STASIS_END), cause=16, tech_cause=486)
    message = sent(ended)
    assert message is not None
    body = json.loads(json.dumps(message.kwargs))
    assert (body["tech_cause"], "tech_cause" in body["event"]) == (486, False)
    assert messages.event(body) == events.carried(ended)
    again = messages.of_unanswered(ended, connection=ids.ConnectionVersion(7, 2), looks=1)
    assert messages.event(again.kwargs) == events.carried(ended)


@pytest.mark.parametrize("channel_id", [CALLER, MEDIA])
@pytest.mark.parametrize("kind", [EventType.STASIS_START, EventType.STASIS_END])
def test_an_event_of_a_megabyte_is_a_small_message(kind: EventType, channel_id: str) -> None:
    """In JSON each letter beyond ASCII has six characters: such an event was a message of three megabytes."""
    document = {
        "type": kind.value,
        "application": "voiceai",
        "timestamp": "s",
        "args": ["ä" * 4000, "ä" * 4000],
        "padding": "ä" * 250_000,
        "channel": {
            "id": channel_id,
            "name": "ä" * 500,
            "state": "ä" * 500,
            "creationtime": "c",
            "dialplan": {"app_name": "Stasis", "app_data": "ä" * 250_000},
        },
    }
    happened = events.parse(json.dumps(document, ensure_ascii=False))
    assert happened is not None
    message = sent(happened)
    assert message is not None
    assert len(message.encode()) < (60_000 if (kind, channel_id) == (EventType.STASIS_START, CALLER) else 5_000)


def test_the_release_before_reads_the_event_of_a_message() -> None:
    """v0.1.0-rc1 wants an application, and every field of the channel."""
    message = sent(event(EventType.STASIS_END))
    assert message is not None
    body = message.kwargs["event"]
    assert {"type", "application", "channel"} <= set(body)
    assert set(body["channel"]) == {field.name for field in fields(events.Channel)}


COMMANDS: list[tuple[commands.Command, str, dict[str, Any]]] = [
    (commands.DecideAdmission(call_id=CALL), "admission", {}),
    (commands.CreateRun(call_id=CALL), "runs", {}),
    (commands.OriginateLeg(call_id=CALL), "originate", {}),
    (commands.StartMedia(call_id=CALL, attempt=2), "media", {"attempt": 2}),
    (commands.CheckMedia(call_id=CALL, attempt=2), "bridge", {"attempt": 2}),
    (commands.JoinLegs(call_id=CALL, attempt=2), "bridge", {"attempt": 2}),
    (commands.TearDown(call_id=CALL), "teardown", {}),
    (commands.RemoveAttempt(call_id=CALL, attempt=2), "teardown", {"attempt": 2}),
]


@pytest.mark.parametrize(("command", "queue", "more"), COMMANDS)
def test_where_a_command_goes(command: commands.Command, queue: str, more: dict[str, Any]) -> None:
    message = messages.of_command(command, connection_id=7)
    assert message.queue_name == queue == messages.ACTORS[message.actor_name]
    assert message.kwargs == {"v": messages.VERSION, "call_id": str(CALL), **more}


def test_every_command_has_an_actor_of_its_own() -> None:
    assert {type(command) for command, _, _ in COMMANDS} == set(steps.ACTORS)
    assert len({messages.of_command(command, connection_id=7).actor_name for command, _, _ in COMMANDS}) == len(
        COMMANDS
    )


def test_every_actor_has_a_queue_and_every_queue_an_actor() -> None:
    assert set(messages.ACTORS.values()) == set(messages.QUEUES)


def _declared() -> dramatiq.Broker:
    """Return a broker with every actor; their handlers are not to be reached."""
    broker = stub.StubBroker(middleware=[retries.Retries()])
    actors.declare(broker, dict.fromkeys(messages.ACTORS, _unreached))
    return broker


def _unreached(**_arguments: object) -> None:
    raise AssertionError("an unreadable message reached its handler")


def test_a_worker_declares_every_actor() -> None:
    broker = _declared()
    assert set(messages.ACTORS) - broker.get_declared_actors() == set()
    for name in broker.get_declared_actors():
        assert broker.get_actor(name).queue_name == messages.ACTORS[name]


@pytest.mark.parametrize(
    ("actor", "body"),
    [
        ("tear_down", {}),
        ("tear_down", {"v": 1}),
        ("tear_down", {"v": 2, "call_id": str(CALL)}),
        ("tear_down", {"v": 1, "call_id": "x"}),
        ("start_media", {"v": 1, "call_id": str(CALL)}),
        ("caller_entered", {"v": 1, "connection_id": 1, "connection_version": 1, "at_ms": 1}),
        ("caller_entered", {"v": 1, "connection_id": 1, "connection_version": 1, "at_ms": 1, "event": {"type": "x"}}),
        ("caller_entered", {"v": 1, "connection_id": 1, "connection_version": 1, "at_ms": 1, "event": 5}),
        ("request_call", {"v": 1, "organization_id": 1, "number": 5, "request_id": "r", "workflow_id": 1}),
        ("request_call", {"v": 1, "organization_id": "1", "number": "5", "request_id": "r", "workflow_id": 1}),
        ("request_call", {"v": 1, "organization_id": 1, "number": "5", "request_id": ["r"], "workflow_id": 1}),
        ("request_call", {"v": 1, "organization_id": 1, "number": "5"}),
        ("request_call", {"v": 1, "organization_id": 1, "number": "5", "request_id": "r", "nummer": "6"}),
    ],
)
def test_an_unreadable_message_fails_permanently(actor: str, body: dict[str, Any]) -> None:
    broker = _declared()
    with pytest.raises(errors.PermanentError):
        broker.get_actor(actor)(**body)


def test_what_an_asterisk_causes_is_bounded_and_what_the_product_orders_is_not() -> None:
    happened = [sent(event(kind, name)) for kind in EventType for name in (CALLER, MEDIA, ORIGINATED)]
    happened.append(messages.of_unanswered(event(EventType.DIAL), connection=CONNECTION, looks=1))
    assert {redis_broker.is_bounded(message) for message in happened if message is not None} == {True}
    ordered = [messages.of_command(command, connection_id=7) for command, _, _ in COMMANDS]
    ordered.append(messages.of_resync(connection=CONNECTION, reason="connected", full=True))
    request = CallRequest(organization_id=1, number="5", workflow_id=1, request_id="r")
    ordered.append(messages.of_request(request))
    assert {redis_broker.is_bounded(message) for message in ordered} == {False}


def test_a_resync_names_its_connection() -> None:
    message = messages.of_resync(connection=CONNECTION, reason="connected", full=True)
    assert (message.queue_name, message.actor_name) == ("resync", "resync_connection")
    assert message.kwargs == {
        "v": messages.VERSION,
        "connection_id": 7,
        "connection_version": 2,
        "reason": "connected",
        "full": True,
    }


def test_this_version_is_read() -> None:
    messages.check_version(messages.VERSION)


@pytest.mark.parametrize("version", [None, 0, messages.VERSION + 1, -1, "1", True, "", [], {}])
def test_other_versions_are_refused(version: object) -> None:
    with pytest.raises(errors.InvalidMessage, match="version"):
        messages.check_version(version)


@pytest.mark.parametrize("text", [None, "", "x", 5, str(CALL)[:-1], ["a"]])
def test_what_is_no_call_id_is_refused(text: object) -> None:
    with pytest.raises(errors.InvalidMessage, match="not a call id"):
        messages.call_id(text)


def test_every_message_is_grouped_by_its_connection() -> None:
    command = messages.of_command(commands.TearDown(call_id=CALL), connection_id=7)
    happened = sent(event(EventType.STASIS_START))
    resync = messages.of_resync(connection=CONNECTION, reason="connected", full=True)
    for message in (command, happened, resync):
        assert message is not None
        assert redis_broker.message_key(message) == f"7/{message.message_id}"


def test_a_message_survives_dramatiq() -> None:
    message = messages.of_command(commands.JoinLegs(call_id=CALL, attempt=1), connection_id=7)
    assert dramatiq.Message.decode(message.encode()).kwargs == message.kwargs
