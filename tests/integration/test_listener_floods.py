"""An event socket that is flooded: closed with a reason and tried slowly, and no other tenant notices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from websockets.utils import accept_key

from shared.assignments import SocketState
from tests.support.listener_harness import (
    Asterisk,
    Scheduler,
    assignment,
    connected,
    error_of,
    listening,
    stasis_start,
    state_of,
)
from tests.support.scenes import play, until

pytestmark = pytest.mark.services

FRAGMENT = b"\x00\x01x"
LARGEST = b"\x81\x7f" + (2**18).to_bytes(8, "big") + b"[" * 2**18


@dataclass
class Flood:
    """A server that sends the same bytes over and over, as fast as they are read."""

    port: int = 0
    opened: int = 0


@contextlib.asynccontextmanager
async def flooding(first: bytes, again: bytes) -> AsyncIterator[Flood]:
    flood = Flood()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flood.opened += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            key = next(line.split(": ")[1] for line in request if line.lower().startswith("sec-websocket-key"))
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept_key(key).encode() + b"\r\n\r\n" + first
            )
            while not writer.is_closing():
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(0)
        writer.transport.abort()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    flood.port = server.sockets[0].getsockname()[1]
    try:
        yield flood
    finally:
        server.close()


@pytest.mark.parametrize(
    ("first", "again", "words"),
    [
        (b"", b"\x81\x01x" * 10_000, "more than 500 websocket frames a second"),
        (b"", b"\x89\x00" * 10_000, "more than 500 websocket frames a second"),
        (b"\x01\x01x", FRAGMENT * 10_000, "more than 500 websocket frames a second"),
        (b"", LARGEST, "more than 500000 bytes a second"),
    ],
    ids=["text", "pings", "fragments", "messages"],
)
def test_a_flood_is_closed_with_a_reason_and_tried_slowly_while_others_go_on(
    scheduler: Scheduler, first: bytes, again: bytes, words: str
) -> None:
    limits = {"event_frames_per_second": 500, "event_bytes_per_second": 500_000}

    async def scene() -> None:
        async with (
            Asterisk() as pbx,
            flooding(first, again) as flood,
            listening(scheduler.url, **limits) as listener,
        ):
            ours = assignment(pbx)
            hostile = replace(assignment(pbx, 2), endpoint=f"http://127.0.0.1:{flood.port}")
            scheduler.assign(listener.id, ours, hostile)
            await until(lambda: scheduler.is_connected(listener.id, ours), "connected")
            await until(lambda: words in error_of(scheduler, listener, hostile), "closed")
            assert error_of(scheduler, listener, hostile) == f"closed by us: Asterisk sent {words}"
            assert state_of(scheduler, listener, hostile) is SocketState.CONNECTING
            await pbx.send(stasis_start("of the other tenant"))
            await until(lambda: scheduler.callers() == ["of the other tenant"], "event of the other tenant")
            # Its pauses are 200 s at least; those of a connection that is lost would be 0.05 s here.
            await asyncio.sleep(0.5)
            assert flood.opened == 1
            await connected(scheduler, listener, ours)

    play(scene())
