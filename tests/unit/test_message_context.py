"""A message in work: its ids on every log line, its moments for the timeline, and nothing left of it afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import dramatiq
import pytest
import structlog

from listener import buffer
from shared import current_message, messages
from shared.asterisk import events
from shared.asterisk.events import Event, EventType
from shared.call import commands, ids
from shared.process import metrics
from shared.storage.timeline import MESSAGE_BEGUN, MessageBegun, is_prompt, of_message
from workers.message_context import MessageContext

CALL = UUID("0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11")
CONNECTION = ids.ConnectionVersion(7, 2)
#: Redis's time, now.
NOW_MS = 1_800_000_000_000
BROKER: Any = None


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    current_message.end()
    structlog.contextvars.clear_contextvars()


def context(is_known: bool = True) -> MessageContext:
    return MessageContext(lambda at_ms: max(0.0, NOW_MS - at_ms) if is_known else 0.0)


def of_event(leg_id: str, **fields: Any) -> messages.Message:
    channel = events.Channel(
        id=leg_id, name="", state="Up", created="c", caller_number="", called_number="", app_name="", app_data=""
    )
    happened = Event(type=EventType.STASIS_START, application="voiceai", stamp="s", channel=channel, **fields)
    message = messages.of_event(happened, connection=CONNECTION, at_ms=NOW_MS - 30)
    assert message is not None
    return message


def delivered(message: messages.Message, pushed_ms: int = NOW_MS - 20) -> messages.Message:
    """Return the message as a worker gets it."""
    encoded = buffer.encode_message(CONNECTION, message)
    body = encoded.pushed(pushed_ms).body
    assert len(body) == len(encoded.body)
    return dramatiq.Message.decode(body)


def begun(message: messages.Message, *, is_known: bool = True) -> current_message.CurrentMessage:
    context(is_known).before_process_message(BROKER, message)
    found = current_message.current()
    assert found is not None
    return found


def test_the_ids_of_a_message_are_bound_while_it_is_worked_on() -> None:
    begun(delivered(of_event("1762000000.12")))
    assert structlog.contextvars.get_contextvars() == {"connection": "7:2"}
    begun(delivered(of_event(ids.media_id("aip-", CALL, 1))))
    assert structlog.contextvars.get_contextvars() == {"connection": "7:2", "call": str(CALL)}
    begun(messages.of_command(commands.StartMedia(call_id=CALL, attempt=1), connection_id=7))
    assert structlog.contextvars.get_contextvars() == {"connection": "7", "call": str(CALL)}
    begun(dramatiq.Message("admission", "(unreadable)", (), {}, {}))
    assert structlog.contextvars.get_contextvars() == {}


def test_the_moments_of_an_event_s_message_are_told_by_redis_s_clock() -> None:
    found = begun(delivered(of_event("1762000000.12")))
    told = of_message(found, now=datetime(2026, 1, 1, tzinfo=UTC), monotonic=found.begun)
    assert (told.kind, told.name, told.took_ms) == ("note", MESSAGE_BEGUN, 30.0)
    assert told.at == datetime(2026, 1, 1, tzinfo=UTC) - timedelta(milliseconds=30)
    parsed = MessageBegun.parse(told.detail)
    assert parsed == MessageBegun(
        actor="caller_entered", pushed_ms=10.0, due_ms=10.0, begun_ms=30.0, about="StasisStart 1762000000.12"
    )


def test_one_that_is_pushed_and_begun_within_a_millisecond_was_pushed() -> None:
    found = begun(delivered(of_event("1762000000.12"), NOW_MS))
    assert found.pushed == found.begun


def test_while_redis_s_clock_is_unknown_no_moment_is_told_that_is_not_known() -> None:
    found = begun(delivered(of_event("1762000000.12")), is_known=False)
    assert (found.received, found.pushed, found.came) == (None, None, found.begun)


def test_a_command_tells_when_it_was_due_and_how_often_it_has_failed() -> None:
    message = messages.of_command(commands.StartMedia(call_id=CALL, attempt=1), connection_id=7)
    message.options.update(tries=2)
    found = begun(dramatiq.Message.decode(message.copy(message_timestamp=NOW_MS - 2000).encode()))
    parsed = MessageBegun.parse(of_message(found, now=datetime.now(UTC), monotonic=found.begun).detail)
    assert parsed == MessageBegun(actor="start_media", due_ms=0.0, begun_ms=2000.0, tries=2)


@pytest.mark.parametrize(("waited_ms", "tries", "has_row"), [(5, 0, False), (5, 1, True), (150, 0, True)])
def test_a_command_that_was_begun_at_once_has_no_row(waited_ms: int, tries: int, *, has_row: bool) -> None:
    message = messages.of_command(commands.StartMedia(call_id=CALL, attempt=1), connection_id=7)
    message.options.update(tries=tries)
    found = begun(dramatiq.Message.decode(message.copy(message_timestamp=NOW_MS - waited_ms).encode()))
    assert is_prompt(found) is not has_row


def test_a_message_of_an_event_has_a_row() -> None:
    assert not is_prompt(begun(delivered(of_event("1762000000.12"), NOW_MS)))
    assert not is_prompt(begun(delivered(of_event("1762000000.12"), NOW_MS), is_known=False))


def test_the_metric_of_a_queue_s_wait_is_what_the_timeline_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "QUEUE_WAIT", observed := Mock())
    message = messages.of_command(commands.StartMedia(call_id=CALL, attempt=1), connection_id=7)
    tried_again = delivered(of_event("1762000000.12")).copy(message_timestamp=NOW_MS - 5)
    for each in (
        delivered(of_event("1762000000.12")), tried_again,
        message.copy(message_timestamp=NOW_MS - 2000), message.copy(message_timestamp=NOW_MS),
    ):  # fmt: skip
        begun(each)
    waited = [(call.args[1], round(call.args[0], 3)) for call in observed.observe.call_args_list]
    assert waited == [("admission", 0.02), ("admission", 0.005), ("media", 2.0), ("media", 0.0)]


def test_a_message_that_has_waited_longer_than_a_moment_lies_back_has_waited_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "QUEUE_WAIT", observed := Mock())
    then_ms = NOW_MS - 7_200_000
    message = messages.of_command(commands.StartMedia(call_id=CALL, attempt=1), connection_id=7)
    assert not is_prompt(begun(message.copy(message_timestamp=then_ms)))
    event = delivered(of_event("1762000000.12"), then_ms)
    begun(event.copy(message_timestamp=then_ms, kwargs={**event.kwargs, "at_ms": then_ms}))
    waited = [(call.args[1], round(call.args[0])) for call in observed.observe.call_args_list]
    assert waited == [("media", 3600), ("admission", 3600)]
    assert begun(message.copy(message_timestamp=0)).due is None


def test_an_event_that_is_tried_again_waited_for_a_worker_from_then_on() -> None:
    first = delivered(of_event("1762000000.12"))
    first.options.update(tries=1)
    found = begun(first.copy(message_timestamp=NOW_MS - 5))
    parsed = MessageBegun.parse(of_message(found, now=datetime.now(UTC), monotonic=found.begun).detail)
    assert parsed is not None
    assert (parsed.pushed_ms, parsed.due_ms, parsed.begun_ms, parsed.tries) == (10.0, 25.0, 30.0, 1)


@pytest.mark.parametrize("options", [{"tries": "x"}, {"pushed_ms": "x"}, {"pushed_ms": 5}])
def test_odd_options_do_no_harm(options: dict[str, Any]) -> None:
    message = of_event("1762000000.12")
    message.options.update(options)
    assert begun(message).tries == 0


def test_nothing_of_a_message_is_left_for_the_next() -> None:
    begun(delivered(of_event("1762000000.12")))
    context().after_process_message(BROKER, of_event("1762000000.12"))
    assert current_message.current() is None


def test_no_text_of_a_peer_is_taken_for_the_moment() -> None:
    text = '"pushed_ms":1000000000000'
    message = of_event(text, args=(text,))
    body = json.loads(buffer.encode_message(CONNECTION, message).pushed(NOW_MS).body)
    assert body["options"]["pushed_ms"] == NOW_MS
    assert body["kwargs"]["event"]["channel"]["id"] == text
    assert body["kwargs"]["event"]["args"] == [text]


@pytest.mark.parametrize("text", ["", "5 requests", "actor=x", "actor=x, begun_ms=y", "begun_ms=1"])
def test_a_note_of_another_kind_is_no_message(text: str) -> None:
    assert MessageBegun.parse(text) is None
