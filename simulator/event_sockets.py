"""Event websockets, written from a queue so that a client that stops reading delays no other."""

import asyncio
import time

from aiohttp import web


class EventSocket:
    """One websocket to `/events`. It stays open when a newer one takes over its apps, but gets no further event."""

    def __init__(self, websocket: web.WebSocketResponse, transport: asyncio.Transport, write_timeout_seconds: float):
        self._websocket = websocket
        self._transport = transport
        self._write_timeout_seconds = write_timeout_seconds
        self._unsent: asyncio.Queue[str] = asyncio.Queue()
        self._dead = False
        self.opened_at = time.monotonic()

    def send(self, text: str) -> None:
        """Queues an event."""
        if not self._dead:
            self._unsent.put_nowait(text)

    async def write(self) -> None:
        """Writes the queued events in order until cancelled; cuts off a client that stops reading."""
        while True:
            text = await self._unsent.get()
            try:
                async with asyncio.timeout(self._write_timeout_seconds):
                    await self._websocket.send_str(text)
            except (TimeoutError, ConnectionError):
                self.cut()
                return

    def cut(self) -> None:
        """Drops the TCP connection, without a close frame."""
        self._dead = True
        self._transport.abort()

    def fall_silent(self) -> None:
        """Keeps the TCP connection open, but neither reads nor writes nor answers pings from now on."""
        self._dead = True
        self._transport.pause_reading()
