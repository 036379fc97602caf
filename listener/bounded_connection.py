"""A websocket connection whose peer is not trusted: what it sends is read in small pieces, when it is its turn.

By itself websockets parses all that one read of the event loop brings, 250 kB with uvloop. Of 2-byte frames that is
0.7 s (measured), in which no other socket is read and no heartbeat is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio import client
from websockets.client import ClientProtocol
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import Event

from listener.read_turns import ReadTurns
from shared.token_bucket import TokenBucket

#: A piece of 2-byte frames takes 0.6 ms, an event of usual size 5 pieces of 1 µs (measured).
_PIECE_BYTES = 256
#: So many seconds' worth may come at once: what came together after an outage is no reason to close a socket.
BURST_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """What one event socket may bring."""

    #: One read of the socket brings at most so much.
    read_bytes: int
    #: It is read in one turn of the event loop until one of these is used up. Control frames count.
    turn_frames: int
    turn_seconds: float
    #: Above these it is closed.
    frames_per_second: int
    bytes_per_second: int
    message_bytes: int
    #: A socket that always has more to read is closed after this time.
    lag_seconds: float


class Flooded(Exception):
    """The connection was cut because its peer sent more than it may; the text says of what."""


class BoundedConnection(client.ClientConnection):
    """A connection that passes its messages on by itself, instead of keeping them for `recv`.

    Args:
        name: For `ReadTurns`.
        options: As `ClientConnection`.
    """

    def __init__(
        self, protocol: ClientProtocol, *, name: str, turns: ReadTurns, limits: ReadLimits, **options: Any
    ) -> None:
        super().__init__(protocol, **options)
        self.name = name
        self.reads_behind = 0
        self.expected_seconds = limits.turn_seconds
        self._turns = turns
        self._limits = limits
        now = time.monotonic()
        self._frames, self._bytes = (
            TokenBucket(per_second=each, burst=each * BURST_SECONDS)
            for each in (limits.frames_per_second, limits.bytes_per_second)
        )
        self._unread = b""
        #: The last read of the transport did not fill the buffer.
        self._was_last = True
        self._behind_since = now
        #: What was read waits for its turn; until then the transport reads nothing.
        self._waits = False
        #: Control frames included.
        self.frames_read = 0
        self._fragments = bytearray()
        self._messages: list[bytes] = []
        #: Takes the next message; returns False if it wants no other.
        self._take: Callable[[bytes], bool] | None = None
        self._ended: asyncio.Future[None] = self.loop.create_future()
        self._error: Exception | None = None

    async def pass_messages(self, take: Callable[[bytes], bool]) -> None:
        """Pass each message to `take`, until it returns False.

        Raises:
            ConnectionClosed: The connection was closed.
            Flooded: It was cut because its peer sent too much.
        """
        self._take = take
        self._pass_on()
        try:
            await self._ended
        finally:
            self._take = _refuse
        if self._error is not None:
            raise self._error

    def _end(self, error: Exception | None) -> None:
        """Pass nothing on any more. The first reason counts; None if no further message was wanted."""
        if not self._ended.done():
            self._error = error
            self._ended.set_result(None)
            if self._take is not None:
                self._take = _refuse

    # ── what the transport calls ─────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Read through a buffer of a size of our own."""
        super().connection_made(transport)
        self.transport.set_protocol(_SmallReads(self, self._limits.read_bytes))

    def data_received(self, data: bytes) -> None:
        """Read the data, now or when it is this connection's turn."""
        if self.is_caught_up:
            self._behind_since = time.monotonic()
        self._unread += data
        self._was_last = len(data) < self._limits.read_bytes
        if not (self._waits or self._turns.ready(self)):
            self._waits = True
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """Read the rest, a buffer at most: it may end with the reason."""
        self._read_rest()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Read the rest, a buffer at most."""
        self._read_rest()
        super().connection_lost(exc)
        self._end(self.close_exc)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_caught_up(self) -> bool:
        """True if all was read that the peer has sent so far."""
        return self._was_last and not self._unread

    def read_some(self) -> bool:
        """Read as much as one turn may bring; return True if more waits."""
        unread_before, frames_before = len(self._unread), self.frames_read
        ends_at = time.perf_counter() + self._limits.turn_seconds
        while self._unread:
            self._read_piece()
            if self.frames_read - frames_before >= self._limits.turn_frames or time.perf_counter() >= ends_at:
                break
        self._charge(self.frames_read - frames_before, unread_before - len(self._unread))
        if self._unread:
            return True
        if self._waits:
            self._waits = False
            self.transport.resume_reading()
        return False

    def _read_rest(self) -> None:
        while self._unread:
            self._read_piece()

    def _read_piece(self) -> None:
        piece, self._unread = self._unread[:_PIECE_BYTES], self._unread[_PIECE_BYTES:]
        super().data_received(piece)
        if self._messages:
            self._pass_on()

    def process_event(self, event: Event) -> None:
        """Count the frame, and put messages together here."""
        self.frames_read += 1
        if not isinstance(event, Frame) or event.opcode not in DATA_OPCODES:
            super().process_event(event)
        elif event.fin and not self._fragments:
            self._messages.append(bytes(event.data))
        else:
            # In one place: a message may have a million fragments.
            self._fragments += event.data
            if event.fin:
                self._messages.append(bytes(self._fragments))
                self._fragments.clear()

    def _pass_on(self) -> None:
        if self._take is None:
            return
        messages, self._messages = self._messages, []
        try:
            for message in messages:
                if not self._take(message):
                    self._end(None)
        except Exception as exc:  # noqa: BLE001 - raised again by pass_messages
            self._end(exc)

    def _charge(self, frames: int, size: int) -> None:
        """Cut the connection if its peer sends too much."""
        now, limits = time.monotonic(), self._limits
        self._frames.take(frames, now)
        self._bytes.take(size, now)
        if self._frames.wait_seconds(now):
            self._cut(f"more than {limits.frames_per_second} websocket frames a second")
        elif self._bytes.wait_seconds(now):
            self._cut(f"more than {limits.bytes_per_second} bytes a second")
        elif not self.is_caught_up and now - self._behind_since > limits.lag_seconds:
            self._cut(f"more than could be read, for {limits.lag_seconds:.0f} s")

    def _cut(self, excess: str) -> None:
        self._unread = b""
        self._end(Flooded(excess))
        # Without the closing handshake: the peer would not keep to it.
        self.transport.abort()


class _SmallReads(asyncio.BufferedProtocol):
    """Takes the place of a connection at its transport, with a buffer that bounds what one read brings."""

    def __init__(self, connection: BoundedConnection, size: int) -> None:
        self._buffer = memoryview(bytearray(size))
        self._connection = connection

    def get_buffer(self, _size_hint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        self._connection.data_received(bytes(self._buffer[:size]))

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


def _refuse(_message: bytes) -> bool:
    return True
