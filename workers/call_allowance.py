"""How many calls one process receives of a connection in an hour: its Asterisk can report any number of legs.

Each new leg is a call, with its rows, its run and its question to the quota, whether there is a caller or not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shared.token_bucket import TokenBuckets

_HOUR_SECONDS = 3600.0
#: This part of an hour's calls may come at once.
_BURST = 0.1


class CallAllowance:
    """A token bucket for each connection, for all threads of a process.

    Args:
        an_hour: Calls of one connection in an hour, after a tenth of them at once.
        clock: Seconds; a parameter for tests.
    """

    def __init__(self, an_hour: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets = TokenBuckets(per_second=an_hour / _HOUR_SECONDS, burst=max(1.0, an_hour * _BURST))

    def take(self, connection_id: int) -> bool:
        """Count a call of the connection; return False, and count none, if it has had too many."""
        with self._lock:
            return self._buckets.take(connection_id, self._clock()) is not None
