"""The tenants' telephony configurations: read by the scheduler, written as the platform's own API would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared import errors
from shared.platform.dograh import accounts, json_values, telephony_configuration
from shared.storage import database

KEY = "TELEPHONY_CONFIGURATION"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRow:
    """One organization's telephony configuration, as stored."""

    source_id: int
    organization_id: int
    value: object


class Configurations:
    """Telephony configurations of provider `ari`."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def all(self) -> list[ConfigurationRow]:
        """Every one, read whole or not at all.

        The column is JSON and may hold what is no object: each value is judged on its own, here and by the caller.
        """
        with self._db.connection() as connection:
            rows = connection.execute(
                "SELECT id, organization_id, value::text AS value FROM organization_configurations WHERE key = %s",
                [KEY],
            ).fetchall()
        found = []
        for row in rows:
            value = json_values.load(row["value"])
            if telephony_configuration.is_ari(value):
                found.append(ConfigurationRow(source_id=row["id"], organization_id=row["organization_id"], value=value))
        return found

    def write(self, organization_id: int, value: Mapping[str, Any], *, replace: bool) -> None:
        """Writes an organization's, as the platform's own API would.

        Raises:
            InvalidConfiguration: There is no such organization, or no such workflow of it, or it has a configuration
                and `replace` is not set.
        """
        with self._db.transaction() as connection:
            accounts.require_organization(connection, organization_id)
            workflow_id = json_values.whole_number(value.get("inbound_workflow_id"))
            found = connection.execute("SELECT organization_id FROM workflows WHERE id = %s", [workflow_id]).fetchone()
            if workflow_id is not None and (found is None or found["organization_id"] != organization_id):
                raise errors.InvalidConfiguration(f"organization {organization_id} has no workflow {workflow_id}")
            written = connection.execute(
                "INSERT INTO organization_configurations AS c (organization_id, key, value, created_at)"
                " VALUES (%s, %s, %s, clock_timestamp()) ON CONFLICT (organization_id, key)"
                " DO UPDATE SET value = excluded.value WHERE %s RETURNING c.id",
                [organization_id, KEY, json.dumps(dict(value)), replace],
            ).fetchone()
            if written is None:
                raise errors.InvalidConfiguration(
                    f"organization {organization_id} has a configuration already: --replace changes it"
                )

    def remove(self, organization_id: int) -> None:
        """Removes an organization's. Raises InvalidConfiguration when it has none of ours."""
        with self._db.transaction() as connection:
            row = connection.execute(
                "SELECT id, value::text AS value FROM organization_configurations"
                " WHERE organization_id = %s AND key = %s FOR UPDATE",
                [organization_id, KEY],
            ).fetchone()
            if row is None or not telephony_configuration.is_ari(json_values.load(row["value"])):
                raise errors.InvalidConfiguration(f"organization {organization_id} has no ARI configuration")
            connection.execute("DELETE FROM organization_configurations WHERE id = %s", [row["id"]])
