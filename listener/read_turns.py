"""Whose bytes are read next: least attained service over the sockets of a listener.

While nothing waits, a socket is read at once. Under load the socket goes first whose reads have taken the least time
since it last had nothing left to read. So a socket that sends little waits for one read of another, and for one turn,
however many others flood. Under load reading takes half of the time at most: the rest is for the heartbeats, for Redis,
and for other processes.

https://en.wikipedia.org/wiki/Foreground-background
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Reader(Protocol):
    """A socket, as its turns see it. The seconds are kept by ReadTurns."""

    name: str
    #: How long its reads have taken since it last had nothing left to read.
    attained_seconds: float
    #: How long its next read is expected to take.
    expected_seconds: float

    @property
    def is_caught_up(self) -> bool:
        """True if it has nothing left to read, nor had the operating system."""

    def read_some(self) -> bool:
        """Read for a bounded time; return True if more waits. Raises nothing."""


class ReadTurns:
    """Lets readers read for `turn_seconds`, and after a pause of the same length again.

    Args:
        later: Calls a function after some seconds.
        clock: In seconds.
    """

    def __init__(
        self,
        turn_seconds: float,
        later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._turn_seconds = turn_seconds
        self._later = later
        self._clock = clock
        #: What each will have attained after its next read, arrival, reader: the smallest is next.
        self._waiting: list[tuple[float, int, Reader]] = []
        self._arrivals = itertools.count()
        #: When this turn began, and how long its reads took.
        self._began = clock()
        self._used_seconds = 0.0
        #: The next turn is due: only while readers wait, so that it costs nothing otherwise.
        self._scheduled = False
        #: The name of the reader that is reading; empty for none. Another thread may look at it.
        self.reading = ""

    def ready(self, reader: Reader) -> bool:
        """Note that there is something to read. Returns False if (more of) it waits for a turn."""
        now = self._clock()
        if not self._scheduled and now - self._began >= 2 * self._turn_seconds:
            self._began, self._used_seconds = now, 0.0
        if self._waiting or self._used_seconds >= self._turn_seconds:
            self._wait(reader)
            return False
        return not self._read(reader, now)

    def _read(self, reader: Reader, now: float) -> bool:
        """Let the reader read; return True if it waits for another turn."""
        self.reading = reader.name
        more = reader.read_some()
        spent = self._clock() - now
        self.reading = ""
        self._used_seconds += spent
        reader.attained_seconds = 0.0 if reader.is_caught_up else reader.attained_seconds + spent
        # One long read, with a garbage collection in it, says little about the next one.
        reader.expected_seconds = min(spent, self._turn_seconds)
        if more:
            self._wait(reader)
        return more

    def _wait(self, reader: Reader) -> None:
        attained = reader.attained_seconds + reader.expected_seconds
        heapq.heappush(self._waiting, (attained, next(self._arrivals), reader))
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._later(self._turn_seconds, self._next_turn)

    def _next_turn(self) -> None:
        self._began, self._used_seconds = self._clock(), 0.0
        while self._waiting and self._used_seconds < self._turn_seconds:
            self._read(heapq.heappop(self._waiting)[-1], self._clock())
        self._scheduled = False
        if self._waiting:
            self._schedule()
