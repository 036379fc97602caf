"""How many calls one process receives of a connection in an hour: its Asterisk can report any number of legs.

Each new leg is a call, with its rows, its run and its question to the quota, whether there is a caller or not.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from shared.token_bucket import TokenBucket

_HOUR_SECONDS = 3600.0
#: This part of an hour's calls may come at once.
_BURST = 0.1
#: Most connections remembered. The one used least recently is forgotten first.
_KEPT = 10_000


class CallAllowance:
    """A token bucket for each connection, for all threads of a process.

    Args:
        an_hour: Calls of one connection in an hour, after a tenth of them at once.
        clock: Seconds; a parameter for tests.
    """

    def __init__(self, an_hour: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._an_hour = an_hour
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[int, TokenBucket] = OrderedDict()

    def take(self, connection_id: int) -> bool:
        """Count a call of the connection; return False, and count none, if it has had too many."""
        with self._lock:
            bucket, now = self._bucket(connection_id), self._clock()
            if bucket.wait_seconds(now, 1.0) > 0:
                return False
            bucket.take(1.0, now)
            return True

    def _bucket(self, connection_id: int) -> TokenBucket:
        bucket = self._buckets.get(connection_id)
        if bucket is None:
            bucket = TokenBucket(per_second=self._an_hour / _HOUR_SECONDS, burst=max(1.0, self._an_hour * _BURST))
            self._buckets[connection_id] = bucket
            if len(self._buckets) > _KEPT:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(connection_id)
        return bucket
