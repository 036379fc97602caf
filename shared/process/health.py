"""Liveness: a process touches a file every second from its main loop, and `python -m shared.process.health` checks it.

`/healthz` of the metrics server says the same of its own process (`of_this_process`).

Liveness depends on nothing outside the process: a process that waits for Redis or Postgres is alive, and a restart
would bring neither back. A wait that is lost (`ongoing`) is the process's own fault.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from shared import ongoing

log = structlog.stdlib.get_logger(__name__)

#: Between two touches.
TOUCH_SECONDS = 1.0
#: A main loop that is silent for longer is stuck: nothing in it waits for other processes.
_SILENT_SECONDS = 15.0


class Liveness:
    """Writes the time to a file, by the monotonic clock that all processes of a machine share, and what is oldest.

    Args:
        path: The file; empty for none.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._fails = False
        self._is_stuck = False

    def touch(self) -> None:
        """Write the time, unless a wait is lost. What keeps it from being written is logged once, and ends nothing."""
        if self._has_lost_a_wait():
            return
        _Life.touched_at = time.monotonic()
        if self._path is None:
            return
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(f"{_Life.touched_at!r}\n{_said()}\n")
            new.replace(self._path)
            self._fails = False
        except OSError as exc:
            if not self._fails:
                log.error("health file not writable", path=str(self._path), reason=exc.strerror)
            self._fails = True

    def _has_lost_a_wait(self) -> bool:
        wait = ongoing.lost()
        if wait is not None and not self._is_stuck:
            log.critical("wait never ended, restart this process", what=wait.what, seconds=round(wait.seconds, 1))
        self._is_stuck = wait is not None
        return self._is_stuck


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether this process is alive, and what it has been busy with for longest, or why it is not."""

    is_alive: bool
    said: str


class _Life:
    """When this process was last touched, by the monotonic clock."""

    touched_at = -math.inf


def of_this_process() -> Health:
    """Return what a check of this process's file would say."""
    seconds = time.monotonic() - _Life.touched_at
    if seconds <= _SILENT_SECONDS:
        return Health(is_alive=True, said=_said())
    return Health(is_alive=False, said=f"no sign of life for {seconds:.0f} s" if seconds < math.inf else "starting")


def _said() -> str:
    oldest = ongoing.oldest()
    return "nothing under way" if oldest is None else f"under way for {oldest.seconds:.1f} s: {oldest.what}"


def silence(path: Path, now: float) -> float:
    """Return the seconds from the last touch to `now` (monotonic); infinite if there was none since the boot."""
    try:
        seconds = now - float(path.read_text().partition("\n")[0])
    except (OSError, ValueError):
        return math.inf
    return seconds if seconds >= 0 else math.inf


def main() -> int:
    """Return 0 if the process that touches HEALTH_FILE is alive, 1 if it is not, 2 if HEALTH_FILE is not set.

    Of a process that is alive, print what it has been busy with for longest.
    """
    name = os.environ.get("HEALTH_FILE")
    if not name:
        sys.stderr.write("HEALTH_FILE is not set: set it to the file that the process touches\n")
        return 2
    seconds = silence(Path(name), time.monotonic())
    if seconds <= _SILENT_SECONDS:
        sys.stdout.write(Path(name).read_text().partition("\n")[2])
        return 0
    sys.stderr.write(
        f"{name}: no sign of life for {seconds:.0f} s\n"
        if seconds < math.inf
        else f"{name}: never touched since the boot\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
