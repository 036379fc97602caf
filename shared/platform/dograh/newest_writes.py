"""Writes an organization's configurations and their phone numbers in the newest layout, for `arictl connection`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shared import errors
from shared.platform.dograh import phone_numbers, telephony_configuration
from shared.storage import database

#: As long as the platform's column.
_NAME_LENGTH = 64
#: Not in the credentials: columns and rows of their own.
_ELSEWHERE = ("provider", "inbound_workflow_id", "from_numbers")

#: What may be written there. The platform has fields of its own, as `dial_string_template`: they stay, unless what is
#: there cannot be read.
_OURS = ("ari_endpoint", "app_name", "app_password", "ws_client_name", "stasis_app_name", "ari_ca_bundle",
         "ari_on_refusal", "ari_dial_template", "ari_max_call_seconds")  # fmt: skip

#: Another provider's configuration of that name stays as it is. One that was parked is active again, as when the
#: platform re-activates it.
_WRITE = """
INSERT INTO telephony_configurations AS c
    (organization_id, name, provider, credentials, is_default_outbound, created_at, updated_at)
VALUES (%(organization_id)s, %(name)s, 'ari', %(credentials)s, NOT EXISTS (
    SELECT 1 FROM telephony_configurations WHERE organization_id = %(organization_id)s AND is_default_outbound),
    clock_timestamp(), clock_timestamp())
ON CONFLICT (organization_id, name) DO UPDATE SET
    credentials = CASE WHEN json_typeof(c.credentials) = 'object' AND strpos(c.credentials::text, '\\u0000') = 0 THEN (
        SELECT json_object_agg(field, content) FROM (
            SELECT * FROM json_each(c.credentials) WHERE key <> ALL(%(ours)s)
            UNION ALL SELECT * FROM json_each(excluded.credentials)) AS fields (field, content))
    ELSE excluded.credentials END,
    updated_at = excluded.updated_at, inactive = false, inactive_since = NULL, inactive_reason = NULL
WHERE %(replace)s AND c.provider = 'ari' RETURNING c.id
"""

#: A number has one configuration. Those of this one go to the workflow from now on.
_WRITE_NUMBER = """
INSERT INTO telephony_phone_numbers AS p (organization_id, telephony_configuration_id, address, address_normalized,
    address_type, inbound_workflow_id, is_default_caller_id, created_at, updated_at)
VALUES (%(organization_id)s, %(configuration_id)s, %(address)s, %(normalized)s, %(kind)s, %(workflow_id)s, NOT EXISTS (
    SELECT 1 FROM telephony_phone_numbers
    WHERE telephony_configuration_id = %(configuration_id)s AND is_default_caller_id),
    clock_timestamp(), clock_timestamp())
ON CONFLICT (organization_id, address_normalized) DO UPDATE SET inbound_workflow_id = excluded.inbound_workflow_id,
    is_active = true, updated_at = excluded.updated_at
WHERE p.telephony_configuration_id = %(configuration_id)s RETURNING p.id
"""


def write(
    connection: database.Connection, organization_id: int, name: str, value: Mapping[str, Any], *, replace: bool
) -> None:
    """Write a configuration, and a phone number for each of its `from_numbers`, with the inbound workflow."""
    telephony_configuration.check_text(name, "the configuration's name", longest=_NAME_LENGTH)
    credentials = {field: content for field, content in value.items() if field not in _ELSEWHERE}
    row = connection.execute(
        _WRITE,
        {
            "organization_id": organization_id,
            "name": name,
            "credentials": json.dumps(credentials),
            "ours": list(_OURS),
            "replace": replace,
        },
    ).fetchone()
    if row is None:
        raise errors.InvalidConfiguration(
            f"organization {organization_id} already has a configuration {name!r}: --replace changes it, if it is one"
            " for an Asterisk; --name adds another one"
        )
    for address in value.get("from_numbers") or ():
        number = {
            "organization_id": organization_id,
            "configuration_id": row["id"],
            "address": address,
            "normalized": phone_numbers.canonical(address),
            "kind": phone_numbers.kind(address),
            "workflow_id": value.get("inbound_workflow_id"),
        }
        if connection.execute(_WRITE_NUMBER, number).fetchone() is None:
            raise errors.InvalidConfiguration(f"the number {address} belongs to another configuration")


def remove(connection: database.Connection, organization_id: int, name: str | None) -> None:
    """Remove a configuration, with its phone numbers; without a name the organization's only one."""
    rows = connection.execute(
        "SELECT id, name FROM telephony_configurations WHERE organization_id = %(organization_id)s AND provider = 'ari'"
        " AND (%(name)s::text IS NULL OR name = %(name)s) ORDER BY id FOR UPDATE",
        {"organization_id": organization_id, "name": name},
    ).fetchall()
    if not rows:
        raise errors.InvalidConfiguration(f"organization {organization_id} has no ARI configuration")
    if len(rows) > 1:
        names = ", ".join(repr(row["name"]) for row in rows[:5])
        raise errors.InvalidConfiguration(f"organization {organization_id} has several configurations: --name {names}")
    connection.execute("DELETE FROM telephony_configurations WHERE id = %s", [rows[0]["id"]])
