"""Which workflow serves a call, and with which settings: the configuration and the workflow as they are now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from shared import errors
from shared.platform.dograh import accounts, json_values, layouts, newest, rules, workflows
from shared.platform.ports import NoRoute, Route
from shared.storage import database

#: The statement of one call's route, for many.
_TOGETHER = """
SELECT found.* FROM unnest(%(connections)s::integer[], %(numbers)s::text[])
    WITH ORDINALITY AS wanted (id, number, place)
LEFT JOIN LATERAL ({inbound}) AS found ON true ORDER BY wanted.place
"""
#: Ids for runs: NULL without a sequence of the table's own, and where the call is refused: refused callers, who may be
#: many, must not use up the ids.
_RUN_IDS = """, CASE WHEN {may_serve} THEN ARRAY(
    SELECT nextval(pg_get_serial_sequence('workflow_runs', 'id')) FROM generate_series(1, %(run_ids)s)) END AS run_ids
"""
_AS_THE_PLATFORM = accounts.CallLimits()


class Routes:
    """Looks up routes."""

    def __init__(
        self,
        db: database.Database,
        *,
        watch: layouts.Watch | None = None,
        limits: accounts.CallLimits = _AS_THE_PLATFORM,
    ) -> None:
        self._db = db
        self._watch = watch or layouts.Watch(db, quiet=True)
        self._limits = limits

    def inbound(self, connection_id: int, called_number: str) -> Route | NoRoute:
        """Return the route of a call to a number that came in by a connection, in whatever statements it takes."""
        layout = rules.of(self._watch.look().served())
        values = {"connection_id": connection_id, "number": layout.number(called_number)}
        try:
            with self._db.connection() as connection:
                row = connection.execute(layout.INBOUND, values).fetchone()
        except errors.DatabaseRefused:
            # Postgres cannot look into this tenant's JSON (a NUL in a text); Python can.
            with self._db.connection() as connection:
                row = connection.execute(layout.INBOUND_VALUES, values).fetchone()
        found = layout.inbound(row)
        if not isinstance(found, int):
            return self._limited(found)
        assert row is not None, "it names a workflow"
        value = layout.configuration(row)
        assert not isinstance(value, NoRoute), "it names a workflow"
        with self._db.connection() as connection:
            workflow = connection.execute(layout.WORKFLOW, {"workflow_id": found}).fetchone()
        return self._limited(
            workflows.with_limit(workflows.judge(workflow, value, row["tenant"], workflows.INBOUND), row)
        )

    def inbound_together(self, called: Sequence[tuple[int, str]]) -> list[Route | NoRoute]:
        """Return the routes of calls that came in by connections, each to a number, in one statement for all of them.

        Those that take further statements, such as an odd spelling of a workflow's id, have them.
        """
        layout = rules.of(self._watch.look().served())
        values = {
            "connections": [connection_id for connection_id, _ in called],
            "numbers": [layout.number(number) for _, number in called],
        }
        inbound = layout.INBOUND.replace("%(connection_id)s", "wanted.id").replace("%(number)s", "wanted.number")
        try:
            with self._db.connection() as connection:
                rows = connection.execute(_TOGETHER.format(inbound=inbound), values).fetchall()
        except errors.DatabaseRefused:
            # Into the JSON of one of them Postgres cannot look.
            return [self.inbound(connection_id, number) for connection_id, number in called]
        routes = [layout.inbound(row) for row in rows]
        return [
            self.inbound(*call) if isinstance(route, int) else self._limited(route)
            for call, route in zip(called, routes, strict=True)
        ]

    def send_inbound(
        self, connection: database.Connection, connection_id: int, called_number: str, *, run_ids: int = 1
    ) -> Callable[[], Route | NoRoute | None]:
        """Send for the route of a call to a number that came in by a connection, as the port says."""
        try:
            layout = rules.of(self._watch.assumed(connection))
        except errors.PlatformUnserved:
            return lambda: None
        values = {"connection_id": connection_id, "number": layout.number(called_number)}
        text = database.with_fingerprint(layout.INBOUND, _RUN_IDS.format(may_serve=layout.MAY_SERVE))
        sent = connection.send(text, values | {"run_ids": run_ids})

        def route() -> Route | NoRoute | None:
            row = sent.fetchone()
            if row is None or not self._watch.is_still(layout.LAYOUT, is_newest=row["is_newest"]):
                return None
            found = layout.inbound(row)
            if isinstance(found, Route):
                first, *further = row["run_ids"] or [None]
                found = replace(found, reserved_run_id=first, further_run_ids=tuple(further), read=row["read"])
                return self._limited(found)
            return found if isinstance(found, NoRoute) else None

        return route

    def check_inbound(self, connection: database.Connection, connection_id: int, called_number: str, read: int) -> None:
        """Have a transaction fail unless the rows of a route are as they were, as the port says."""
        layout = rules.of(self._watch.assumed(connection))
        values = {"connection_id": connection_id, "number": layout.number(called_number), "read": read}
        connection.send(database.unchanged(layout.INBOUND), values)

    def preferred(self, organization_id: int, workflow_run_id: int | None) -> int | None:
        """Return the connection of the run's configuration, or else of the default one; None for any."""
        if self._watch.found().layout is not layouts.Layout.NEWEST:
            return None
        values = {"organization_id": organization_id, "run_id": workflow_run_id}
        with self._db.connection() as connection:
            rows = connection.execute(newest.PREFERRED, values).fetchall()
        initial = json_values.load_object(rows[0]["initial"]) if rows else {}
        named = json_values.whole_number(initial.get("telephony_configuration_id"))
        connections = {row["configuration_id"]: row["connection_id"] for row in rows}
        default = next((row["connection_id"] for row in rows if row["is_default_outbound"]), None)
        return connections.get(named, default)

    def outbound(self, *, connection_id: int, workflow_id: int) -> Route | NoRoute:
        """Return the route of an outbound call for a workflow, by a connection."""
        layout = rules.of(self._watch.look().served())
        with self._db.connection() as connection:
            row = connection.execute(layout.CONFIGURATION, {"connection_id": connection_id}).fetchone()
            value = layout.configuration(row)
            if isinstance(value, NoRoute):
                return value
            assert row is not None, "a value was read"
            workflow = connection.execute(layout.WORKFLOW, {"workflow_id": workflow_id}).fetchone()
        route = workflows.judge(workflow, value, row["tenant"], f"workflow {workflow_id}")
        if isinstance(route, Route) and self._limits.shares_slots_of(self._watch.found()):
            route = replace(route, concurrent_calls=accounts.Accounts(self._db).concurrent_calls(row["tenant"]))
        return self._limited(route)

    def _limited(self, route: Route | NoRoute) -> Route | NoRoute:
        """Return a route with the limit of calls that holds in the layout, which has just been seen."""
        return self._limits.applied(route, self._watch.found()) if isinstance(route, Route) else route
