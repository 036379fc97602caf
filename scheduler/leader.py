"""Leadership by a lease in Postgres. One scheduler leads, any number stand by.

A leader may be frozen at any moment, and wake up when another one leads. So the lease alone does not do: its term is a
fencing token, which Postgres and Redis compare with each write of a job.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import structlog

from shared import errors
from shared.storage import database, leases

log = structlog.stdlib.get_logger(__name__)

#: The name of the leader's lease.
LEASE_NAME = "scheduler"

_NOT_LEADING = "this scheduler leads no more"
#: Ends a transaction with an error unless this process holds the lease under the term. The next leader's term may be
#: the same: a fail-over or a restore has forgotten this one.
_FENCE = f"""
SELECT coalesce((SELECT term::text FROM ari.leases WHERE name = '{LEASE_NAME}' AND holder = %s AND term = %s
                 AND expires_at > clock_timestamp()), '{_NOT_LEADING}')::bigint
"""  # noqa: S608 - built from constants


class Leader:
    """This process as leader, or as a standby that tries to become it.

    Args:
        holder: Names this process, differently at each start.
        seconds: How long the lease lasts unless renewed.
    """

    def __init__(self, db: database.Database, *, holder: str, seconds: float) -> None:
        self._leases = leases.Leases(db)
        self._job = threading.local()
        self.holder = holder
        self._seconds = seconds
        self._until = 0.0
        self._logged_as_leader = False
        #: Counts the leaders. When it has risen, another scheduler may have led, and state kept in memory is stale.
        self.term = 0

    @property
    def is_leader(self) -> bool:
        """True while this process leads, by its own monotonic clock: the lease ends here before it ends for others."""
        return time.monotonic() < self._until

    def begin_job(self) -> bool:
        """Return whether this process leads. The job of this thread works under the present term from here on."""
        self._job.term = self.term
        return self.is_leader

    @property
    def job_term(self) -> int:
        """The term under which the job of this thread works: if it was frozen, not the present one."""
        return int(getattr(self._job, "term", self.term))

    def renew(self) -> None:
        """Take or renew the lease. Change nothing while another scheduler leads, or while Postgres is away."""
        self._log_change()
        asked = time.monotonic()
        try:
            term = self._leases.take(LEASE_NAME, self.holder, self._seconds)
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

    def raise_term(self, above: int) -> None:
        """Lead under a higher term than one that Redis knows, unless another scheduler leads.

        Postgres was restored from a backup, and counts its leaders from there.
        """
        term = self._leases.raise_term(LEASE_NAME, self.holder, above)
        if term is None:
            self._until = 0.0
        elif term != self.term:
            log.warning("term raised, postgres was set back", term=term, known_term=self.term)
            self.term = term

    def release(self) -> None:
        """Give the lease up, so that a standby can take over at once."""
        self._until = 0.0
        try:
            self._leases.release(LEASE_NAME, self.holder)
        except errors.DatabaseUnavailable:
            log.warning("leadership release failed, the lease expires by itself")

    def _log_change(self) -> None:
        leads = self.is_leader
        if leads and not self._logged_as_leader:
            log.info("leadership acquired", term=self.term)
        elif self._logged_as_leader and not leads:
            log.warning("leadership lost", term=self.term)
        self._logged_as_leader = leads


class LeaderDatabase(database.Database):
    """Postgres for the leader's jobs: a job commits only while this process leads under the term that it began under.

    Args:
        given: As `database.Database` takes it.
    """

    def __init__(self, leader: Leader, url: str, **given: Any) -> None:
        super().__init__(url, **given)
        self._leader = leader

    @contextlib.contextmanager
    def connection(self) -> Iterator[database.Connection]:
        """As of any database; raises LeadershipLost instead of committing when this process leads no more."""
        try:
            with super().connection() as connection:
                connection.guard = (_FENCE, [self._leader.holder, self._leader.job_term])
                yield connection
        except errors.DatabaseRefused as exc:
            if _NOT_LEADING in str(exc):
                raise errors.LeadershipLost(_NOT_LEADING) from None
            raise
