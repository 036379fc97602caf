"""What a listener puts on the wire of an event socket, frame by frame: an unsolicited PONG kills some Asterisks."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import replace
from typing import Self

import pytest

from listener import websocket
from tests.support.listener_harness import Asterisk, Scheduler, assignment, listening
from tests.support.scenes import play, until

pytestmark = pytest.mark.services

CONTINUATION, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10
FIN = 0x80
Frame = tuple[int, bytes]


class RawServer:
    """A websocket server without a library: it keeps the frames that it is sent, and sends what it is told."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.writer: asyncio.StreamWriter | None = None
        self.answering = True

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        self._server.close()
        await self._server.wait_closed()

    def sent(self, opcode: int) -> list[bytes]:
        return [payload for kind, payload in self.frames if kind == opcode]

    def send(self, opcode: int, payload: bytes, *, fin: int = FIN) -> None:
        assert self.writer is not None
        self.writer.write(bytes((fin | opcode, len(payload))) + payload)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
        digest = hashlib.sha1(key.split(b":")[1].strip() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        accept = base64.b64encode(digest)
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.writer = writer
        while True:
            try:
                head, length = await reader.readexactly(2)
                mask, payload = await reader.readexactly(4), await reader.readexactly(length & 0x7F)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            frame = head & 0x0F, bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
            self.frames.append(frame)
            if self.answering and frame[0] == PING:
                self.send(PONG, frame[1])


def test_pings_and_one_pong_for_each_ping_are_all_that_a_listener_sends(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_PING_SECONDS", 0.05)

    async def scene() -> None:
        async with RawServer() as pbx, listening(scheduler.url) as listener:
            ours = replace(assignment(Asterisk()), endpoint=f"http://127.0.0.1:{pbx.port}")
            scheduler.assign(listener.id, ours)
            await until(lambda: scheduler.is_connected(listener.id, ours), "connected")
            await until(lambda: len(pbx.sent(PING)) >= 3, "its own pings")
            assert {opcode for opcode, _ in pbx.frames} == {PING}, "an idle socket: nothing but pings"
            # A PONG that answers nothing, an event, one in two pieces, one that cannot be read: none gets an answer.
            pbx.send(PONG, b"unasked")
            pbx.send(TEXT, b'{"type": "Dial"}')
            pbx.send(TEXT, b'{"type": ', fin=0)
            pbx.send(CONTINUATION, b'"StasisEnd"}')
            pbx.send(TEXT, b"{")
            pings = [b"", b"one", b"two"]
            for ping in pings:
                pbx.send(PING, ping)
            await until(lambda: len(pbx.sent(PONG)) >= len(pings), "answered")
            before = len(pbx.sent(PING))
            await until(lambda: len(pbx.sent(PING)) >= before + 3, "and goes on")
            assert pbx.sent(PONG) == pings
            assert {opcode for opcode, _ in pbx.frames} == {PING, PONG}
            # Unanswered, it closes: no PONG either.
            pbx.answering = False
            await until(lambda: bool(pbx.sent(CLOSE)), "closed")
            assert pbx.sent(PONG) == pings

    play(scene())


def test_a_socket_that_is_revoked_says_close_and_nothing_else(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with RawServer() as pbx, listening(scheduler.url) as listener:
            ours = replace(assignment(Asterisk()), endpoint=f"http://127.0.0.1:{pbx.port}")
            scheduler.assign(listener.id, ours)
            await until(lambda: scheduler.is_connected(listener.id, ours), "connected")
            scheduler.assign(listener.id)
            await until(lambda: bool(pbx.frames), "closed")
            assert [opcode for opcode, _ in pbx.frames] == [CLOSE]

    play(scene())
