"""A token bucket: what may be spent at once, and how fast it comes back. Pure; the time is a parameter."""

from __future__ import annotations


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
