"""Whose bytes are read next: least attained service over the sockets of a listener.

While nothing waits, a socket is read at once. Under load the socket goes first that has had the fewest reads since it
last had nothing left to read. So a socket that sends little waits for one read of another, and for one turn, however
many others flood. Under load reading takes half of the time at most: the rest is for the heartbeats, for Redis, and for
other processes.

https://en.wikipedia.org/wiki/Foreground-background
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol

#: A socket that has kept up for this many reads goes before any that floods, for as many reads.
_MOST_CREDIT = -20
#: In turns. A read that took longer than that was interrupted.
_LONGEST_PAUSE = 25


class Reader(Protocol):
    """A socket, as its turns see it. ReadTurns keeps the numbers."""

    name: str
    #: Its reads since it last had nothing left to read; less than 0 for one that kept up before, so that it keeps up
    #: again. Each read is bounded, and a clock would count what else runs.
    reads_behind: int
    #: How long its next read is expected to take: decides between equals.
    expected_seconds: float

    @property
    def is_caught_up(self) -> bool:
        """True if it has nothing left to read, nor had the operating system."""

    def read_some(self) -> bool:
        """Read for a bounded time; return True if more waits. Raises nothing."""


class ReadTurns:
    """Lets readers read for `turn_seconds`, and after a pause of the same length again.

    A read that takes longer, as one that ends a large event, makes its turn longer, and the pause after it.

    Args:
        later: Calls a function after some seconds.
        clock: In seconds.
        loaded_clock: The clock while readers wait, by default the processor time of this thread: on a busy machine the
            time of the wall would end each turn after one read. It costs 2 µs, seven times as much as the other.
    """

    def __init__(
        self,
        turn_seconds: float,
        later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.perf_counter,
        loaded_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._turn_seconds = turn_seconds
        self._later = later
        self._clock = clock
        self._loaded_clock = loaded_clock
        #: Reads behind, expected seconds, arrival, reader: the smallest is next.
        self._waiting: list[tuple[int, float, int, Reader]] = []
        self._arrivals = itertools.count()
        #: How long the reads of this turn took, and when another one may begin.
        self._used_seconds = 0.0
        self._next_at = clock()
        #: The next turn is due: only while readers wait, so that it costs nothing otherwise.
        self._scheduled = False
        #: The name of the reader that is reading; empty for none. Another thread may look at it.
        self.reading = ""

    def ready(self, reader: Reader) -> bool:
        """Note that there is something to read. Returns False if (more of) it waits for a turn."""
        now = self._clock()
        if not self._scheduled and now >= self._next_at:
            self._begin(now)
        if self._waiting or self._used_seconds >= self._turn_seconds:
            self._wait(reader)
            return False
        return not self._read(reader, self._clock)

    def _begin(self, now: float) -> None:
        self._used_seconds, self._next_at = 0.0, now + 2 * self._turn_seconds

    @property
    def _pause_seconds(self) -> float:
        """How long reading pauses after this turn."""
        return min(max(self._turn_seconds, self._used_seconds), _LONGEST_PAUSE * self._turn_seconds)

    def _read(self, reader: Reader, clock: Callable[[], float]) -> bool:
        """Let the reader read; return True if it waits for another turn."""
        self.reading = reader.name
        began = clock()
        more = reader.read_some()
        spent = clock() - began
        self.reading = ""
        self._used_seconds += spent
        if self._used_seconds >= self._turn_seconds:
            self._next_at = self._clock() + self._pause_seconds
        if reader.is_caught_up:
            reader.reads_behind = max(_MOST_CREDIT, min(reader.reads_behind, 0) - 1)
        else:
            reader.reads_behind += 1
        # One long read, with a garbage collection in it, says little about the next one.
        reader.expected_seconds = min(spent, self._turn_seconds)
        if more:
            self._wait(reader)
        return more

    def _wait(self, reader: Reader) -> None:
        entry = (reader.reads_behind, reader.expected_seconds, next(self._arrivals), reader)
        heapq.heappush(self._waiting, entry)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._later(self._pause_seconds, self._next_turn)

    def _next_turn(self) -> None:
        self._begin(self._clock())
        while self._waiting and self._used_seconds < self._turn_seconds:
            self._read(heapq.heappop(self._waiting)[-1], self._loaded_clock)
        self._scheduled = False
        if self._waiting:
            self._schedule()
