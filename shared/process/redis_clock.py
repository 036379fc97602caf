"""Redis's clock, for the age of events: the hosts of a listener and a worker need not agree on the time."""

from __future__ import annotations

import threading
import time

import redis

_REFRESH_SECONDS = 10.0


class RedisClock:
    """Redis's time in ms, kept as an offset to the monotonic clock and refreshed every few seconds."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._offset_ms: float | None = None
        self._refresh_at = 0.0

    def now_ms(self) -> int | None:
        """Return the time; None if Redis has not been reached yet."""
        if time.monotonic() >= self._refresh_at and self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return None if self._offset_ms is None else int(time.monotonic() * 1000 + self._offset_ms)

    def _refresh(self) -> None:
        self._refresh_at = time.monotonic() + _REFRESH_SECONDS
        try:
            seconds, micros = self._client.time()
        except redis.RedisError:
            return
        self._offset_ms = seconds * 1000 + micros / 1000 - time.monotonic() * 1000
