"""Exponential back-off with full jitter. Pure: time and randomness are parameters.

https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

_FIRST_SECONDS = 1.0
_SLOWEST_SECONDS = 300.0
#: A socket that was open for this long starts again at the first delay; a handshake alone does not.
STABLE_SECONDS = 30.0


def delay_seconds(failures: int, jitter: float, *, first: float = _FIRST_SECONDS, slowest: float) -> float:
    """Return a delay whose ceiling doubles from `first` to `slowest`.

    Args:
        failures: In a row, the last one included: 1 or more.
        jitter: Uniform in [0, 1).
    """
    # Beyond 64 doublings every ceiling is the slowest; without the bound the power would grow for ever.
    return float(min(slowest, first * 2 ** min(failures - 1, 64)) * jitter)


class Backoff:
    """The delays of one socket."""

    def __init__(self) -> None:
        self._failures = 0

    def next_delay_seconds(self, *, open_seconds: float, lasting: bool, jitter: float) -> float:
        """Count a failure and return how long to wait before the next attempt.

        Args:
            open_seconds: How long the socket had been open; 0 when it could not be opened.
            lasting: The cause will not go away by itself: wait at the slow end at once, at least half of it.
            jitter: Uniform in [0, 1).
        """
        if open_seconds >= STABLE_SECONDS:
            self._failures = 0
        self._failures += 1
        if lasting:
            return _SLOWEST_SECONDS / 2 * (1 + jitter)
        return delay_seconds(self._failures, jitter, slowest=_SLOWEST_SECONDS)
