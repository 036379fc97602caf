"""Bounds what refusals add to the audit, which keeps its rows: who may do nothing could fill it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from console.lockout import Lockout
from shared.operator.audit import Action

#: One refusal of a user, an action and a subject is recorded in this time.
SECONDS = 60.0
#: Refusals of one user, each within that time after the one before, whatever they are of; then none for that time.
MOST_OF_USER = 100


class RefusalBound:
    """Tells which refusals are recorded. Thread-safe; in memory, of bounded size."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._same = Lockout(attempts=1, seconds=SECONDS, clock=clock)
        self._users = Lockout(attempts=MOST_OF_USER, seconds=SECONDS, clock=clock)

    def takes(self, who: str, action: Action) -> bool:
        """Return whether a refusal that happens now is recorded."""
        # A subject is of the path that was asked for, and may be long.
        same = hashlib.sha256(repr((who, action.name, action.subject)).encode()).hexdigest()
        return not self._same.begin(same) and not self._users.begin(who)
