"""Deletes what was kept for long enough: ended calls with their attempts and timeline, and connections' timeline.

In small batches, so that each stays far below a statement's time, and none holds a lock that anybody waits for.
"""

from __future__ import annotations

import structlog

from shared.storage import database

#: Between two runs, and the most that one deletes: 200 calls a second.
EVERY_SECONDS = 10.0
_BATCH = 100
_BATCHES = 20
#: Most rows of one connection's own timeline in one run.
_EACH = 20

log = structlog.stdlib.get_logger(__name__)

#: Calls come in the order of an index there is: a call is received before it has ended. One whose row somebody holds is
#: left for later, so that nothing is waited for with others' rows in hand.
_CALLS = """
WITH old AS (
    SELECT call_id FROM ari.calls
    WHERE received_at < now() - make_interval(days => %(days)s)
      AND state = 'ended' AND ended_at < now() - make_interval(days => %(days)s)
    ORDER BY received_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
), told AS (
    DELETE FROM ari.timeline WHERE call_id IN (SELECT call_id FROM old)
)
DELETE FROM ari.calls WHERE call_id IN (SELECT call_id FROM old)
"""

#: Ids rise with the time: only the first rows of each connection, and of none, are looked at.
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
    """Deletes on a clock.

    Args:
        days: How long to keep; 0 for ever.
    """

    def __init__(self, db: database.Database, *, days: int) -> None:
        self._db = db
        self._days = days

    def delete_old(self) -> None:
        """Deletes a bounded number of calls and rows. Raises DatabaseUnavailable, having deleted whole batches."""
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
