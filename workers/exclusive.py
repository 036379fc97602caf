"""Work that is done once at a time: under a lease in Postgres, which ends with the work, or with its worker."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol

from shared import errors
from shared.storage.call_writer import CallWriter

#: A statement without an answer may take effect so much later, in terms of the lease's length.
_LATE = 2.0
#: What has to be released once more: so many leases at most, and so often.
_MOST_LEFT = 50
_PAUSE_SECONDS = 1.0


class Leases(Protocol):
    """What one holder may do at a time. `leases.Leases` is the adapter. Both methods raise DatabaseUnavailable."""

    def take(self, name: str, holder: str, seconds: float) -> int | None:
        """Acquire a lease; return None when another holder has it."""

    def release(self, name: str, holder: str) -> None:
        """Let another holder have it."""


class Exclusive:
    """Holds a lease for the length of a piece of work. Thread-safe.

    What is asked of a Postgres that gives no answer may be done all the same, and later. A lease that was taken so, or
    was not released, would keep the work from being done until it runs out. So this worker releases it with each piece
    of work that follows, for as long as it may come to stand.
    """

    def __init__(self, leases: Leases, writer: CallWriter) -> None:
        self._leases = leases
        self._writer = writer
        self._lock = threading.Lock()
        #: (lease's name, holder) → until when it may come to stand, by the process's own clock.
        self._left: dict[tuple[str, str], float] = {}
        self._again_at = 0.0

    @contextlib.contextmanager
    def lease(self, name: str, seconds: float) -> Iterator[bool]:
        """Hold a lease; yield False when another worker holds it. If this one dies, the lease runs out.

        Args:
            name: Of the lease.
            seconds: How long the work may take.
        """
        self._release_left()
        holder = self._writer.new_owner()
        try:
            acquired = self._leases.take(name, holder, seconds) is not None
        except errors.DatabaseUnavailable:
            self._leave(name, holder, seconds)
            raise
        try:
            yield acquired
        finally:
            if acquired:
                try:
                    self._leases.release(name, holder)
                except errors.PipelineError:
                    self._leave(name, holder, seconds)

    def _leave(self, name: str, holder: str, seconds: float) -> None:
        with self._lock:
            self._left[name, holder] = self._writer.clock.monotonic() + _LATE * seconds
            if len(self._left) > _MOST_LEFT:
                del self._left[next(iter(self._left))]

    def _release_left(self) -> None:
        now = self._writer.clock.monotonic()
        with self._lock:
            if not self._left or now < self._again_at:
                return
            self._again_at = now + _PAUSE_SECONDS
            self._left = {which: until for which, until in self._left.items() if until > now}
            left = list(self._left)
        # While Postgres is away, one of them has waited for it.
        with contextlib.suppress(errors.PipelineError):
            for name, holder in left:
                self._leases.release(name, holder)
