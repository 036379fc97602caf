"""What waits for Redis: bounded, in order, fair, and nothing lost in silence."""

import asyncio
import json

from listener import entries
from listener.buffer import Buffer

ONE, TWO = (1, 1), (2, 1)


def entry(connection: entries.Connection, name: str, size: int = 10) -> entries.Entry:
    return entries.Entry(connection, "admission", name, b"x" * size)


def take(buffer: Buffer, most: int = 100) -> list[entries.Entry]:
    return asyncio.run(asyncio.wait_for(buffer.take(most), 1))


def names(batch: list[entries.Entry]) -> list[str]:
    return [each.reference for each in batch]


def resyncs(batch: list[entries.Entry]) -> list[tuple[int, str]]:
    bodies = [json.loads(each.body)["kwargs"] for each in batch if each.queue == "resync"]
    return [(body["connection_id"], body["reason"]) for body in bodies]


def test_one_connection_is_first_in_first_out() -> None:
    buffer = Buffer(capacity=10, share=10)
    for name in "abc":
        assert buffer.put(entry(ONE, name))
    assert names(take(buffer, 2)) == ["a", "b"]
    assert names(take(buffer)) == ["c"]


def test_connections_take_turns() -> None:
    buffer = Buffer(capacity=10, share=10)
    for name in ("a1", "a2", "a3"):
        buffer.put(entry(ONE, name))
    buffer.put(entry(TWO, "b1"))
    assert names(take(buffer)) == ["a1", "b1", "a2", "a3"]


def test_a_connection_has_its_share_and_no_more() -> None:
    buffer = Buffer(capacity=10, share=2)
    assert [buffer.put(entry(ONE, name)) for name in "abc"] == [True, True, False]
    assert buffer.put(entry(TWO, "d"))


def test_all_connections_together_are_bounded() -> None:
    buffer = Buffer(capacity=3, share=2)
    assert [buffer.put(entry((number, 1), "a")) for number in range(5)] == [True, True, True, False, False]


def test_large_messages_count_by_their_size() -> None:
    buffer = Buffer(capacity=100, share=10)
    assert [buffer.put(entry(ONE, name, 15_000)) for name in "ab"] == [True, False]


def test_what_is_being_pushed_counts_until_done() -> None:
    buffer = Buffer(capacity=10, share=1)
    buffer.put(entry(ONE, "a"))
    batch = take(buffer)
    assert not buffer.put(entry(ONE, "b"))
    assert buffer.held == 1
    buffer.done(batch)
    assert buffer.held == 0
    assert buffer.put(entry(ONE, "c"))


def test_lost_events_are_resynced_once_there_is_room() -> None:
    buffer = Buffer(capacity=10, share=2)
    for name in "abc":
        buffer.put(entry(ONE, name))
    buffer.recover(0.0)
    batch = take(buffer)
    assert names(batch) == ["a", "b"]
    buffer.done(batch)
    buffer.recover(1.0)
    batch = take(buffer)
    assert resyncs(batch) == [(1, "events were lost")]
    assert buffer.held == 1
    buffer.done(batch)
    assert buffer.held == 0
    buffer.recover(100.0)
    assert buffer.held == 0


def test_a_connection_that_floods_is_not_resynced_all_the_time() -> None:
    buffer = Buffer(capacity=10, share=1)
    found = []
    for second in range(12):
        buffer.put(entry(ONE, "a"))
        buffer.put(entry(ONE, "lost"))
        buffer.done(take(buffer))
        buffer.recover(float(second))
        if buffer.held:
            batch = take(buffer)
            found += resyncs(batch)
            buffer.done(batch)
    assert len(found) == 3


def test_resyncs_waiting_for_one_connection_are_one_and_go_first() -> None:
    buffer = Buffer(capacity=10, share=1)
    buffer.put(entry(ONE, "a"))
    buffer.put(entry(ONE, "lost"))
    buffer.ask_resync(ONE, "connected")
    buffer.ask_resync(ONE, "connected")
    # Still to be pushed, so it will find this too.
    buffer.put(entry(ONE, "lost"))
    batch = take(buffer)
    assert resyncs(batch) == [(1, "connected")]
    assert names(batch)[1:] == ["a"]
    buffer.done(batch)
    buffer.recover(0.0)
    assert buffer.held == 0


def test_a_forgotten_connection_is_pushed_but_not_resynced() -> None:
    buffer = Buffer(capacity=10, share=1)
    buffer.put(entry(ONE, "a"))
    buffer.put(entry(ONE, "lost"))
    buffer.forget(ONE)
    batch = take(buffer)
    assert names(batch) == ["a"]
    buffer.done(batch)
    buffer.recover(0.0)
    assert buffer.held == 0


def test_batches_are_bounded_in_bytes() -> None:
    buffer = Buffer(capacity=10_000, share=10_000)
    for number in range(5):
        buffer.put(entry(ONE, str(number), 600_000))
    assert len(take(buffer)) == 2
