"""What an inbound call's admission reads, in one round trip: its connection, the organization's limits, the route.

While calls come in fast, what was looked up for one is assumed for the next ones, and checked in the transaction that
admits each: the statements are the same, but nobody waits for their answers. What is assumed never refuses a caller.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from shared import errors
from shared.call.ids import ConnectionVersion
from shared.platform.ports import NoRoute, Route, Routes
from shared.storage import database
from shared.storage.connections import InboundTarget

#: How long what was looked up is assumed.
ASSUMED_SECONDS = 2.0
#: The connections and numbers remembered.
_MOST_REMEMBERED = 1000
#: Most ids that are reserved at a time for the runs of further calls.
_MOST_IDS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a new call goes."""

    target: InboundTarget
    #: None when the route takes more statements: `Routes.inbound` runs them.
    route: Route | NoRoute | None
    #: Of one that is assumed: has the caller's transaction fail with RowChanged unless all is as it was.
    check: Callable[[database.Connection], None] | None = field(default=None, compare=False)


class Connections(Protocol):
    """Which connection version serves a call. `connections.Connections` is the adapter."""

    def inbound_target(self, connection: ConnectionVersion) -> InboundTarget | None:
        """Return it, or None when there is no such connection version."""

    def send_inbound_target(
        self, db: database.Connection, connection: ConnectionVersion
    ) -> Callable[[], InboundTarget | None]:
        """Send for it; return what returns it, once the answer is there."""

    def check_inbound_target(self, db: database.Connection, connection: ConnectionVersion, read: int) -> None:
        """Have a transaction fail with RowChanged unless the rows that it was read from are as they were."""


@dataclass(slots=True)
class _Remembered:
    """What was looked up, until when it is assumed, and the reserved ids of runs that are left."""

    target: InboundTarget
    route: Route
    until: float
    run_ids: deque[int]
    #: How many calls it has served.
    used: int = 1


class InboundLookup:
    """Looks up where the new calls of a connection go.

    Args:
        monotonic: Seconds since an arbitrary moment.
    """

    def __init__(
        self,
        db: database.Database,
        connections: Connections,
        routes: Routes,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._connections = connections
        self._routes = routes
        self._monotonic = monotonic
        #: By connection version and number called, that looked up first at the front.
        self._remembered: OrderedDict[tuple[ConnectionVersion, str], _Remembered] = OrderedDict()

    def destination(
        self, connection: ConnectionVersion, called_number: str, *, assume: bool = False
    ) -> Destination | None:
        """Return where a new call goes that this version's socket reported; None when there is no such version.

        Args:
            assume: It may be assumed, as the last call to this number has found it.
        """
        known = self._remembered.get((connection, called_number))
        if assume and known is not None and self._monotonic() < known.until:
            try:
                run_id = known.run_ids.popleft()
            except IndexError:
                pass
            else:
                known.used += 1
                return self._assumed(connection, called_number, known, run_id)
        return self._looked_up(connection, called_number, further_ids=self._further_ids(known) if assume else 0)

    def _further_ids(self, known: _Remembered | None) -> int:
        """Return for how many further calls an id is reserved: as many as came lately, or twice these if they ran out.

        An id that is not used in time is used for no run.
        """
        if known is None:
            return 0
        is_over = self._monotonic() >= known.until
        return min(_MOST_IDS, known.used - 1 if is_over else 2 * known.used)

    def _assumed(
        self, connection: ConnectionVersion, called_number: str, known: _Remembered, run_id: int
    ) -> Destination:
        def check(db: database.Connection) -> None:
            self._connections.check_inbound_target(db, connection, known.target.read)
            self._routes.check_inbound(db, connection.connection_id, called_number, known.route.read)

        return Destination(target=known.target, route=replace(known.route, reserved_run_id=run_id), check=check)

    def _looked_up(self, connection: ConnectionVersion, called_number: str, *, further_ids: int) -> Destination | None:
        now = self._monotonic()
        try:
            with self._db.connection() as db:
                target_of = self._connections.send_inbound_target(db, connection)
                route_of = self._routes.send_inbound(
                    db, connection.connection_id, called_number, run_ids=1 + further_ids
                )
            target, route = target_of(), route_of()
        except errors.DatabaseRefused:
            # One tenant's configuration is JSON that Postgres cannot look into (a NUL in a text).
            target, route = self._connections.inbound_target(connection), None
        if target is None:
            return None
        if target.served_by is not None and target.served_by.connection_id != connection.connection_id:
            # The connection that has the app instance now: its configuration is another one.
            route = None
        if target.served_by is not None and isinstance(route, Route) and route.reserved_run_id is not None:
            run_ids = deque(route.further_run_ids)
            known = _Remembered(target, replace(route, further_run_ids=()), now + ASSUMED_SECONDS, run_ids)
            self._remembered[connection, called_number] = known
            if len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        else:
            self._remembered.pop((connection, called_number), None)
        return Destination(target=target, route=route)
