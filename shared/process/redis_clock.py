"""Redis's clock, for the age of events: the hosts of a listener and a worker need not agree on the time.

It is read without a request: as an offset to the monotonic clock, adjusted whenever Redis tells its time. It may be set
back or forth: then it tells no age for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis

_REFRESH_SECONDS = 10.0
#: An age above this is judged by Redis's time as it is now. A clock that goes differently by more was set.
_DOUBTFUL_MS = 1000.0
#: As it is now: not older than this. Of many old events each would ask.
_NOW_SECONDS = 0.1
#: A server that is master no more refuses no request for its time: so long at most it is asked by one connection.
_CONNECTED_SECONDS = 1.0
#: For so long after that, what is older may be of the time before.
_SET_SECONDS = 60.0


class RedisClock:
    """Tells Redis's time in ms; the owner passes on what Redis says."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset_ms: float | None = None
        self._set_at = float("-inf")

    @property
    def was_set(self) -> bool:
        """True if Redis's clock was set lately."""
        return self._monotonic() - self._set_at < _SET_SECONDS

    def adjust(self, redis_ms: float, *, asked: float, answered: float) -> None:
        """Correct the offset by one answer of Redis.

        Args:
            redis_ms: Redis's time.
            asked: The monotonic clock before the request; `answered`: after it.
        """
        offset_ms = redis_ms - (asked + answered) / 2 * 1000
        # Redis answered somewhere between the two: a difference within that is no news, so the clock does not jitter.
        doubt_ms = (answered - asked) / 2 * 1000 + 1
        if self._offset_ms is None:
            self._offset_ms = offset_ms
        elif (difference_ms := abs(offset_ms - self._offset_ms)) > doubt_ms:
            self._offset_ms = offset_ms
            if difference_ms > doubt_ms + _DOUBTFUL_MS:
                self._set_at = self._monotonic()

    def now_ms(self) -> int | None:
        """Return Redis's time; None before the first `adjust`."""
        return None if self._offset_ms is None else int(self._monotonic() * 1000 + self._offset_ms)


class PollingRedisClock:
    """A clock that asks Redis for its time itself, now and then, when it is read. Thread-safe."""

    def __init__(self, client: redis.Redis, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._monotonic = monotonic
        self._clock = RedisClock(monotonic)
        self._lock = threading.Lock()
        self._refresh_at = 0.0
        self._connected_until = float("-inf")

    def now_ms(self) -> int | None:
        """Return Redis's time; None when Redis has not been reached yet."""
        if self._monotonic() >= self._refresh_at and self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return self._clock.now_ms()

    def age_ms(self, at_ms: int) -> float:
        """Return how long ago a moment of Redis's clock was; 0 when that is not known."""
        now_ms = self.now_ms()
        if now_ms is not None and now_ms - at_ms > _DOUBTFUL_MS:
            with self._lock:
                if self._monotonic() >= self._refresh_at - _REFRESH_SECONDS + _NOW_SECONDS:
                    self._refresh()
            now_ms = self._clock.now_ms()
        if now_ms is None or (self._clock.was_set and now_ms - at_ms > _DOUBTFUL_MS):
            return 0.0
        return max(0.0, now_ms - at_ms)

    def _refresh(self) -> None:
        asked = self._monotonic()
        self._refresh_at = asked + _REFRESH_SECONDS
        if asked >= self._connected_until:
            self._client.connection_pool.disconnect(inuse_connections=False)
            self._connected_until = asked + _CONNECTED_SECONDS
        try:
            seconds, micros = self._client.time()
        except redis.RedisError:
            return
        self._clock.adjust(seconds * 1000 + micros / 1000, asked=asked, answered=self._monotonic())
