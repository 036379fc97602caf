"""The lease under which sockets may be opened: valid only for a short time after the assignments were read from Redis.

A listener that is cut off from Redis must not open sockets: by then another listener may have been given its
connections, and in Asterisk the newest socket of an app wins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class AssignmentLease:
    """Valid for `seconds` after each renewal. Also ends while the process is suspended: the clock decides.

    Args:
        seconds: Less than the scheduler waits before it gives this listener's connections to others.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._renewed_at: float | None = None
        self._renewed = asyncio.Event()

    @property
    def valid(self) -> bool:
        """Whether a socket may be opened now."""
        return self._renewed_at is not None and self._monotonic() - self._renewed_at <= self._seconds

    def renew(self, asked: float) -> None:
        """Start the lease again at `asked`: when, by the monotonic clock, Redis was asked for the assignments."""
        self._renewed_at = asked
        self._renewed.set()

    def revoke(self) -> None:
        """End the lease until it is renewed."""
        self._renewed_at = None

    async def wait_valid(self) -> None:
        """Wait until sockets may be opened."""
        while not self.valid:
            self._renewed.clear()
            await self._renewed.wait()
