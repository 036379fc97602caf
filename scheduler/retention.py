"""Deletes old rows: ended calls with their attempts and timeline, and old timeline rows of connections.

It deletes in small batches: each stays far below the statement time-out, and holds no lock that others wait for.
"""

from __future__ import annotations

import structlog

from shared.storage import database

#: The time between two runs, and the most calls that one deletes: 200 a second in all.
EVERY_SECONDS = 10.0
_BATCH = 100
_BATCHES = 20
#: Most timeline rows of one connection that one run deletes.
_EACH = 20

log = structlog.stdlib.get_logger(__name__)

#: Ordered by `received_at`, which has an index; a call is received before it has ended. Locked rows are skipped until a
#: later run, so that this statement never waits for a lock while it holds others.
_CALLS = """
WITH old AS (
    SELECT call_id FROM ari.calls
    WHERE received_at < now() - make_interval(days => %(days)s)
      AND state = 'ended' AND ended_at < now() - make_interval(days => %(days)s)
    ORDER BY received_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
), old_timeline AS (
    DELETE FROM ari.timeline WHERE call_id IN (SELECT call_id FROM old)
)
DELETE FROM ari.calls WHERE call_id IN (SELECT call_id FROM old)
"""

#: Ids rise with the time, so only the first rows of each connection, and of no connection, are read.
_OTHERS = """
DELETE FROM ari.timeline WHERE id IN (
    SELECT id FROM (
        SELECT oldest.* FROM ari.connections c CROSS JOIN LATERAL (
            SELECT id, at FROM ari.timeline WHERE connection_id = c.connection_id AND call_id IS NULL
            ORDER BY id LIMIT %(each)s
        ) AS oldest
        UNION ALL
        (SELECT id, at FROM ari.timeline WHERE connection_id IS NULL AND call_id IS NULL ORDER BY id LIMIT %(each)s)
    ) AS rows WHERE at < now() - make_interval(days => %(days)s)
)
"""


class Retention:
    """Deletes old rows on a clock.

    Args:
        days: How long to keep ended calls and timeline rows; 0 for ever.
    """

    def __init__(self, db: database.Database, *, days: int) -> None:
        self._db = db
        self._days = days

    def delete_old(self) -> None:
        """Delete a bounded number of calls and rows. Raises DatabaseUnavailable; whole batches are deleted by then."""
        if not self._days:
            return
        calls = 0
        for _ in range(_BATCHES):
            deleted = self._delete(_CALLS, batch=_BATCH)
            calls += deleted
            if deleted < _BATCH:
                break
        self._delete(_OTHERS, each=_EACH)
        if calls:
            log.info("old calls deleted", calls=calls)

    def _delete(self, statement: str, **bounds: int) -> int:
        with self._db.connection() as connection:
            return connection.execute(statement, {"days": self._days, **bounds}).rowcount
