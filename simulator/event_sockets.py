"""An event websocket: written to from a queue, so that a reader who stalls holds up nobody."""

import asyncio
import time

from aiohttp import web


class EventSocket:
    """One websocket to `/events`. It keeps its place when a newer one takes its apps, but hears nothing more."""

    def __init__(self, websocket: web.WebSocketResponse, transport: asyncio.Transport, write_timeout_seconds: float):
        self._websocket = websocket
        self._transport = transport
        self._write_timeout_seconds = write_timeout_seconds
        self._unsent: asyncio.Queue[str] = asyncio.Queue()
        self._dead = False
        self.opened_at = time.monotonic()

    def send(self, text: str) -> None:
        """Queues one event."""
        if not self._dead:
            self._unsent.put_nowait(text)

    async def write(self) -> None:
        """Writes what is queued, in order, until it is cancelled; a reader that stalls is cut off."""
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
        """Leaves the TCP connection open, but neither reads nor writes (nor answers a ping) any more."""
        self._dead = True
        self._transport.pause_reading()
