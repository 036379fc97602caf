"""Redis's clock, read without asking: an offset to our monotonic clock, renewed with every heartbeat."""

from __future__ import annotations

import time
from collections.abc import Callable


class RedisClock:
    """Tells Redis's time in ms. Reads 0 before the first heartbeat; no socket is open then."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset_ms: float | None = None

    def adjust(self, redis_ms: int, *, asked: float, answered: float) -> None:
        """Learns from one answer of Redis.

        Args:
            redis_ms: What Redis's clock said.
            asked: Our monotonic clock before the request; `answered` after it.
        """
        offset_ms = redis_ms - (asked + answered) / 2 * 1000
        # Redis answered somewhere between the two: what lies within says nothing new, so the clock does not jitter.
        doubt_ms = (answered - asked) / 2 * 1000 + 1
        if self._offset_ms is None or abs(offset_ms - self._offset_ms) > doubt_ms:
            self._offset_ms = offset_ms

    def now_ms(self) -> int:
        """Redis's time now."""
        if self._offset_ms is None:
            return 0
        return int(self._monotonic() * 1000 + self._offset_ms)
