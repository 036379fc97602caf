"""Whether sockets may be opened: only on assignments read just now, so never while we are cut off from Redis.

Another listener may hold our connections by then, and Asterisk lets the newest socket win.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Standing:
    """Good for `seconds` after each confirmation. Also across a suspended process: it goes by the clock.

    Args:
        seconds: Less than the scheduler waits before it gives our connections to others.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._confirmed: float | None = None
        self._changed = asyncio.Event()

    @property
    def good(self) -> bool:
        """Whether a socket may be opened now."""
        return self._confirmed is not None and self._monotonic() - self._confirmed <= self._seconds

    def confirm(self, asked: float) -> None:
        """Our assignments are known to be these since `asked`, by our monotonic clock."""
        self._confirmed = asked
        self._changed.set()

    def revoke(self) -> None:
        """From now on nothing is opened, until confirmed again."""
        self._confirmed = None

    async def wait(self) -> None:
        """Until sockets may be opened."""
        while not self.good:
            self._changed.clear()
            await self._changed.wait()
