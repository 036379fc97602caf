"""A circuit breaker for all threads of a process: keeps its state, and tells of its changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shared import errors
from shared.asterisk import breaker
from shared.asterisk.breaker import Breaker, State

#: While it stays open this is told again, as long as requests are made: what was not repeated has passed.
NOTED_SECONDS = 30.0

#: Told of an opening (True), while it goes on every NOTED_SECONDS, or of a closing (False); with the reason.
Told = Callable[[bool, str], None]


class Circuit:
    """The breaker of one Asterisk.

    Args:
        told: Called in the thread that met it, outside the lock.
        clock: Seconds; a parameter for tests.
    """

    def __init__(self, told: Told | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._told = told
        self._clock = clock
        self._lock = threading.Lock()
        self._breaker = Breaker()
        self._told_at = float("-inf")

    @property
    def state(self) -> State:
        """Its state now."""
        return self._breaker.state

    def check(self, who: object) -> None:
        """Raises AsteriskUnreachable when a request of the step `who` would not be let through just now."""
        _admitted(self._breaker, who, self._clock())

    def enter(self, who: object) -> None:
        """Lets a request of the step `who` through. Raises AsteriskUnreachable when it must not be sent."""
        with self._lock:
            self._breaker = _admitted(self._breaker, who, self._clock())

    def answered(self) -> None:
        """There was an answer."""
        # Nearly always so, and worth no lock.
        if self._breaker == Breaker():
            return
        with self._lock:
            before, self._breaker = self._breaker, breaker.answered(self._breaker)
            news = before.state is not State.CLOSED
        if news:
            self._tell(False, "it answers again")

    def unanswered(self, who: object, reason: str) -> None:
        """There was none to a request of the step `who`."""
        now = self._clock()
        with self._lock:
            before, self._breaker = self._breaker, breaker.unanswered(self._breaker, who, reason, now)
            opened = self._breaker.state is State.OPEN and before.state is not State.OPEN
            news = opened and (before.state is State.CLOSED or now - self._told_at >= NOTED_SECONDS)
            if news:
                self._told_at = now
        if news:
            self._tell(True, reason)

    def _tell(self, opened: bool, reason: str) -> None:
        if self._told is not None:
            self._told(opened, reason)


def _admitted(before: Breaker, who: object, now: float) -> Breaker:
    after = breaker.admit(before, who, now)
    if after is None:
        reason = f"left alone for a moment, having given no answer {before.failures} times in a row: {before.reason}"
        raise errors.AsteriskUnreachable(reason, may_have_acted=False)
    return after


class Closed(Circuit):
    """One that never opens, for whoever asks a few times and wants every answer."""

    def unanswered(self, who: object, reason: str) -> None:
        """Changes nothing."""
