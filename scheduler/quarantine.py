"""Parks a connection for a while whose event socket stops one listener after the other.

The listener names it: before its heartbeats end, its thread says which socket its event loop was reading
(`listener.heartbeat_thread`). Being held by a listener that died is no evidence: all its other sockets were, too.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from shared.call.ids import ConnectionVersion
from shared.storage.timeline import TimelineEntry

log = structlog.stdlib.get_logger(__name__)

#: The timeline's entry for each listener that was lost: they are counted there, so that another leader counts on.
LISTENER_LOST = "ListenerLost"


class Sockets(Protocol):
    """The event sockets in Postgres (`socket_rows.SocketRows`)."""

    def count_notes(self, connection: ConnectionVersion, name: str) -> int:
        """Return how many notes of this name the connection got within the time of a quarantine."""

    def quarantine(self, connection: ConnectionVersion, reason: str) -> bool:
        """Assign the socket to no listener for that time; return False if it was not assigned."""


class Timeline(Protocol):
    """The timeline (`postgres_calls.PostgresCalls`)."""

    def append_timeline(self, timeline: list[TimelineEntry], *, connection_id: int) -> None:
        """Write entries about a connection."""


class Quarantine:
    """Counts the listeners that were lost over a connection.

    Args:
        deaths: How many make a quarantine.
    """

    def __init__(self, sockets: Sockets, timeline: Timeline, *, deaths: int) -> None:
        self._sockets = sockets
        self._timeline = timeline
        self._deaths = deaths

    def note_lost(self, listener: str, connection: ConnectionVersion) -> None:
        """Note that a listener was lost while it read this connection's event socket."""
        self._note(connection, LISTENER_LOST, f"{listener} stopped while it read this event socket")
        deaths = self._sockets.count_notes(connection, LISTENER_LOST)
        if deaths < self._deaths:
            return
        reason = (
            f"quarantined: {deaths} listeners stopped while they read this event socket. Look at what its Asterisk"
            " sends; it is tried again after QUARANTINE_SECONDS, or at once: arictl connection unpark"
        )
        if self._sockets.quarantine(connection, reason):
            self._note(connection, "Quarantined", reason)

    def _note(self, connection: ConnectionVersion, name: str, detail: str) -> None:
        log.warning("event socket stopped a listener", connection=str(connection), timeline=name, detail=detail)
        entry = TimelineEntry(kind="note", name=name, detail=detail)
        self._timeline.append_timeline([entry], connection_id=connection.connection_id)
