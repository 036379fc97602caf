"""Liveness: a process notes every second that its main loop turns, and `python -m shared.process.health` reads that.

It depends on nothing outside the process: one that waits for Redis or Postgres is alive, and a restart would bring
neither back.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import structlog

log = structlog.stdlib.get_logger(__name__)

#: Between two notes.
TOUCH_SECONDS = 1.0
#: Silent for longer, a main loop is stuck: nothing in it waits for others.
_SILENT_SECONDS = 15.0


class Liveness:
    """Notes that we are alive in a file, by the clock that all processes of this machine share.

    Args:
        path: Empty for none.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._fails = False

    def beat(self) -> None:
        """Notes it. A file that cannot be written is no reason to end: it is logged, once."""
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(repr(time.monotonic()))
            new.replace(self._path)
            self._fails = False
        except OSError as exc:
            if not self._fails:
                log.error("HEALTH_FILE cannot be written", path=str(self._path), reason=exc.strerror)
            self._fails = True


def silence(path: Path, now: float) -> float:
    """Seconds since the last note, by `now` of the monotonic clock; infinite when there is none of this boot."""
    try:
        seconds = now - float(path.read_text())
    except (OSError, ValueError):
        return math.inf
    return seconds if seconds >= 0 else math.inf


def main() -> int:
    """0 when the process that notes in HEALTH_FILE is alive, 1 when not, 2 when HEALTH_FILE is not set."""
    name = os.environ.get("HEALTH_FILE")
    if not name:
        sys.stderr.write("HEALTH_FILE is not set: nobody notes that it is alive\n")
        return 2
    seconds = silence(Path(name), time.monotonic())
    if seconds <= _SILENT_SECONDS:
        return 0
    sys.stderr.write(f"{name}: no sign of life for {seconds:.0f} s\n" if seconds < math.inf else f"{name}: no note\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
