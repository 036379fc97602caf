"""Readiness: which of the servers that a process depends on give no answer now. No call waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Bounds the question to each server; they are asked at the same time.
PROBE_SECONDS = 1.0
#: An answer is given again for so long, however many ask.
_KEPT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How a server is asked."""

    #: Raises whatever keeps it from answering.
    ask: Callable[[], object]
    #: False: without it the process goes on with most of its work. That it is away is told, and it is ready.
    is_needed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the servers have answered."""

    #: Server → what is wrong with it; an empty text for one that answers.
    complaints: Mapping[str, str]
    #: Every server that is needed answers.
    is_ready: bool


class Readiness:
    """Asks the servers of one process.

    Args:
        checks: Server → how it is asked.
    """

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._probes = {name: _Probe(check.ask) for name, check in sorted(checks.items())}
        self._needed = frozenset(name for name, check in checks.items() if check.is_needed)
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._found = Found(complaints={}, is_ready=False)

    def found(self) -> Found:
        """Return what the servers answer, now or up to a second ago. Takes PROBE_SECONDS at most."""
        with self._lock:
            if time.monotonic() - self._asked_at >= _KEPT_SECONDS:
                self._found = self._ask()
                self._asked_at = time.monotonic()
            return self._found

    def _ask(self) -> Found:
        for probe in self._probes.values():
            probe.begin()
        until = time.monotonic() + PROBE_SECONDS
        complaints = {name: probe.complaint(until) for name, probe in self._probes.items()}
        is_ready = not any(said for name, said in complaints.items() if name in self._needed)
        return Found(complaints=complaints, is_ready=is_ready)


class _Probe:
    """One server. It is asked in a thread of its own, one at a time: a question that hangs is left to end by itself."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._thread: threading.Thread | None = None
        self._complaint = ""

    def begin(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)
            self._thread.start()

    def complaint(self, until: float) -> str:
        assert self._thread is not None
        self._thread.join(max(0.0, until - time.monotonic()))
        return f"no answer in {PROBE_SECONDS:g} s" if self._thread.is_alive() else self._complaint

    def _run(self) -> None:
        try:
            self._ask()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the server did not answer
            # The text may show an address or a user.
            self._complaint = type(exc).__name__
        else:
            self._complaint = ""
