"""Jobs at intervals, by the monotonic clock: a wall clock that is set back or forth moves none of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Intervals:
    """Runs each job in a thread of its own, so a slow one delays no other.

    A job that takes longer than its interval starts again at once, and what it has missed is left out.
    """

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, job: Callable[[], object], *, seconds: float, at_once: bool = False) -> None:
        """Run a job every so many seconds after `start`; the first time at once, or after an interval.

        Args:
            job: Raises nothing: an exception ends its thread.
        """
        name = getattr(job, "__qualname__", "job")
        thread = threading.Thread(target=self._repeat, args=(job, seconds, at_once), name=name, daemon=True)
        self._threads.append(thread)

    def start(self) -> None:
        """Start all jobs."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, seconds: float) -> None:
        """Start no job any more, and wait for those that run, for so long at most."""
        self._stopping.set()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _repeat(self, job: Callable[[], object], seconds: float, at_once: bool) -> None:
        due = time.monotonic() + (0.0 if at_once else seconds)
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            job()
            due = max(due + seconds, time.monotonic())
