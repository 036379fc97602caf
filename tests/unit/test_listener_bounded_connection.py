"""What one turn reads of a connection, on a transport that only counts."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from listener.bounded_connection import BoundedConnection, Flooded, ReadLimits
from listener.read_turns import ReadTurns

LIMITS = ReadLimits(
    read_bytes=2048,
    turn_frames=100,
    turn_seconds=60.0,
    frames_per_second=1000,
    bytes_per_second=1_000_000,
    message_bytes=2**20,
    lag_seconds=10.0,
)
PIECE_FRAMES = 128
TEXT, PING = 0x1, 0x9


class Transport(asyncio.Transport):
    """Holds the protocol, and whether it may be read."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.is_paused = False
        self.is_aborted = False
        self.written: list[bytes] = []

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.written.append(data)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        self.is_aborted = True


class Scene:
    """An open connection."""

    def __init__(self, limits: ReadLimits = LIMITS) -> None:
        self.later: deque[Callable[[], None]] = deque()
        turns = ReadTurns(0.0001, lambda _seconds, call: self.later.append(call))
        protocol = ClientProtocol(parse_uri("ws://pbx/"), max_size=limits.message_bytes)
        protocol.state = OPEN
        protocol.parser = protocol.parse()
        next(protocol.parser)
        self.connection = BoundedConnection(protocol, name="7:2", turns=turns, limits=limits, ping_interval=None)
        self.transport = Transport()
        self.connection.connection_made(self.transport)
        # The handshake is done.
        self.connection.response = Response(101, "", Headers())
        self.taken: list[bytes] = []

    async def passing(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.connection.pass_messages(self._take))
        await asyncio.sleep(0)
        return task

    def _take(self, message: bytes) -> bool:
        self.taken.append(message)
        return message != b"last"

    def receive(self, data: bytes) -> None:
        """As the event loop does: no more than the buffer holds, and nothing while it is paused."""
        reads = self.transport.protocol
        while data and not self.transport.is_paused:
            buffer = reads.get_buffer(-1)
            part, data = data[: len(buffer)], data[len(buffer) :]
            buffer[: len(part)] = part
            reads.buffer_updated(len(part))


def frame(opcode: int, body: bytes = b"", *, fin: bool = True) -> bytes:
    return bytes([opcode | (0x80 if fin else 0), len(body)]) + body


@pytest.mark.parametrize("one", [frame(TEXT, b""), frame(PING), frame(0xA)], ids=["text", "ping", "pong"])
def test_tiny_frames_are_read_so_many_in_a_turn_and_no_more_is_fetched_meanwhile(one: bytes) -> None:
    async def scene() -> None:
        played = Scene()
        task = await played.passing()
        played.receive(one * 100_000)
        assert played.transport.is_paused
        frames = [played.connection.frames_read]
        while played.transport.is_paused:
            played.later.popleft()()
            frames.append(played.connection.frames_read)
        assert frames[-1] == LIMITS.read_bytes // len(one)
        assert max(after - before for before, after in itertools.pairwise([0, *frames])) <= PIECE_FRAMES
        task.cancel()

    asyncio.run(scene())


def test_messages_arrive_whole_and_in_order_however_they_are_cut() -> None:
    async def scene() -> None:
        played = Scene()
        task = await played.passing()
        parts = frame(TEXT, b"a" * 100) + frame(TEXT, b"b", fin=False) + frame(0, b"", fin=False) + frame(PING)
        sent = parts + frame(0, b"c") + frame(TEXT, b"d" * 120)
        for at in range(0, len(sent), 7):
            played.receive(sent[at : at + 7])
            while played.later:
                played.later.popleft()()
        assert played.taken == [b"a" * 100, b"bc", b"d" * 120]
        assert len(played.transport.written) == 1
        task.cancel()

    asyncio.run(scene())


def test_nothing_is_taken_after_the_last_message() -> None:
    async def scene() -> None:
        played = Scene()
        task = await played.passing()
        played.receive(frame(TEXT, b"last") + frame(TEXT, b"more"))
        await task
        assert played.taken == [b"last"]

    asyncio.run(scene())


def test_what_came_with_the_handshake_is_passed_on() -> None:
    async def scene() -> None:
        played = Scene()
        played.receive(frame(TEXT, b"early"))
        task = await played.passing()
        assert played.taken == [b"early"]
        task.cancel()

    asyncio.run(scene())


def test_a_rest_that_waits_is_read_when_the_connection_is_lost() -> None:
    async def scene() -> None:
        played = Scene()
        task = await played.passing()
        played.receive(frame(TEXT) * 900 + frame(TEXT, b"last"))
        assert played.transport.is_paused
        played.transport.protocol.connection_lost(None)
        await task
        assert played.taken[-1] == b"last"
        while played.later:
            played.later.popleft()()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (frame(PING), "more than 1000 websocket frames a second"),
        (frame(TEXT, b"x" * 100), "more than 20000 bytes a second"),
        (frame(TEXT, b"x", fin=False)[:1] + b"\x00", "more than could be read, for 0 s"),
    ],
    ids=["frames", "bytes", "lag"],
)
def test_a_peer_that_sends_too_much_is_cut_off_at_once(one: bytes, words: str) -> None:
    async def scene() -> None:
        played = Scene(
            replace(
                LIMITS,
                bytes_per_second=20_000 if "bytes" in words else 1_000_000,
                lag_seconds=1e-9 if "read" in words else 10.0,
            )
        )
        task = await played.passing()
        for _ in range(1000):
            played.receive(one * (LIMITS.read_bytes // len(one)))
            while played.later:
                played.later.popleft()()
            if played.transport.is_aborted:
                break
        with pytest.raises(Flooded, match=words):
            await task

    asyncio.run(scene())


def test_a_burst_after_a_silence_is_no_lag() -> None:
    async def scene() -> None:
        played = Scene(replace(LIMITS, lag_seconds=0.2))
        task = await played.passing()
        await asyncio.sleep(0.3)
        played.receive(frame(TEXT, b"x" * 100) * 60)
        while played.later:
            played.later.popleft()()
        assert not played.transport.is_aborted
        task.cancel()

    asyncio.run(scene())
