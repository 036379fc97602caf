"""Which workflow serves a call, and with which settings: the configuration and the workflow as they are now."""

from __future__ import annotations

from typing import Any

from shared import errors
from shared.call.states import Cause
from shared.platform.dograh import configurations, json_values, telephony_configuration
from shared.platform.ports import NoRoute, Route
from shared.storage import database


class Routes:
    """Looks up routes."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def inbound(self, *, source_id: int, organization_id: int) -> Route | NoRoute:
        """Return the route of a connection's inbound calls."""
        with self._db.connection() as connection:
            value = configuration(connection, source_id, organization_id)
            if isinstance(value, NoRoute):
                return value
            workflow_id = json_values.whole_number(value.get("inbound_workflow_id"))
            if workflow_id is None:
                return refusal(value, "no inbound workflow configured", Cause.UNALLOCATED)
            return judge(connection, value, workflow_id, organization_id, "inbound workflow")

    def outbound(self, *, source_id: int, organization_id: int, workflow_id: int) -> Route | NoRoute:
        """Return the route of an outbound call for a workflow."""
        with self._db.connection() as connection:
            value = configuration(connection, source_id, organization_id)
            if isinstance(value, NoRoute):
                return value
            return judge(connection, value, workflow_id, organization_id, f"workflow {workflow_id}")


def configuration(connection: database.Connection, source_id: int, organization_id: int) -> dict[str, Any] | NoRoute:
    """Return a connection's configuration, or why there is none."""
    row = connection.execute(
        "SELECT value::text AS value FROM organization_configurations"
        " WHERE id = %s AND organization_id = %s AND key = %s",
        [source_id, organization_id, configurations.KEY],
    ).fetchone()
    if row is None:
        return NoRoute(reason="configuration removed", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
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
        "SELECT organization_id, user_id, status::text AS status FROM workflows WHERE id = %s", [workflow_id]
    ).fetchone()
    if workflow is None:
        return refusal(value, f"{what} does not exist", Cause.UNALLOCATED)
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
        workflow_id=workflow_id,
        user_id=workflow["user_id"],
        settings=settings,
        continue_in_dialplan=telephony_configuration.continue_in_dialplan(value),
    )
