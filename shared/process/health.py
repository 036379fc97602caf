"""Liveness: a process touches a file every second from its main loop, and `python -m shared.process.health` checks it.

Liveness depends on nothing outside the process: a process that waits for Redis or Postgres is alive, and a restart
would bring neither back.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import structlog

log = structlog.stdlib.get_logger(__name__)

#: Between two touches.
TOUCH_SECONDS = 1.0
#: A main loop that is silent for longer is stuck: nothing in it waits for other processes.
_SILENT_SECONDS = 15.0


class Liveness:
    """Writes the time to a file, by the monotonic clock that all processes of a machine share.

    Args:
        path: The file; empty for none.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._fails = False

    def touch(self) -> None:
        """Write the time. A file that cannot be written is logged once and does not end the process."""
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(repr(time.monotonic()))
            new.replace(self._path)
            self._fails = False
        except OSError as exc:
            if not self._fails:
                log.error("health file not writable", path=str(self._path), reason=exc.strerror)
            self._fails = True


def silence(path: Path, now: float) -> float:
    """Return the seconds from the last touch to `now` (monotonic); infinite if there was none since the boot."""
    try:
        seconds = now - float(path.read_text())
    except (OSError, ValueError):
        return math.inf
    return seconds if seconds >= 0 else math.inf


def main() -> int:
    """Return 0 if the process that touches HEALTH_FILE is alive, 1 if it is not, 2 if HEALTH_FILE is not set."""
    name = os.environ.get("HEALTH_FILE")
    if not name:
        sys.stderr.write("HEALTH_FILE is not set: set it to the file that the process touches\n")
        return 2
    seconds = silence(Path(name), time.monotonic())
    if seconds <= _SILENT_SECONDS:
        return 0
    sys.stderr.write(
        f"{name}: no sign of life for {seconds:.0f} s\n"
        if seconds < math.inf
        else f"{name}: never touched since the boot\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
