"""What a run has done, as lines of JSON that the judge reads: calls, hang-ups, faults. Times are unix seconds."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any


class Deeds:
    """Appends to the file of deeds, from any thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()
        self._faults = 0

    def call(self, leg: str, *, app: str, direction: str, manner: str, sampled: bool) -> None:
        """A call is about to be offered. `direction` is inbound, outbound (ours), or platform."""
        self._write(deed="call", leg=leg, app=app, direction=direction, manner=manner, sampled=sampled)

    def not_offered(self, leg: str, reason: str) -> None:
        """A call could not be offered: its Asterisk did not take it, or the pipeline was not asked for it."""
        self._write(deed="not-offered", leg=leg, reason=reason)

    def hang_up(self, leg: str, *, at: float) -> None:
        """The caller of a leg has hung up.

        Args:
            at: when, in unix seconds: before Asterisk was asked, so before the leg was gone.
        """
        self._write(deed="hang-up", leg=leg, at=at)

    def fault(
        self,
        name: str,
        target: str,
        *,
        at: float,
        outage: bool,
        audio: bool,
        loses: bool,
        apps: list[str] | None,
        seconds: float,
    ) -> int:
        """A fault has struck. Returns its number, for `mended`.

        Args:
            target: what was struck.
            outage: Nothing can be done for a caller meanwhile.
            audio: Parties of a call that is up may not hear each other.
            loses: Callers may lose their calls to it.
            apps: whose calls it concerns; None: all.
            seconds: how long it is to last.
        """
        with self._lock:
            self._faults += 1
            number = self._faults
        self._write(
            deed="fault", number=number, name=name, target=target, at=at, until=None, outage=outage, audio=audio,
            loses=loses, apps=apps, seconds=seconds,
        )  # fmt: skip
        return number

    def mended(self, number: int) -> None:
        """A fault is over."""
        self._write(deed="mended", number=number, until=time.time())

    def end(self) -> None:
        """All callers have hung up, and no further call is offered."""
        self._write(deed="end")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **deed: Any) -> None:
        line = json.dumps({"at": time.time()} | deed)
        with self._lock:
            self._file.write(line + "\n")
