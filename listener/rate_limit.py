"""A token bucket. Pure: time is a parameter.

https://en.wikipedia.org/wiki/Token_bucket
"""

from __future__ import annotations

#: A bucket holds this many seconds' worth: what came together after an outage is no reason to close a socket.
BURST_SECONDS = 10.0


class TokenBucket:
    """Full at first, filled at an even rate.

    Args:
        per_second: Tokens that are added each second.
        now: In seconds.
    """

    def __init__(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self._tokens = per_second * BURST_SECONDS
        self._filled_at = now

    def take(self, tokens: float, now: float) -> bool:
        """Take tokens out; return False if there were too few, which leaves a debt."""
        filled = self._tokens + (now - self._filled_at) * self.per_second
        self._tokens = min(filled, self.per_second * BURST_SECONDS) - tokens
        self._filled_at = now
        return self._tokens >= 0
