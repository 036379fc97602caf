"""Where the new calls of a connection go, as a worker looks it up, or assumes it and checks that in the transaction."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import cast

from shared import errors, inbound_lookup
from shared.call.ids import ConnectionVersion
from shared.platform.ports import Route
from shared.storage import database
from tests.simulation.commits import Transaction
from tests.simulation.platforms import Connections, Postgres, Routes, Runs

ASSUMED = "a call admitted by what was assumed"
OUTDATED = "what was assumed was not so any more"


class Lookup:
    """The lookup of one worker. Every second organization's runs get their ids at their INSERT only.

    Args:
        ways: Counts both of the above.
    """

    def __init__(
        self, postgres: Postgres, connections: Connections, routes: Routes, runs: Runs, ways: Counter[str]
    ) -> None:
        self._postgres = postgres
        self._connections = connections
        self._routes = routes
        self._runs = runs
        self._ways = ways
        #: Connection version → what was looked up, and until when it is assumed.
        self._remembered: dict[ConnectionVersion, tuple[inbound_lookup.Destination, float]] = {}

    def destination(
        self, connection: ConnectionVersion, called_number: str, *, assume: bool = False
    ) -> inbound_lookup.Destination:
        now = self._postgres.moment().timestamp()
        known, until = self._remembered.get(connection, (None, now))
        if assume and known is not None and now < until:
            route = replace(cast(Route, known.route), reserved_run_id=self._runs.reserve())
            return replace(known, route=route, check=lambda db: self._check(db, connection, known))
        found = self._postgres.statement("look up", lambda: self._destination(connection))
        if found.target.organization_id % 2:
            self._remembered[connection] = found, now + inbound_lookup.ASSUMED_SECONDS
        return found

    def _check(self, db: database.Connection, connection: ConnectionVersion, known: inbound_lookup.Destination) -> None:
        def check() -> None:
            is_so = _as_read(self._destination(connection)) == _as_read(known)
            self._ways[ASSUMED if is_so else OUTDATED] += 1
            if not is_so:
                raise errors.RowChanged("another process has written it since it was read")

        cast(Transaction, db).unsent.append(check)

    def _destination(self, connection: ConnectionVersion) -> inbound_lookup.Destination:
        target = self._connections.target(connection)
        reserved = self._runs.reserve() if target.organization_id % 2 else None
        route = replace(self._routes.to(target.organization_id), reserved_run_id=reserved)
        return inbound_lookup.Destination(target=target, route=route)


def _as_read(destination: inbound_lookup.Destination) -> inbound_lookup.Destination:
    return replace(destination, route=replace(cast(Route, destination.route), reserved_run_id=None))
