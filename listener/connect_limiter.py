"""Sockets are opened a few at a time: thousands of handshakes at once would hold up the heartbeat behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

#: 2,000 at once made a heartbeat 2.2 s late (measured); after 3 s we would count as dead.
_AT_ONCE = 50
#: Hosts that do not answer keep nobody waiting for longer.
_HOLD_SECONDS = 0.5


class Turns:
    """At most `at_once` turns, each counted for at most `hold_seconds` of its time."""

    def __init__(self, at_once: int = _AT_ONCE, hold_seconds: float = _HOLD_SECONDS) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._hold_seconds = hold_seconds

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn and holds it."""
        await self._free.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._free.release()

        expiry = asyncio.get_running_loop().call_later(self._hold_seconds, give_back)
        try:
            yield
        finally:
            expiry.cancel()
            give_back()
