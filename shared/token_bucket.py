"""Token buckets: what may be spent at once, and how fast it comes back. Pure; the time is a parameter."""

from __future__ import annotations

from collections import OrderedDict

#: Most keys of which a bucket is remembered.
_KEPT = 10_000


class TokenBucket:
    """Holds `burst` tokens at first and at most, and gains `per_second`. Not thread-safe.

    More may be taken than it holds, when the price of a thing is known only afterwards: the debt is paid by waiting.
    """

    def __init__(self, *, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        #: When it held so many. Seconds of a monotonic clock.
        self._at = float("-inf")

    def wait_seconds(self, now: float, tokens: float = 0.0) -> float:
        """Return how long until it holds so many tokens; 0 if it does."""
        return max(0.0, tokens - self._level(now)) / self._per_second

    def take(self, tokens: float, now: float) -> None:
        """Take tokens, held or not."""
        self._tokens, self._at = self._level(now) - tokens, now

    def is_full(self, now: float) -> bool:
        """True if it is as it was at first: it may be forgotten."""
        return self._level(now) >= self._burst

    def _level(self, now: float) -> float:
        return min(self._burst, self._tokens + (now - self._at) * self._per_second)


class TokenBuckets:
    """A token bucket for each key; the one used least recently is forgotten first. Not thread-safe."""

    def __init__(self, *, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        #: Key → its bucket, and how many tokens it was refused since it last got one.
        self._buckets: OrderedDict[object, tuple[TokenBucket, int]] = OrderedDict()

    def take(self, key: object, now: float) -> int | None:
        """Take a token; return how many were refused since the last one, or None if this one is."""
        bucket, refused = self._buckets.pop(key) if key in self._buckets else (self._new(), 0)
        is_granted = bucket.wait_seconds(now, 1.0) == 0
        if is_granted:
            bucket.take(1.0, now)
        self._buckets[key] = bucket, 0 if is_granted else refused + 1
        if len(self._buckets) > _KEPT:
            self._buckets.popitem(last=False)
        return refused if is_granted else None

    def _new(self) -> TokenBucket:
        return TokenBucket(per_second=self._per_second, burst=self._burst)
