"""Limits how many sockets are opened at once: thousands of handshakes would delay the heartbeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

#: 2,000 at once made a heartbeat 2.2 s late (measured); after 3 s the scheduler would count the listener as lost.
_SLOTS = 50
#: A host that does not answer occupies its slot no longer than this.
_SLOT_SECONDS = 0.5


class ConnectLimiter:
    """A semaphore of `slots`, each occupied for at most `slot_seconds` of the time its user takes."""

    def __init__(self, slots: int = _SLOTS, slot_seconds: float = _SLOT_SECONDS) -> None:
        self._free = asyncio.Semaphore(slots)
        self._slot_seconds = slot_seconds

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and occupy it."""
        await self._free.acquire()
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._free.release()

        expiry = asyncio.get_running_loop().call_later(self._slot_seconds, release)
        try:
            yield
        finally:
            expiry.cancel()
            release()
