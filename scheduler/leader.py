"""Leadership by a lease in Postgres. One scheduler leads, any number stand by."""

from __future__ import annotations

import time

import structlog

from shared import errors
from shared.storage import database, leases

log = structlog.stdlib.get_logger(__name__)

#: The name of the leader's lease. `socket_rows` fences its moves with it.
LEASE_NAME = "scheduler"


class Leader:
    """This process as leader, or as a standby that tries to become it.

    Args:
        holder: Names this process, differently at each start.
        seconds: How long the lease lasts unless renewed.
    """

    def __init__(self, db: database.Database, *, holder: str, seconds: float) -> None:
        self._leases = leases.Leases(db)
        self._holder = holder
        self._seconds = seconds
        self._until = 0.0
        self._logged_as_leader = False
        #: Counts the leaders. When it has risen, another scheduler may have led, and state kept in memory is stale.
        self.term = 0

    @property
    def is_leader(self) -> bool:
        """True while this process leads, by its own monotonic clock: the lease ends here before it ends for others."""
        return time.monotonic() < self._until

    def renew(self) -> None:
        """Take or renew the lease. Change nothing while another scheduler leads, or while Postgres is away."""
        self._log_change()
        asked = time.monotonic()
        try:
            term = self._leases.take(LEASE_NAME, self._holder, self._seconds)
        except errors.DatabaseUnavailable as exc:
            if self.is_leader:
                log.warning("leadership renewal failed", reason=str(exc))
            return
        if term is None:
            self._until = 0.0
        else:
            self.term = term
            self._until = asked + self._seconds
        self._log_change()

    def release(self) -> None:
        """Give the lease up, so that a standby can take over at once."""
        self._until = 0.0
        try:
            self._leases.release(LEASE_NAME, self._holder)
        except errors.DatabaseUnavailable:
            log.warning("leadership release failed, the lease expires by itself")

    def _log_change(self) -> None:
        leads = self.is_leader
        if leads and not self._logged_as_leader:
            log.info("leadership acquired", term=self.term)
        elif self._logged_as_leader and not leads:
            log.warning("leadership lost", term=self.term)
        self._logged_as_leader = leads
