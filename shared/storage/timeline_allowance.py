"""How many rows an hour one process writes of what a peer can repeat: entries that come with no change of a call.

What is above that costs no row and no statement. It is counted, and the next row that is written tells the number.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.call.calls import Call
from shared.call.states import State
from shared.storage.timeline import TimelineEntry
from shared.token_bucket import TokenBuckets

_HOUR_SECONDS = 3600.0


class TimelineAllowance:
    """The rows of each kind that may be written now: a token bucket for each, for all threads of a process.

    Entries of one kind are those of one name for one connection; those for one call; and those for all calls of a
    connection that have ended, for there is no limit to their number.

    Args:
        an_hour: Rows of one kind, at once and then in an hour.
        clock: Seconds; a parameter for tests.
    """

    def __init__(self, an_hour: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets = TokenBuckets(per_second=an_hour / _HOUR_SECONDS, burst=an_hour)

    def admitted(
        self, entries: Sequence[TimelineEntry], *, call: Call | None, connection_id: int | None
    ) -> list[TimelineEntry]:
        """Return the entries that are to be written."""
        with self._lock:
            found = [self._admitted(_kind(entry, call, connection_id), entry) for entry in entries]
        return [entry for entry in found if entry is not None]

    def _admitted(self, kind: object, entry: TimelineEntry) -> TimelineEntry | None:
        left_out = self._buckets.take(kind, self._clock())
        if left_out is None:
            return None
        return replace(entry, detail=f"{entry.detail} (and {left_out} more like it)") if left_out else entry


def _kind(entry: TimelineEntry, call: Call | None, connection_id: int | None) -> object:
    if call is None:
        return connection_id, entry.name
    return ("ended", call.connection_id) if call.state is State.ENDED else call.call_id
