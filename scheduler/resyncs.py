"""Asks for resyncs on a clock: one request to each Asterisk a tick, two every fourth, when all is well."""

from __future__ import annotations

from shared import messages, queues
from shared.storage import database

_FULL_EVERY = 4

#: Versions whose socket is up, and older ones that still have calls.
_DUE = """
SELECT v.connection_id, v.version FROM ari.connection_versions v
WHERE v.retired_at IS NULL AND (v.socket_state = 'connected' OR EXISTS (
    SELECT 1 FROM ari.calls c
    WHERE c.connection_id = v.connection_id AND c.connection_version = v.version AND c.state <> 'ended'))
"""


class Resyncs:
    """Counts the ticks."""

    def __init__(self, db: database.Database, orders: queues.BrokerCommandQueue) -> None:
        self._db = db
        self._orders = orders
        self._tick = 0

    def ask(self) -> None:
        """Asks for one resync of every connection; not while the ones asked for before are still waiting."""
        if self._orders.waiting("resync") > 0:
            return
        full = self._tick % _FULL_EVERY == 0
        self._tick += 1
        self._ask(messages.RESYNC_CLOCK, full=full)

    def ask_all(self) -> None:
        """Asks for a full resync of everything: Redis lost what it held."""
        self._ask("Redis was emptied", full=True)

    def _ask(self, reason: str, *, full: bool) -> None:
        with self._db.connection() as connection:
            due = connection.execute(_DUE).fetchall()
        for row in due:
            self._orders.send(
                messages.of_resync(
                    connection_id=row["connection_id"], connection_version=row["version"], reason=reason, full=full
                )
            )
