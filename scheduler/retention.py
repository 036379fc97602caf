"""Deletes old rows: ended calls with their attempts and timeline, and old timeline rows of connections.

It deletes in small batches: each stays far below the statement time-out, and holds no lock that others wait for.
"""

from __future__ import annotations

import structlog

from shared.storage import database

#: The time between two runs, and the most calls that one deletes: 200 a second in all.
EVERY_SECONDS = 10
_BATCH = 100
_BATCHES = 20
#: One run looks at the oldest timeline rows of so many connections, so many of each; the next run goes on from there.
_CONNECTIONS = 500
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

#: The next connections, and the last of them; NULL when there is none.
_NEXT = """
SELECT max(connection_id) AS last FROM (
    SELECT connection_id FROM ari.connections WHERE connection_id > %(after)s ORDER BY connection_id LIMIT %(most)s
) AS next
"""

#: Ids rise with the time, so only the first rows of each connection are read.
_OF_CONNECTIONS = """
DELETE FROM ari.timeline WHERE id IN (
    SELECT id FROM ari.connections c CROSS JOIN LATERAL (
        SELECT id, at FROM ari.timeline WHERE connection_id = c.connection_id AND call_id IS NULL
        ORDER BY id LIMIT %(each)s
    ) AS oldest
    WHERE c.connection_id > %(after)s AND c.connection_id <= %(last)s
      AND at < now() - make_interval(days => %(days)s)
)
"""

#: Ordered as the index of rows without a call is: ordered by id alone, the calls' rows would be read from the first on.
_OF_NONE = """
DELETE FROM ari.timeline WHERE id IN (
    SELECT id FROM (
        SELECT id, at FROM ari.timeline WHERE connection_id IS NULL AND call_id IS NULL
        ORDER BY connection_id, id LIMIT %(each)s
    ) AS oldest WHERE at < now() - make_interval(days => %(days)s)
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
        #: The connection whose rows were looked at last.
        self._after = 0

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
        self._delete_rows_of_connections()
        self._delete(_OF_NONE, each=_EACH)
        if calls:
            log.info("old calls deleted", calls=calls)

    def _delete_rows_of_connections(self) -> None:
        with self._db.connection() as connection:
            row = connection.execute(_NEXT, {"after": self._after, "most": _CONNECTIONS}).fetchone()
        assert row is not None
        if row["last"] is not None:
            self._delete(_OF_CONNECTIONS, each=_EACH, after=self._after, last=row["last"])
        # After the last connection, from the first one on.
        self._after = row["last"] or 0

    def _delete(self, statement: str, **bounds: int) -> int:
        with self._db.connection() as connection:
            return connection.execute(statement, {"days": self._days, **bounds}).rowcount
