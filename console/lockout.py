"""Locks a name or an address after wrong passwords. Kept in memory, of bounded size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

#: Names and addresses that are remembered; beyond it the one that failed the longest ago is forgotten.
MOST_KEYS = 10_000


class Lockout:
    """Counts failures of names or addresses.

    An attempt counts as a failure from its beginning, until it turns out to be right: many at once are not more than
    one after the other.

    Args:
        attempts: So many failures lock.
        seconds: How long, and after which time a failure counts no more.
    """

    def __init__(self, *, attempts: int, seconds: float, clock: Callable[[], float]) -> None:
        self._attempts = attempts
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        #: Key → failures in a row, and the time of the last one; in the order of that time.
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def begin(self, key: str) -> float:
        """Begin an attempt; return 0, or for how many seconds the key is locked. A locked attempt counts no further."""
        with self._lock:
            now = self._clock()
            count, at = self._failures.get(key, (0, now))
            left = at + self._seconds - now
            if left <= 0:
                count = 0
            elif count >= self._attempts:
                return left
            self._failures[key] = (count + 1, now)
            self._failures.move_to_end(key)
            if len(self._failures) > MOST_KEYS:
                self._failures.popitem(last=False)
            return 0.0

    def succeed(self, key: str) -> None:
        """Forget the failures of a key: the password was right."""
        with self._lock:
            self._failures.pop(key, None)

    def withdraw(self, key: str) -> None:
        """Take one attempt back: it was neither right nor wrong."""
        with self._lock:
            count, at = self._failures.get(key, (0, 0.0))
            if count > 1:
                self._failures[key] = (count - 1, at)
            else:
                self._failures.pop(key, None)

    def __len__(self) -> int:
        return len(self._failures)
