"""The process that started us, watched where it does not tell us that it is over."""

import contextlib
import os
import signal
from pathlib import Path


class Make:
    """The `make` that runs us, if one does.

    It passes SIGTERM on to us but not SIGINT, and then waits for us; killed by -9 it says nothing at all. So we look.
    """

    def __init__(self) -> None:
        self._pid = os.getppid()
        is_make = _status(self._pid, "Name") in ("make", "gmake")
        self._watched = is_make and self._awaits_interrupt()

    def look(self) -> None:
        """Interrupt ourselves once it was interrupted or has gone."""
        if self._watched and (os.getppid() != self._pid or not self._awaits_interrupt()):
            os.kill(os.getpid(), signal.SIGINT)

    def _awaits_interrupt(self) -> bool:
        # It sets the signal back to its default while it handles it.
        return bool(int(_status(self._pid, "SigCgt") or "0", 16) >> (signal.SIGINT - 1) & 1)


def _status(pid: int, name: str) -> str:
    """A line of Linux's description of a process, empty where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    return ""
