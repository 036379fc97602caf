"""Requests resyncs on a clock, each of one Asterisk. Every fourth is full: two requests to it instead of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shared import messages
from shared.call.ids import ConnectionVersion
from shared.storage import database

_FULL_EVERY = 4

#: Versions whose socket is open, and older ones that still have calls.
_DUE = """
SELECT v.connection_id, v.version FROM ari.connection_versions v
WHERE v.retired_at IS NULL AND (v.socket_state = 'connected' OR EXISTS (
    SELECT 1 FROM ari.calls c
    WHERE c.connection_id = v.connection_id AND c.connection_version = v.version AND c.state <> 'ended'))
"""


class ResyncQueue(Protocol):
    """Where the requests go. `queues.BrokerCommandQueue` is the adapter. Both methods raise QueueUnavailable."""

    def waiting(self, queue: str) -> int:
        """Return how many messages are waiting in a queue."""

    def send_all(self, made: Iterable[messages.Message]) -> None:
        """Enqueue messages, for now."""


class Resyncs:
    """Enqueues resyncs, and counts its ticks."""

    def __init__(self, db: database.Database, commands: ResyncQueue) -> None:
        self._db = db
        self._commands = commands
        self._tick = 0

    def request_resyncs(self) -> None:
        """Request a resync of every connection, unless resyncs requested earlier are still waiting."""
        if self._commands.waiting("resync") > 0:
            return
        full = self._tick % _FULL_EVERY == 0
        self._tick += 1
        self._request(messages.RESYNC_CLOCK, full=full)

    def request_full_resyncs(self) -> None:
        """Request a full resync of every connection, after Redis has lost its messages."""
        self._request("Redis was emptied", full=True)

    def _request(self, reason: str, *, full: bool) -> None:
        with self._db.connection() as connection:
            rows = connection.execute(_DUE).fetchall()
        due = (ConnectionVersion(row["connection_id"], row["version"]) for row in rows)
        self._commands.send_all(messages.of_resync(connection=each, reason=reason, full=full) for each in due)
