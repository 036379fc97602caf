"""Which workflow serves a call, and with which settings: the configuration and the workflow as they are now.

The configuration is found by its organization, which has one at a time: its row may have been saved anew since the
scheduler read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shared import errors
from shared.call.states import Cause
from shared.platform.dograh import accounts, configurations, json_values, layouts, telephony_configuration
from shared.platform.ports import NoRoute, Route
from shared.storage import database

_VALUES = f"c.value::text AS value, l.value::text AS call_limit, {layouts.IS_STALE}"
_CONFIGURATION = """
FROM organization_configurations c
LEFT JOIN organization_configurations l ON l.organization_id = c.organization_id AND l.key = %(limit_key)s
"""
_WHICH = "WHERE c.organization_id = %(organization_id)s AND c.key = %(key)s"
_OF_CONNECTION = """
WHERE c.key = %(key)s AND c.organization_id = (
    SELECT organization_id FROM ari.connections WHERE connection_id = %(connection_id)s)
"""
#: All that routing an inbound call reads, in one statement. The workflow is joined only by a plain number; any other
#: spelling of its id is read in Python, and the workflow by a second statement.
_WITH_WORKFLOW = f"""
{_VALUES}, w.id AS workflow_id, w.organization_id, w.user_id, w.status::text AS status
{_CONFIGURATION}
LEFT JOIN workflows w ON w.id = CASE WHEN c.value->>'inbound_workflow_id' ~ '^[0-9]{{1,9}}$'
                                     THEN (c.value->>'inbound_workflow_id')::integer END
"""
_INBOUND = f"SELECT {_WITH_WORKFLOW} {_WHICH}"
#: The same by our own connection, with an id for the run: NULL without a sequence of the table's own, and where the
#: workflow may not serve the call (as `_judge` says): refused callers, who may be many, must not use up the ids.
_INBOUND_OF_CONNECTION = f"""
SELECT CASE WHEN w.organization_id = c.organization_id AND w.user_id IS NOT NULL
                 AND w.status::text IS DISTINCT FROM 'archived'
            THEN nextval(pg_get_serial_sequence('workflow_runs', 'id')) END AS run_id,
       c.organization_id AS tenant, {_WITH_WORKFLOW}
{_OF_CONNECTION}
"""  # noqa: S608 - built from constants
#: A configuration alone.
_ALONE = f"SELECT c.value::text AS value, {layouts.IS_STALE} FROM organization_configurations c {_WHICH}"  # noqa: S608 - built from constants
#: The same without the workflow.
_INBOUND_VALUES = f"SELECT {_VALUES}, NULL AS workflow_id {_CONFIGURATION} {_WHICH}"


_INBOUND_WORKFLOW = "inbound workflow"
_REMOVED = NoRoute(reason="configuration removed", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
_STALE = NoRoute(reason=layouts.unserved_newest(), hangup_cause=Cause.NETWORK_OUT_OF_ORDER)


class Routes:
    """Looks up routes."""

    def __init__(self, db: database.Database, *, layout: layouts.Setting = layouts.AUTO) -> None:
        self._db = db
        self._layout = layout

    def inbound(self, organization_id: int) -> Route | NoRoute:
        """Return the route of an organization's inbound calls."""
        values = {
            "organization_id": organization_id,
            "key": configurations.KEY,
            "limit_key": accounts.LIMIT_KEY,
            "layout": self._layout,
        }
        try:
            with self._db.connection() as connection:
                row = connection.execute(_INBOUND, values).fetchone()
        except errors.DatabaseRefused:
            # Postgres cannot look into this tenant's JSON (a NUL in a text); Python can.
            with self._db.connection() as connection:
                row = connection.execute(_INBOUND_VALUES, values).fetchone()
        found = _inbound(row, organization_id)
        if not isinstance(found, _Elsewhere):
            return found
        with self._db.connection() as connection:
            route = judge(connection, found.value, found.workflow_id, organization_id, _INBOUND_WORKFLOW)
        return replace(route, concurrent_calls=found.call_limit) if isinstance(route, Route) else route

    def send_inbound(self, connection: database.Connection, connection_id: int) -> Callable[[], Route | NoRoute | None]:
        """Send for the route of a connection's inbound calls, as the port says."""
        values = {
            "connection_id": connection_id,
            "key": configurations.KEY,
            "limit_key": accounts.LIMIT_KEY,
            "layout": self._layout,
        }
        sent = connection.send(_INBOUND_OF_CONNECTION, values)

        def route() -> Route | NoRoute | None:
            row = sent.fetchone()
            found = _inbound(row, row["tenant"]) if row is not None else _REMOVED
            if isinstance(found, Route):
                assert row is not None, "a route was read"
                return replace(found, reserved_run_id=row["run_id"])
            return found if isinstance(found, NoRoute) else None

        return route

    def outbound(self, *, organization_id: int, workflow_id: int) -> Route | NoRoute:
        """Return the route of an outbound call for a workflow."""
        with self._db.connection() as connection:
            value = configuration(connection, organization_id, layout=self._layout)
            if isinstance(value, NoRoute):
                return value
            return judge(connection, value, workflow_id, organization_id, f"workflow {workflow_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Elsewhere:
    """A configuration whose workflow was not read along: its id is spelled in another way."""

    value: dict[str, Any]
    workflow_id: int
    call_limit: int | None


def _inbound(row: database.Row | None, organization_id: int) -> Route | NoRoute | _Elsewhere:
    value = _read(row)
    if isinstance(value, NoRoute):
        return value
    assert row is not None, "a value was read"
    workflow_id = json_values.whole_number(value.get("inbound_workflow_id"))
    if workflow_id is None:
        return refusal(value, "no inbound workflow configured", Cause.UNALLOCATED)
    limit = accounts.call_limit(row["call_limit"]) if row["call_limit"] is not None else None
    if workflow_id != row["workflow_id"]:
        return _Elsewhere(value=value, workflow_id=workflow_id, call_limit=limit)
    route = _judge(row, value, organization_id, _INBOUND_WORKFLOW)
    return replace(route, concurrent_calls=limit) if isinstance(route, Route) else route


def configuration(
    connection: database.Connection, organization_id: int, *, layout: layouts.Setting
) -> dict[str, Any] | NoRoute:
    """Return an organization's configuration, or why there is none."""
    values = {"organization_id": organization_id, "key": configurations.KEY, "layout": layout}
    return _read(connection.execute(_ALONE, values).fetchone())


def _read(row: database.Row | None) -> dict[str, Any] | NoRoute:
    """Read a configuration's value from its row; None for one that does not exist."""
    if row is None or row["value"] is None:
        return _REMOVED
    if row["is_stale"]:
        return _STALE
    value = json_values.load(row["value"])
    if not isinstance(value, dict):
        return NoRoute(reason="configuration unreadable", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
    return value


def refusal(value: object, reason: str, hangup_cause: int) -> NoRoute:
    """Return a refusal that treats the caller as this configuration says."""
    return NoRoute(
        reason=reason,
        hangup_cause=hangup_cause,
        continue_in_dialplan=telephony_configuration.continue_in_dialplan(value),
    )


def judge(
    connection: database.Connection, value: dict[str, Any], workflow_id: int, organization_id: int, what: str
) -> Route | NoRoute:
    """Return the route to a workflow if it may serve an organization's call; `what` names it in a refusal's reason."""
    workflow = connection.execute(
        "SELECT id AS workflow_id, organization_id, user_id, status::text AS status FROM workflows WHERE id = %s",
        [workflow_id],
    ).fetchone()
    if workflow is None:
        return refusal(value, f"{what} does not exist", Cause.UNALLOCATED)
    return _judge(workflow, value, organization_id, what)


def _judge(workflow: database.Row, value: dict[str, Any], organization_id: int, what: str) -> Route | NoRoute:
    if workflow["organization_id"] != organization_id:
        return refusal(value, f"{what} belongs to another organization", Cause.NOT_ALLOWED)
    if workflow["status"] == "archived":
        return refusal(value, f"{what} is archived", Cause.UNALLOCATED)
    if workflow["user_id"] is None:
        return refusal(value, f"{what} has no user", Cause.NOT_ALLOWED)
    try:
        settings = telephony_configuration.parse_call_settings(value)
    except errors.InvalidConfiguration as exc:
        return refusal(value, str(exc), Cause.NETWORK_OUT_OF_ORDER)
    return Route(
        workflow_id=workflow["workflow_id"],
        user_id=workflow["user_id"],
        settings=settings,
        continue_in_dialplan=telephony_configuration.continue_in_dialplan(value),
    )
