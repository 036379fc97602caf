"""Whether a workflow may serve an organization's call, in whichever layout: judged from rows that a statement read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shared import errors
from shared.call.states import Cause
from shared.platform.dograh import accounts, telephony_configuration
from shared.platform.ports import NoRoute, Route
from shared.storage import database

INBOUND = "inbound workflow"
REMOVED = NoRoute(reason="configuration removed", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
UNREADABLE = NoRoute(reason="configuration unreadable", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)


def refusal(value: object, reason: str, hangup_cause: int) -> NoRoute:
    """Return a refusal that treats the caller as this configuration says."""
    return NoRoute(
        reason=reason,
        hangup_cause=hangup_cause,
        continue_in_dialplan=telephony_configuration.continue_in_dialplan(value),
    )


def judge(workflow: database.Row | None, value: dict[str, Any], organization_id: int, what: str) -> Route | NoRoute:
    """Return the route to a workflow if it may serve an organization's call; `what` names it in a refusal's reason.

    Args:
        workflow: Its `workflow_id`, `organization_id`, `user_id`, `status` and, where a run needs a definition,
            `definition_id`; None, or a row whose id is NULL, for a workflow that does not exist.
        value: The configuration by which the call comes or goes.
    """
    unfit = _unfit(workflow, organization_id)
    if unfit is not None:
        reason, cause = unfit
        return refusal(value, f"{what} {reason}", cause)
    assert workflow is not None, "one that does not exist is unfit"
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


def with_limit(route: Route | NoRoute, row: database.Row) -> Route | NoRoute:
    """Return a route with the organization's limit of calls, which was read along."""
    limit = accounts.call_limit(row["call_limit"]) if row["call_limit"] is not None else None
    return replace(route, concurrent_calls=limit) if isinstance(route, Route) else route


def _unfit(workflow: database.Row | None, organization_id: int) -> tuple[str, Cause] | None:
    """Return why a workflow may not serve an organization's call, and the hang-up cause; None if it may."""
    if workflow is None or workflow["workflow_id"] is None:
        return "does not exist", Cause.UNALLOCATED
    if workflow["organization_id"] != organization_id:
        return "belongs to another organization", Cause.NOT_ALLOWED
    if workflow["status"] == "archived":
        return "is archived", Cause.UNALLOCATED
    if workflow["user_id"] is None:
        return "has no user", Cause.NOT_ALLOWED
    if "definition_id" in workflow and workflow["definition_id"] is None:
        return "has no definition: publish it", Cause.UNALLOCATED
    return None
