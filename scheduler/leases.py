"""The leader's lease: a row of Postgres. One scheduler leads, any number stand by."""

from __future__ import annotations

import time

import structlog

from shared import database, errors

log = structlog.stdlib.get_logger(__name__)

_ACQUIRE = """
INSERT INTO ari.leases (name, holder, term, expires_at)
VALUES ('scheduler', %(holder)s, 1, clock_timestamp() + %(seconds)s * interval '1 second')
ON CONFLICT (name) DO UPDATE SET
    holder = excluded.holder,
    term = ari.leases.term + CASE WHEN ari.leases.holder = excluded.holder THEN 0 ELSE 1 END,
    expires_at = excluded.expires_at
WHERE ari.leases.holder = excluded.holder OR ari.leases.expires_at <= clock_timestamp()
RETURNING term
"""


class Lease:
    """This process's hold on the lead.

    Args:
        holder: Names this process, differently at each start.
        seconds: How long the lease lasts unless renewed.
    """

    def __init__(self, db: database.Database, *, holder: str, seconds: float) -> None:
        self._db = db
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
            with self._db.connection() as connection:
                row = connection.execute(_ACQUIRE, {"holder": self._holder, "seconds": self._seconds}).fetchone()
        except errors.DatabaseUnavailable as exc:
            log.warning("the lease could not be renewed", why=str(exc))
            return
        if row is None:
            self._until = 0.0
            return
        self.term = row["term"]
        self._until = asked + self._seconds
        if not led:
            log.info("leads", term=self.term)

    def release(self) -> None:
        """Lets a standby take over at once."""
        self._until = 0.0
        try:
            with self._db.connection() as connection:
                connection.execute(
                    "UPDATE ari.leases SET expires_at = clock_timestamp() WHERE name = 'scheduler' AND holder = %s",
                    [self._holder],
                )
        except errors.DatabaseUnavailable:
            log.warning("the lease could not be released; it runs out by itself")
