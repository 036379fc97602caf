"""How long to wait before trying again. Pure: time and chance are given."""

from __future__ import annotations

_FIRST_SECONDS = 1.0
_SLOWEST_SECONDS = 300.0
#: A socket that was open for this long begins at the first step again; a handshake alone does not.
STABLE_SECONDS = 30.0


def delay_seconds(failures: int, jitter: float, *, first: float = _FIRST_SECONDS, slowest: float) -> float:
    """Doubles from `first` to `slowest`, with full jitter.

    Args:
        failures: In a row, the last one included: 1 or more.
        chance: Uniform in [0, 1).
    """
    # Beyond 64 doublings every ceiling is the slowest; without the bound the power would grow for ever.
    return float(min(slowest, first * 2 ** min(failures - 1, 64)) * jitter)


class Ladder:
    """The back-off of one socket."""

    def __init__(self) -> None:
        self._failures = 0

    def next_delay_seconds(self, *, open_seconds: float, lasting: bool, jitter: float) -> float:
        """After a failure: how long to wait.

        Args:
            open_seconds: How long the socket had been open; 0 when it could not be opened.
            lasting: Trying soon will not help: goes straight to the slow end, at least half of it.
            chance: Uniform in [0, 1).
        """
        if open_seconds >= STABLE_SECONDS:
            self._failures = 0
        self._failures += 1
        if lasting:
            return _SLOWEST_SECONDS / 2 * (1 + jitter)
        return delay_seconds(self._failures, jitter, slowest=_SLOWEST_SECONDS)
