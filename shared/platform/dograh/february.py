"""The layout of 2026-02: an organization has one configuration, which names the workflow of all its inbound calls.

Also that of an installation without the platform. The configuration is found by its organization: its row may have
been saved anew since the scheduler read it.
"""

from __future__ import annotations

from typing import Any

from shared.call.calls import Call
from shared.call.states import Cause
from shared.platform.dograh import accounts, json_values, layouts, workflows
from shared.platform.ports import NoRoute, Route
from shared.storage import database

LAYOUT = layouts.Layout.FEBRUARY_2026
KEY = "TELEPHONY_CONFIGURATION"

CONFIGURATIONS = f"""
SELECT id AS source_id, organization_id, value::text AS value FROM organization_configurations WHERE key = '{KEY}'
"""  # noqa: S608 - built from constants

_VALUES = f"c.organization_id AS tenant, c.value::text AS value, l.value::text AS call_limit, {layouts.IS_NEWEST}"
_OF_CONNECTION = f"""
WHERE c.key = '{KEY}' AND c.organization_id = (
    SELECT organization_id FROM ari.connections WHERE connection_id = %(connection_id)s)
"""  # noqa: S608 - built from constants
_CONFIGURATION = f"""
FROM organization_configurations c
LEFT JOIN organization_configurations l
    ON l.organization_id = c.organization_id AND l.key = '{accounts.LIMIT_KEY}'
"""
#: All that routing an inbound call reads, in one statement. The workflow is joined only by a plain number; any other
#: spelling of its id is read in Python, and the workflow by a second statement.
_WITH_WORKFLOW = f"""
{_VALUES}, w.id AS workflow_id, w.organization_id, w.user_id, w.status::text AS status
{_CONFIGURATION}
LEFT JOIN workflows w ON w.id = CASE WHEN c.value->>'inbound_workflow_id' ~ '^[0-9]{{1,9}}$'
                                     THEN (c.value->>'inbound_workflow_id')::integer END
{_OF_CONNECTION}
"""
INBOUND = f"SELECT {_WITH_WORKFLOW}"
#: Of that row, `found`: the workflow may serve the call (as `workflows.judge` says).
MAY_SERVE = """
found.organization_id = found.tenant AND found.user_id IS NOT NULL AND found.status IS DISTINCT FROM 'archived'
"""
#: The same without the workflow, for JSON that Postgres cannot look into.
INBOUND_VALUES = f"SELECT {_VALUES}, NULL AS workflow_id {_CONFIGURATION} {_OF_CONNECTION}"
CONFIGURATION = f"""
SELECT c.organization_id AS tenant, c.value::text AS value, {layouts.IS_NEWEST}
FROM organization_configurations c {_OF_CONNECTION}
"""  # noqa: S608 - built from constants
WORKFLOW = (
    "SELECT id AS workflow_id, organization_id, user_id, status::text AS status FROM workflows"
    " WHERE id = %(workflow_id)s"
)

#: A run's definition and initial_context, of the parameters `workflow_id`, `connection_id` and `initial`.
RUN_DEFINITION = """(SELECT d.id FROM workflow_definitions d WHERE d.workflow_id = %(workflow_id)s
AND d.is_current ORDER BY d.id DESC LIMIT 1)"""
RUN_INITIAL = "%(initial)s"
NEEDS_DEFINITION = False


def value(row: database.Row) -> object:
    """Return the configuration of a row, whatever was stored there."""
    return json_values.load(row["value"])


def number(called_number: str) -> str:
    """Return what calls to a number are looked up by: nothing, each goes to the same workflow."""
    return ""


def configuration(row: database.Row | None) -> dict[str, Any] | NoRoute:
    """Return a configuration's value from its row; None for one that does not exist."""
    if row is None or row["value"] is None:
        return workflows.REMOVED
    found = value(row)
    return found if isinstance(found, dict) else workflows.UNREADABLE


def inbound(row: database.Row | None) -> Route | NoRoute | int:
    """Return the route of an inbound call from its row; or the workflow's id, if that was not read along."""
    found = configuration(row)
    if isinstance(found, NoRoute):
        return found
    assert row is not None, "a value was read"
    workflow_id = json_values.whole_number(found.get("inbound_workflow_id"))
    if workflow_id is None:
        return workflows.refusal(found, "no inbound workflow configured", Cause.UNALLOCATED)
    if workflow_id != row["workflow_id"]:
        return workflow_id
    return workflows.with_limit(workflows.judge(row, found, row["tenant"], workflows.INBOUND), row)


def media_ids(call: Call) -> dict[str, int | None]:
    """Return the ids of the media URL, in the order of the token."""
    return {"workflow_id": call.workflow_id, "user_id": call.user_id, "workflow_run_id": call.workflow_run_id}
