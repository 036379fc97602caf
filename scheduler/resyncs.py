"""Requests resyncs on a clock, each of one Asterisk. Every fourth is full: two requests to it instead of one.

When a connection is due is in Postgres, for each by itself. So what waits for one connection, whose Asterisk is slow,
holds up no other's; and in the queue at most one resync of each waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from shared import messages
from shared.call.ids import ConnectionVersion
from shared.storage import database

#: The clock looks this often which connections are due, or more often if they are due more often.
TICK_SECONDS = 1.0
_FULL_EVERY = 4
#: One tick requests so many: in 15 s those of 30,000 connections.
_BATCH = 2000

#: Versions whose socket is open, and older ones that still have calls.
_RESYNCED = """
FROM ari.connection_versions v LEFT JOIN ari.resyncs r USING (connection_id, version)
WHERE v.retired_at IS NULL AND (v.socket_state = 'connected' OR EXISTS (
    SELECT 1 FROM ari.calls c
    WHERE c.connection_id = v.connection_id AND c.connection_version = v.version AND c.state <> 'ended'))
"""

_ALL = f"SELECT v.connection_id, v.version {_RESYNCED}"

#: How long ago a resync was requested, of the connection for which that is longest.
AGE = f"""
SELECT extract(epoch FROM clock_timestamp() - min(r.due_at))::float + %(seconds)s AS seconds {_RESYNCED}
"""  # noqa: S608 - built from constants

_DUE = f"""
SELECT v.connection_id, v.version, coalesce(r.requests, 0) AS requests {_RESYNCED}
  AND (r.due_at IS NULL OR r.due_at <= clock_timestamp()
       -- Postgres's clock was set back since: no connection is due so late.
       OR r.due_at > clock_timestamp() + make_interval(secs => %(seconds)s))
ORDER BY r.due_at NULLS FIRST LIMIT %(batch)s
"""

#: The next one is an interval after this one was due. The first, and those that the clock was late for, are spread over
#: an interval: else they would all come at the same moment, for ever.
_REQUESTED = """
INSERT INTO ari.resyncs AS r (connection_id, version, due_at, requests)
SELECT connection_id, version, clock_timestamp() + random() * make_interval(secs => %(seconds)s), 1
FROM unnest(%(connections)s::integer[], %(versions)s::integer[]) AS requested (connection_id, version)
ORDER BY connection_id, version
ON CONFLICT (connection_id, version) DO UPDATE SET
    due_at = CASE WHEN r.due_at BETWEEN clock_timestamp() - make_interval(secs => %(seconds)s) AND clock_timestamp()
                  THEN r.due_at + make_interval(secs => %(seconds)s) ELSE excluded.due_at END,
    requests = r.requests + 1
"""


class ResyncQueue(Protocol):
    """Where the requests go. `queues.BrokerCommandQueue` is the adapter."""

    def send_all(self, made: Iterable[messages.Message]) -> None:
        """Enqueue messages, for now. Raises QueueUnavailable."""


class Resyncs:
    """Enqueues resyncs.

    Args:
        seconds: The interval of a connection's resyncs.
    """

    def __init__(self, db: database.Database, commands: ResyncQueue, *, seconds: float) -> None:
        self._db = db
        self._commands = commands
        self._seconds = seconds

    def request_resyncs(self) -> None:
        """Request a resync of each connection that is due. Raises QueueUnavailable, DatabaseUnavailable."""
        with self._db.connection() as connection:
            due = connection.execute(_DUE, {"batch": _BATCH, "seconds": self._seconds}).fetchall()
        if not due:
            return
        self._commands.send_all(
            _resync(row, messages.RESYNC_CLOCK, full=row["requests"] % _FULL_EVERY == 0) for row in due
        )
        # Afterwards: what Redis does not take is due still.
        requested = {
            "seconds": self._seconds,
            "connections": [row["connection_id"] for row in due],
            "versions": [row["version"] for row in due],
        }
        with self._db.connection() as connection:
            connection.execute(_REQUESTED, requested)

    def request_full_resyncs(self) -> None:
        """Request a full resync of every connection, after Redis has lost its messages."""
        with self._db.connection() as connection:
            rows = connection.execute(_ALL).fetchall()
        self._commands.send_all(_resync(row, "Redis was emptied", full=True) for row in rows)


def _resync(row: dict[str, Any], reason: str, *, full: bool) -> messages.Message:
    return messages.of_resync(
        connection=ConnectionVersion(row["connection_id"], row["version"]), reason=reason, full=full
    )
