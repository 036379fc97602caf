"""Exponential back-off with full jitter. Pure: time and randomness are parameters.

https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

from enum import StrEnum

_FIRST_SECONDS = 1.0
#: Without an answer, and with one that may not last, an attempt is made at least this often for so long: a caller of
#: an Asterisk that restarts waits no longer than this. Later the ceiling goes on doubling.
_PROMPT_SECONDS = 8.0
_PROMPT_FOR_SECONDS = 600.0
_SLOWEST_SECONDS = 300.0
#: A permanent answer counts as permanent when it has lasted for this long.
LASTING_SECONDS = 60.0
#: Least and most, once it has.
_SLOW_SECONDS = (200.0, 300.0)
#: Least and most, until it has, for credentials: eight attempts in the first minute, and two in the nine after it.
_DENIED_SECONDS = (8.6, 9.4)
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


class Cause(StrEnum):
    """Why a socket is not open, as far as it matters for the next attempt."""

    #: It may go away by itself.
    PASSING = "passing"
    #: An answer that says so for good: a 404, a forbidden address. A booting Asterisk gives it, too, so it has to last.
    PERMANENT = "permanent"
    #: The same about the credentials. Some hosts lock a user out who tries too often.
    DENIED = "denied"
    #: We closed it: its Asterisk sends more than is served.
    FLOODED = "flooded"


class Backoff:
    """The delays of one socket."""

    def __init__(self) -> None:
        self._failures = 0
        self._failing_since = 0.0
        #: Since when each attempt has got a permanent answer; None if the last one did not.
        self._permanent_since: float | None = None

    def next_delay_seconds(self, cause: Cause, *, now: float, open_seconds: float, jitter: float) -> float:
        """Count a failure and return how long to wait before the next attempt.

        Args:
            now: Seconds since an arbitrary moment.
            open_seconds: How long the socket had been open; 0 when it could not be opened.
            jitter: Uniform in [0, 1).
        """
        if open_seconds >= STABLE_SECONDS or not self._failures:
            self._failures, self._failing_since = 0, now
        self._failures += 1
        if cause is Cause.PASSING or open_seconds > 0:
            self._permanent_since = None
        elif self._permanent_since is None:
            self._permanent_since = now
        if cause is Cause.FLOODED or self._has_lasted(now):
            return _between(_SLOW_SECONDS, jitter)
        if cause is Cause.DENIED:
            return _between(_DENIED_SECONDS, jitter)
        is_prompt = now - self._failing_since < _PROMPT_FOR_SECONDS
        return delay_seconds(self._failures, jitter, slowest=_PROMPT_SECONDS if is_prompt else _SLOWEST_SECONDS)

    def _has_lasted(self, now: float) -> bool:
        return self._permanent_since is not None and now - self._permanent_since >= LASTING_SECONDS


def _between(bounds: tuple[float, float], jitter: float) -> float:
    least, most = bounds
    return least + (most - least) * jitter
