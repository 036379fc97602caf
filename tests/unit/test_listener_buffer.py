"""The messages that wait for Redis: bounded, in order, fair; a lost event is followed by a resync."""

from __future__ import annotations

import asyncio
import json

from listener.buffer import Buffer, EncodedMessage, encode_message
from shared import messages
from shared.call.ids import ConnectionVersion

ONE, TWO = ConnectionVersion(1, 1), ConnectionVersion(2, 1)


def event(connection: ConnectionVersion, name: str, size: int = 10) -> EncodedMessage:
    return EncodedMessage(connection, "admission", name, b"x" * size)


def next_batch(buffer: Buffer, limit: int = 100) -> list[EncodedMessage]:
    return asyncio.run(asyncio.wait_for(buffer.next_batch(limit), 1))


def names(batch: list[EncodedMessage]) -> list[str]:
    return [each.message_key for each in batch]


def resyncs(batch: list[EncodedMessage]) -> list[tuple[int, str]]:
    bodies = [json.loads(each.body)["kwargs"] for each in batch if each.queue == "resync"]
    return [(body["connection_id"], body["reason"]) for body in bodies]


def test_one_connection_is_first_in_first_out() -> None:
    buffer = Buffer(capacity=10, share=10)
    for name in "abc":
        assert buffer.put(event(ONE, name))
    assert names(next_batch(buffer, 2)) == ["a", "b"]
    assert names(next_batch(buffer)) == ["c"]


def test_connections_are_served_round_robin() -> None:
    buffer = Buffer(capacity=10, share=10)
    for name in ("a1", "a2", "a3"):
        buffer.put(event(ONE, name))
    buffer.put(event(TWO, "b1"))
    assert names(next_batch(buffer)) == ["a1", "b1", "a2", "a3"]


def test_a_connection_is_limited_to_its_share() -> None:
    buffer = Buffer(capacity=10, share=2)
    assert [buffer.put(event(ONE, name)) for name in "abc"] == [True, True, False]
    assert buffer.put(event(TWO, "d"))


def test_all_connections_together_are_bounded() -> None:
    buffer = Buffer(capacity=3, share=2)
    assert [buffer.put(event(ConnectionVersion(number, 1), "a")) for number in range(5)] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_large_messages_count_by_their_size() -> None:
    buffer = Buffer(capacity=100, share=10)
    assert [buffer.put(event(ONE, name, 15_000)) for name in "ab"] == [True, False]


def test_a_batch_counts_until_it_is_done() -> None:
    buffer = Buffer(capacity=10, share=1)
    buffer.put(event(ONE, "a"))
    batch = next_batch(buffer)
    assert not buffer.put(event(ONE, "b"))
    assert buffer.size == 1
    buffer.done(batch)
    assert buffer.size == 0
    assert buffer.put(event(ONE, "c"))


def test_lost_events_are_resynced_once_there_is_room() -> None:
    buffer = Buffer(capacity=10, share=2)
    for name in "abc":
        buffer.put(event(ONE, name))
    buffer.recover(0.0)
    batch = next_batch(buffer)
    assert names(batch) == ["a", "b"]
    buffer.done(batch)
    buffer.recover(1.0)
    batch = next_batch(buffer)
    assert resyncs(batch) == [(1, "events lost")]
    assert buffer.size == 1
    buffer.done(batch)
    assert buffer.size == 0
    buffer.recover(100.0)
    assert buffer.size == 0


def test_a_connection_whose_events_were_refused_is_resynced() -> None:
    buffer = Buffer(capacity=10, share=2)
    buffer.lose(ONE)
    buffer.recover(0.0)
    batch = next_batch(buffer)
    assert resyncs(batch) == [(1, "events lost")]
    buffer.done(batch)
    buffer.lose(ONE)
    buffer.recover(4.0)
    assert buffer.size == 0, "not more often than every five seconds"
    buffer.recover(5.0)
    assert resyncs(next_batch(buffer)) == [(1, "events lost")]


def test_a_connection_that_floods_is_not_resynced_all_the_time() -> None:
    buffer = Buffer(capacity=10, share=1)
    found = []
    for second in range(12):
        buffer.put(event(ONE, "a"))
        buffer.put(event(ONE, "lost"))
        buffer.done(next_batch(buffer))
        buffer.recover(float(second))
        if buffer.size:
            batch = next_batch(buffer)
            found += resyncs(batch)
            buffer.done(batch)
    assert len(found) == 3


def test_resyncs_waiting_for_one_connection_are_one_and_go_first() -> None:
    buffer = Buffer(capacity=10, share=1)
    buffer.put(event(ONE, "a"))
    buffer.put(event(ONE, "lost"))
    buffer.request_resync(ONE, "connected")
    buffer.request_resync(ONE, "connected")
    # Still to be pushed, so it will find this too.
    buffer.put(event(ONE, "lost"))
    batch = next_batch(buffer)
    assert resyncs(batch) == [(1, "connected")]
    assert names(batch)[1:] == ["a"]
    buffer.done(batch)
    buffer.recover(0.0)
    assert buffer.size == 0


def test_a_forgotten_connection_is_pushed_but_not_resynced() -> None:
    buffer = Buffer(capacity=10, share=1)
    buffer.put(event(ONE, "a"))
    buffer.put(event(ONE, "lost"))
    buffer.forget(ONE)
    batch = next_batch(buffer)
    assert names(batch) == ["a"]
    buffer.done(batch)
    buffer.recover(0.0)
    assert buffer.size == 0


def test_batches_are_bounded_in_bytes() -> None:
    buffer = Buffer(capacity=10_000, share=10_000)
    for number in range(5):
        buffer.put(event(ONE, str(number), 600_000))
    assert len(next_batch(buffer)) == 2


def test_a_message_is_encoded_with_whether_it_is_bounded() -> None:
    message = messages.of_resync(connection=ONE, reason="connected", full=True)
    assert not encode_message(ONE, message).is_bounded
    assert encode_message(ONE, message.copy(options={"bounded": True})).is_bounded


def test_a_message_is_encoded_with_its_affinity() -> None:
    message = messages.of_resync(connection=ONE, reason="connected", full=True)
    assert encode_message(ONE, message).affinity == ""
    named = message.copy(options={"affinity": "0a1b2c3d"})
    assert encode_message(ONE, named).affinity == "0a1b2c3d"
