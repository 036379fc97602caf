"""Which circuit breakers are open: the workers report each change, and repeat that one is open."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shared.asterisk import circuit_breaker
from shared.storage import database

#: For so long the last report of a worker counts: two intervals of its reports.
SECONDS = 2 * circuit_breaker.REPEAT_SECONDS + circuit_breaker.LONGEST_PAUSE_SECONDS
_MOST = 50

#: The reports of all connections, by the index of the timeline's age.
_OPEN = f"""
SELECT connection_id, who AS worker, at, split_part(detail, ': ', 2) AS reason FROM (
    SELECT DISTINCT ON (connection_id, who, split_part(detail, ': ', 1)) connection_id, who, name, at, detail
    FROM ari.timeline
    WHERE call_id IS NULL AND at > now() - interval '{SECONDS} seconds' AND kind = 'note'
      AND name IN ('{circuit_breaker.OPENED}', '{circuit_breaker.CLOSED}')
    ORDER BY connection_id, who, split_part(detail, ': ', 1), id DESC) AS last
WHERE name = '{circuit_breaker.OPENED}' ORDER BY connection_id, who LIMIT {_MOST}
"""  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBreaker:
    """A worker that makes no requests to an Asterisk for now."""

    connection_id: int
    worker: str
    #: When the worker last reported it.
    at: datetime
    reason: str


def open_breakers(db: database.Database) -> list[OpenBreaker]:
    """Return the breakers that are open, 50 at most."""
    with db.connection() as connection:
        return [OpenBreaker(**row) for row in connection.execute(_OPEN).fetchall()]
