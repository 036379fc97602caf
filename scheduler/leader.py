"""The leader's lease: a row of Postgres. One scheduler leads, any number stand by."""

from __future__ import annotations

import time

import structlog

from shared import errors
from shared.storage import database, leases

log = structlog.stdlib.get_logger(__name__)

#: The name of the leader's lease.
LEADER = "scheduler"


class Lease:
    """This process's hold on the lead.

    Args:
        holder: Names this process, differently at each start.
        seconds: How long the lease lasts unless renewed.
    """

    def __init__(self, db: database.Database, *, holder: str, seconds: float) -> None:
        self._leases = leases.Leases(db)
        self._holder = holder
        self._seconds = seconds
        self._until = 0.0
        #: Counts the leaders; a new one means that what was kept in memory may be of another time.
        self.term = 0

    @property
    def held(self) -> bool:
        """Whether we lead, by our own monotonic clock: it ends here before it ends for others."""
        return time.monotonic() < self._until

    def renew(self) -> None:
        """Takes or renews the lease; does nothing when another has it, or Postgres is away."""
        asked, led = time.monotonic(), self.held
        try:
            term = self._leases.take(LEADER, self._holder, self._seconds)
        except errors.DatabaseUnavailable as exc:
            if led:
                log.warning("the lease could not be renewed", reason=str(exc))
            return
        if term is None:
            self._until = 0.0
            return
        self.term = term
        self._until = asked + self._seconds
        if not led:
            log.info("leads", term=self.term)

    def release(self) -> None:
        """Lets a standby take over at once."""
        self._until = 0.0
        try:
            self._leases.release(LEADER, self._holder)
        except errors.DatabaseUnavailable:
            log.warning("the lease could not be released; it runs out by itself")
