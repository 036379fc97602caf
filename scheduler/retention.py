"""Deletes old rows: ended calls with their attempts and timeline, timeline rows without a call, usage, leases.

It deletes in small batches: each stays far below the statement time-out, and holds no lock that others wait for.
"""

from __future__ import annotations

import time

import structlog

from scheduler.leader import LEASE_NAME
from shared.storage import database

#: The time between two runs, and how long one goes on deleting: a scheduler that stops waits no longer for it.
EVERY_SECONDS = 5
_RUN_SECONDS = 4.0
#: So many calls are deleted by one statement, or so many rows without a call: 0.1 s (measured).
_BATCH = 500

log = structlog.stdlib.get_logger(__name__)

#: Ordered by `received_at`, which has an index; a call is received before it has ended. A batch begins where the one
#: before has ended: what that has deleted stays in the index as long as any transaction is open. Locked rows are
#: skipped until a later run, so that this statement never waits for a lock while it holds others.
_CALLS = """
WITH old AS (
    SELECT call_id, received_at FROM ari.calls
    WHERE received_at < now() - make_interval(days => %(days)s) AND received_at >= %(since)s
      AND state = 'ended' AND ended_at < now() - make_interval(days => %(days)s)
    ORDER BY received_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
), old_timeline AS (
    DELETE FROM ari.timeline WHERE call_id IN (SELECT call_id FROM old)
), old_calls AS (
    DELETE FROM ari.calls WHERE call_id IN (SELECT call_id FROM old)
)
SELECT count(*) AS deleted, max(received_at) AS last FROM old
"""

#: Of connections, and of none.
_ROWS_WITHOUT_CALL = """
WITH old AS (
    SELECT id, at FROM ari.timeline
    WHERE call_id IS NULL AND at < now() - make_interval(days => %(days)s) AND at >= %(since)s
    ORDER BY at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
), old_timeline AS (
    DELETE FROM ari.timeline WHERE id IN (SELECT id FROM old)
)
SELECT count(*) AS deleted, max(at) AS last FROM old
"""

#: Small tables, which grow all the same: a row for each month, and for each endpoint that a tenant has ever had. The
#: leader's own lease has not expired, and is kept if Postgres's clock was set forth: its term only rises.
_SMALL = (
    "DELETE FROM ari.usage WHERE until < now() - make_interval(days => %(days)s)",
    "DELETE FROM ari.dead_letter_sets WHERE at < now() - make_interval(days => %(days)s)",
    f"DELETE FROM ari.leases WHERE expires_at < now() - make_interval(days => %(days)s) AND name <> '{LEASE_NAME}'",  # noqa: S608
)


#: Postgres deletes no row of the audit that is younger than 30 days.
_AUDIT = """
DELETE FROM ari.audit WHERE id IN (
    SELECT id FROM ari.audit WHERE at < now() - make_interval(days => %(days)s) ORDER BY at LIMIT %(batch)s)
"""


class Retention:
    """Deletes old rows on a clock.

    Args:
        days: How long to keep ended calls and timeline rows; 0 for ever.
        audit_days: The same for rows of the audit.
    """

    def __init__(self, db: database.Database, *, days: int, audit_days: int = 0) -> None:
        self._db = db
        self._days = days
        self._audit_days = audit_days

    def delete_old(self) -> None:
        """Delete for a bounded time. Raises DatabaseUnavailable; whole batches are deleted by then."""
        if self._audit_days:
            with self._db.connection() as connection:
                connection.execute(_AUDIT, {"days": self._audit_days, "batch": _BATCH})
        if not self._days:
            return
        until = time.monotonic() + _RUN_SECONDS
        calls = self._delete(_CALLS, until)
        self._delete(_ROWS_WITHOUT_CALL, until)
        with self._db.connection() as connection:
            for statement in _SMALL:
                connection.send(statement, {"days": self._days})
        if calls:
            log.info("old calls deleted", calls=calls)

    def _delete(self, statement: str, until: float) -> int:
        """Delete batch by batch, one at least, until one is not full or the time is over; return how many.

        After a full batch it rests for as long as that took: calls are worth more to Postgres than old rows.
        """
        deleted, since, batch, took = 0, "-infinity", _BATCH, 0.0
        while batch == _BATCH and (not deleted or time.monotonic() + took < until):
            time.sleep(took)
            began = time.monotonic()
            with self._db.connection() as connection:
                values = {"days": self._days, "since": since, "batch": _BATCH}
                row = connection.execute(statement, values).fetchone()
            assert row is not None
            batch, since, took = row["deleted"], row["last"], time.monotonic() - began
            deleted += batch
        return deleted
