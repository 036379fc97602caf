"""Writes an organization's configuration in the layout of 2026-02, for `arictl connection`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shared import errors
from shared.platform.dograh import february, json_values, telephony_configuration
from shared.storage import database


def write(connection: database.Connection, organization_id: int, value: Mapping[str, Any], *, replace: bool) -> None:
    """Write the organization's configuration."""
    written = connection.execute(
        "INSERT INTO organization_configurations AS c (organization_id, key, value, created_at)"
        " VALUES (%s, %s, %s, clock_timestamp()) ON CONFLICT (organization_id, key)"
        " DO UPDATE SET value = excluded.value WHERE %s RETURNING c.id",
        [organization_id, february.KEY, json.dumps(dict(value)), replace],
    ).fetchone()
    if written is None:
        raise errors.InvalidConfiguration(
            f"organization {organization_id} already has a configuration: --replace changes it"
        )


def remove(connection: database.Connection, organization_id: int) -> None:
    """Remove the organization's configuration. Raises InvalidConfiguration if it has none for an Asterisk."""
    row = connection.execute(
        "SELECT id, value::text AS value FROM organization_configurations"
        " WHERE organization_id = %s AND key = %s FOR UPDATE",
        [organization_id, february.KEY],
    ).fetchone()
    if row is None or not telephony_configuration.is_ari(json_values.load(row["value"])):
        raise errors.InvalidConfiguration(f"organization {organization_id} has no ARI configuration")
    connection.execute("DELETE FROM organization_configurations WHERE id = %s", [row["id"]])
