"""The TCP sessions of one Asterisk that this process may have open, shared by the tenants that have an app there.

Asterisk closes what is above its `sessionlimit`, whatever opened it. A session is open from its connect to its close,
also while no request uses it. So a permit is one request in flight, and what is idle gives way to it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

#: How long a tenant counts as active after its last request.
_REMEMBERED_SECONDS = 10.0


class Pool(Protocol):
    """The connections of one tenant. `http_pool.HttpPool` is one."""

    def close_oldest(self) -> bool:
        """Close the connection that has been idle longest; return False if none is idle."""


class Sessions:
    """The sessions of one Asterisk, for all threads of a process.

    Each of the tenants that are active may have an equal share. A quarter is closed to any one tenant as soon as there
    is another, so that a burst of one leaves some to the next who comes.

    Args:
        most: Returns how many may be open; it may change. One is always allowed.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._changed = threading.Condition()
        #: Tenant → its requests in flight.
        self._in_use: Counter[object] = Counter()
        #: Tenant → until when it counts as active.
        self._active_until: dict[object, float] = {}
        #: Pool → its tenant. A tenant has one for each version of its connection.
        self._pools: dict[Pool, object] = {}
        self._open = 0

    @property
    def is_unused(self) -> bool:
        """True if no pool has sessions here."""
        return not self._pools and not self._open

    def add(self, pool: Pool, tenant: object) -> None:
        """Let a tenant's pool open sessions."""
        with self._changed:
            self._pools[pool] = tenant

    def remove(self, pool: Pool) -> None:
        """Forget a pool: it closes what it has open."""
        with self._changed:
            self._pools.pop(pool, None)

    # ── requests in flight ───────────────────────────────────────────────────────────────────────────────────────────

    def acquire(self, tenant: object, *, wanted: int, at_once: int, until: float) -> int:
        """Wait for one permit and take the others that are free; return how many these are: 0 when time is up.

        Args:
            at_once: The largest number of permits of the tenant.
            until: By the monotonic clock.
        """
        with self._changed:
            while (free := self._free(tenant, at_once)) <= 0:
                left = until - time.monotonic()
                if left <= 0:
                    return 0
                self._changed.wait(left)
            permits = min(wanted, free)
            self._in_use[tenant] += permits
            return permits

    def release(self, tenant: object, permits: int) -> None:
        """Give permits back."""
        with self._changed:
            self._in_use[tenant] -= permits
            if not self._in_use[tenant]:
                del self._in_use[tenant]
            self._changed.notify_all()

    def _free(self, tenant: object, at_once: int) -> int:
        """Return how many permits a tenant may take now; it counts as active from now on."""
        most, now = max(1, self._most()), time.monotonic()
        self._active_until = {each: until for each, until in self._active_until.items() if until > now}
        self._active_until[tenant] = now + _REMEMBERED_SECONDS
        left = most - self._in_use.total()
        return min(left, min(at_once, self._share(most)) - self._in_use[tenant])

    def _share(self, most: int) -> int:
        if len(set(self._pools.values())) <= 1:
            return most
        active = len(self._active_until.keys() | self._in_use.keys())
        return min(max(1, most - max(1, most // 4)), max(1, most // active))

    # ── sessions open ────────────────────────────────────────────────────────────────────────────────────────────────

    def opening(self) -> None:
        """Count a session that is about to be opened; the idle ones above the limit are closed first."""
        with self._changed:
            self._open += 1
            excess, pools = self._open - max(1, self._most()), list(self._pools)
        for pool in pools:
            while excess > 0 and pool.close_oldest():
                excess -= 1

    def closed(self) -> None:
        """Count a session that was closed, or could not be opened."""
        with self._changed:
            self._open -= 1

    def has_excess(self) -> bool:
        """True if more are open than may be, as after another process has started: none is to be kept idle."""
        return self._open > max(1, self._most())
