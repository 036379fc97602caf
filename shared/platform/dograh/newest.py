"""The newest layout: an organization has many configurations, and a phone number names the workflow of its calls.

A connection is one row of telephony_configurations. Its `source_id` is minus the row's id: the configurations of the
layout before were rows of another table, which may have the same ids, and an earlier release, which reads those, must
take none of these for its own.
"""

from __future__ import annotations

from typing import Any

from shared.call.calls import Call
from shared.call.states import Cause
from shared.platform.dograh import accounts, json_values, layouts, phone_numbers, workflows
from shared.platform.ports import NoRoute, Route
from shared.storage import database

LAYOUT = layouts.Layout.NEWEST
_NUMBER_LENGTH = 255

#: There is one, unless its unique index is gone: of several the first.
_CALLER_ID = (
    "(SELECT s.address FROM telephony_phone_numbers s WHERE s.telephony_configuration_id = c.id"
    " AND s.is_default_caller_id AND s.is_active ORDER BY s.id LIMIT 1) AS caller_id"
)
CONFIGURATIONS = (
    "SELECT -id AS source_id, organization_id, provider, credentials::text AS value FROM telephony_configurations"
    " WHERE provider = 'ari' AND NOT inactive"
)

#: Those that are there, and not served.
INACTIVE = "SELECT -id AS source_id FROM telephony_configurations WHERE provider = 'ari' AND inactive"

#: The phone numbers of configurations.
NUMBERS = (
    "SELECT -telephony_configuration_id AS source_id, address_normalized FROM telephony_phone_numbers"
    " WHERE telephony_configuration_id = ANY(%(row_ids)s) AND is_active ORDER BY id"
)

#: The connections of an organization's active configurations, and what a run of it begins with.
PREFERRED = """
SELECT c.id AS configuration_id, c.is_default_outbound, n.connection_id,
       (SELECT r.initial_context::text FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id
        WHERE r.id = %(run_id)s AND w.organization_id = c.organization_id) AS initial
FROM telephony_configurations c JOIN ari.connections n ON n.source_id = -c.id
WHERE c.organization_id = %(organization_id)s AND c.provider = 'ari' AND NOT c.inactive
"""

#: The configuration of connection `n`. Before the scheduler has read it again, after the platform's upgrade or when
#: the row was saved anew, it is its organization's only one; but not another connection's: then one of two was removed.
_OF_CONNECTION = """coalesce(
    (SELECT t.id FROM telephony_configurations t WHERE t.id = -n.source_id AND t.organization_id = n.organization_id),
    (SELECT CASE WHEN count(*) = 1 AND NOT bool_or(o.connection_id IS NOT NULL) THEN min(t.id) END
     FROM telephony_configurations t
     LEFT JOIN ari.connections o ON o.source_id = -t.id AND o.connection_id <> n.connection_id
     WHERE t.organization_id = n.organization_id AND t.provider = 'ari'))"""
_DEFINITION = """coalesce(w.released_definition_id, (
    SELECT d.id FROM workflow_definitions d WHERE d.workflow_id = w.id AND d.is_current ORDER BY d.id DESC LIMIT 1))"""
#: LIMIT: without statistics Postgres may read all configurations for a join.
_CONFIGURATION = f"""
FROM ari.connections n
LEFT JOIN LATERAL (
    SELECT t.id, t.inactive, t.credentials FROM telephony_configurations t
    WHERE t.id = {_OF_CONNECTION} AND t.provider = 'ari' LIMIT 1) c ON true
"""  # noqa: S608 - built from constants
_VALUES = f"""n.organization_id AS tenant, c.id AS configuration_id, c.inactive, c.credentials::text AS value,
       {_CALLER_ID}, {layouts.IS_NEWEST}"""
_WITH_WORKFLOW = f"""
{_VALUES}, l.value::text AS call_limit, p.id AS number_id, p.telephony_configuration_id AS configuration_of_number,
       p.inbound_workflow_id, %(number)s::text AS number,
       w.id AS workflow_id, w.organization_id, w.user_id, w.status::text AS status, {_DEFINITION} AS definition_id
{_CONFIGURATION}
LEFT JOIN organization_configurations l
    ON l.organization_id = n.organization_id AND l.key = '{accounts.LIMIT_KEY}'
LEFT JOIN telephony_phone_numbers p
    ON p.organization_id = n.organization_id AND p.address_normalized = %(number)s AND p.is_active
LEFT JOIN workflows w ON w.id = p.inbound_workflow_id
WHERE n.connection_id = %(connection_id)s
"""
INBOUND = f"SELECT {_WITH_WORKFLOW}"
#: As in the layout before, and the call is the connection's.
MAY_SERVE = """
found.organization_id = found.tenant AND found.user_id IS NOT NULL AND found.status IS DISTINCT FROM 'archived'
AND NOT found.inactive AND found.configuration_of_number = found.configuration_id AND found.definition_id IS NOT NULL
"""
#: Nothing in it looks into JSON.
INBOUND_VALUES = INBOUND
CONFIGURATION = f"SELECT {_VALUES} {_CONFIGURATION} WHERE n.connection_id = %(connection_id)s"
WORKFLOW = f"""
SELECT w.id AS workflow_id, w.organization_id, w.user_id, w.status::text AS status, {_DEFINITION} AS definition_id
FROM workflows w WHERE w.id = %(workflow_id)s
"""  # noqa: S608 - built from constants

RUN_DEFINITION = f"(SELECT {_DEFINITION} FROM workflows w WHERE w.id = %(workflow_id)s)"  # noqa: S608 - built from constants
#: The row by which the voice agent finds the Asterisk again. The JSON goes on behind what we write ourselves.
RUN_INITIAL = f"""(left(%(initial)s::text, -1) || ', "telephony_configuration_id": ' || coalesce((
    SELECT {_OF_CONNECTION} FROM ari.connections n WHERE n.connection_id = %(connection_id)s)::text, 'null')
    || ', "external_pbx_call": null}}')::json"""  # noqa: S608 - built from constants
#: The voice agent ends a call whose run has none.
NEEDS_DEFINITION = True


def value(row: database.Row) -> object:
    """Return the configuration of a row in the form of the layout before, whatever was stored there."""
    found = json_values.load(row["value"])
    if not isinstance(found, dict):
        return {"provider": "ari"}
    caller_ids = [row["caller_id"]] if row.get("caller_id") is not None else []
    return found | {"provider": "ari", "from_numbers": caller_ids}


def number(called_number: str) -> str:
    """Return what calls to a number are looked up by."""
    return phone_numbers.canonical(called_number or "unknown")[:_NUMBER_LENGTH].replace("\0", "")


def configuration(row: database.Row | None) -> dict[str, Any] | NoRoute:
    """Return a configuration's value from its row; None for one that does not exist."""
    if row is None or row["configuration_id"] is None:
        return workflows.REMOVED
    if row["inactive"]:
        return NoRoute(reason="configuration inactive", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
    if not isinstance(json_values.load(row["value"]), dict):
        return workflows.UNREADABLE
    found = value(row)
    assert isinstance(found, dict)
    return found


def inbound(row: database.Row | None) -> Route | NoRoute | int:
    """Return the route of an inbound call from its row."""
    found = configuration(row)
    if isinstance(found, NoRoute):
        return found
    assert row is not None, "a value was read"
    called = row["number"]
    if row["number_id"] is None:
        reason = f"no active phone number {called} in this organization"
        return workflows.refusal(found, reason, Cause.UNALLOCATED)
    if row["configuration_of_number"] != row["configuration_id"]:
        reason = f"phone number {called} belongs to another configuration, {row['configuration_of_number']}"
        return workflows.refusal(found, reason, Cause.NOT_ALLOWED)
    if row["inbound_workflow_id"] is None:
        return workflows.refusal(found, f"phone number {called} has no inbound workflow", Cause.UNALLOCATED)
    return workflows.with_limit(workflows.judge(row, found, row["tenant"], workflows.INBOUND), row)


def media_ids(call: Call) -> dict[str, int | None]:
    """Return the ids of the media URL, in the order of the token."""
    return {
        "workflow_id": call.workflow_id,
        "organization_id": call.organization_id,
        "workflow_run_id": call.workflow_run_id,
    }
