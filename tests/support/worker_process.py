"""A worker in its own process, to be killed: `python -m tests.support.worker_process NAME THREADS FILE`.

Its Redis is REDIS_URL. It notes in the file, which outlives it and Redis, what it begins and ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from tests.support.worker_harness import WorkerHarness


def main() -> None:
    """Work until SIGTERM, or until the parent process is gone."""
    name, threads, path = sys.argv[1:]
    parent = os.getppid()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    harness = WorkerHarness(os.environ["REDIS_URL"], name=name, threads=int(threads))

    def note(event: str, what: str) -> None:
        # One write: lines of several processes do not mix.
        os.write(file, f"{event} {what} {name} {time.monotonic()}\n".encode())

    def work(what: str) -> None:
        note("began", what)
        seconds = float(what.partition(":")[2] or 0)
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            time.sleep(min(left, 0.01))
        note("ran", what)

    harness.does = work
    with harness.working():
        while not stop.wait(1) and os.getppid() == parent:
            pass


class Notes:
    """The workers' notes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self, event: str) -> list[tuple[str, str, float]]:
        """Return the message, the worker and the time (monotonic) of each note of this event."""
        if not self._path.exists():
            return []
        rows = [line.split() for line in self._path.read_text().splitlines()]
        return [(what, worker, float(at)) for happened, what, worker, at in rows if happened == event]

    def names(self, event: str) -> list[str]:
        return [what for what, _, _ in self.lines(event)]


if __name__ == "__main__":
    main()
