"""What an inbound call's admission reads, in one round trip: its connection, the organization's limits, the route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from shared import errors
from shared.call.ids import ConnectionVersion
from shared.platform.ports import NoRoute, Route, Routes
from shared.storage import database
from shared.storage.connections import InboundTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a new call goes."""

    target: InboundTarget
    #: None when the route takes more statements: `Routes.inbound` runs them.
    route: Route | NoRoute | None


class Connections(Protocol):
    """Which connection version serves a call. `connections.Connections` is the adapter."""

    def inbound_target(self, connection: ConnectionVersion) -> InboundTarget | None:
        """Return it, or None when there is no such connection version."""

    def send_inbound_target(
        self, db: database.Connection, connection: ConnectionVersion
    ) -> Callable[[], InboundTarget | None]:
        """Send for it; return what returns it, once the answer is there."""


class InboundLookup:
    """Looks up where the new calls of a connection go."""

    def __init__(self, db: database.Database, connections: Connections, routes: Routes) -> None:
        self._db = db
        self._connections = connections
        self._routes = routes

    def destination(self, connection: ConnectionVersion, called_number: str) -> Destination | None:
        """Return where a new call goes that this version's socket reported; None when there is no such version."""
        try:
            with self._db.connection() as db:
                target_of = self._connections.send_inbound_target(db, connection)
                route_of = self._routes.send_inbound(db, connection.connection_id, called_number)
            target, route = target_of(), route_of()
        except errors.DatabaseRefused:
            # One tenant's configuration is JSON that Postgres cannot look into (a NUL in a text).
            target, route = self._connections.inbound_target(connection), None
        if target is None:
            return None
        if target.served_by is not None and target.served_by.connection_id != connection.connection_id:
            # The connection that has the app instance now: its configuration is another one.
            route = None
        return Destination(target=target, route=route)
