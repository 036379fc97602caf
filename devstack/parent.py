"""Watches the `make` that started this process, for the cases in which it does not pass on its own end."""

import contextlib
import os
import signal
from pathlib import Path


class Make:
    """The `make` that is the parent of this process, if there is one.

    It forwards SIGTERM but not SIGINT, and then waits for its child; killed by SIGKILL it forwards nothing. So this
    class polls it.
    """

    def __init__(self) -> None:
        self._pid = os.getppid()
        is_make = _status(self._pid, "Name") in ("make", "gmake")
        self._watched = is_make and self._awaits_interrupt()

    def check(self) -> None:
        """Interrupt this process if make was interrupted or is gone."""
        if self._watched and (os.getppid() != self._pid or not self._awaits_interrupt()):
            os.kill(os.getpid(), signal.SIGINT)

    def _awaits_interrupt(self) -> bool:
        # It resets the signal to its default while it handles it.
        return bool(int(_status(self._pid, "SigCgt") or "0", 16) >> (signal.SIGINT - 1) & 1)


def _status(pid: int, name: str) -> str:
    """Return a field of /proc/PID/status, empty if there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    return ""
