"""The tenants' telephony configurations: read by the scheduler, written as the platform's own API would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared import errors
from shared.asterisk.endpoint import Configuration
from shared.platform.dograh import accounts, json_values, layouts, telephony_configuration
from shared.storage import database

KEY = "TELEPHONY_CONFIGURATION"

_ALL = "SELECT id, organization_id, value::text AS value FROM organization_configurations WHERE key = %s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRow:
    """One organization's telephony configuration, as stored."""

    source_id: int
    organization_id: int
    value: object = field(repr=False)
    #: Why the platform's configurations are of no use; None if they are.
    unserved: str | None = None

    @property
    def media_client(self) -> str | None:
        """The websocket client that connects to the voice agent; None if the configuration names none."""
        return telephony_configuration.media_client(self.value)

    def read(self) -> Configuration:
        """Return the configuration in its canonical form. Raises InvalidConfiguration if it cannot be used."""
        if self.unserved is not None:
            raise errors.InvalidConfiguration(self.unserved)
        return telephony_configuration.read(self.value)


class Configurations:
    """Telephony configurations of provider `ari`."""

    def __init__(self, db: database.Database, *, layout: layouts.Setting = layouts.AUTO) -> None:
        self._db = db
        self._layout = layout

    def all(self) -> list[ConfigurationRow]:
        """Return every configuration: all of them or, by an error, none.

        The column is JSON and need not hold an object. Each value is judged by itself, here and in `read`, so that one
        tenant's cannot spoil the others'. Beside a layout that this release does not serve, each is refused.
        """
        unserved = layouts.find(self._db, self._layout).unserved
        with self._db.connection() as connection:
            rows = connection.execute(_ALL, [KEY]).fetchall()
        found = []
        for row in rows:
            value = json_values.load(row["value"])
            if telephony_configuration.is_ari(value):
                found.append(
                    ConfigurationRow(
                        source_id=row["id"], organization_id=row["organization_id"], value=value, unserved=unserved
                    )
                )
        return found

    def fingerprint(self) -> str:
        """Return the fingerprint of what `all` would read."""
        unserved = layouts.find(self._db, self._layout).unserved
        with self._db.connection() as connection:
            return f"{database.fingerprint(connection, _ALL, [KEY])} {unserved}"

    def write(self, organization_id: int, value: Mapping[str, Any], *, replace: bool) -> None:
        """Write an organization's configuration, as the platform's own API would.

        Raises:
            InvalidConfiguration: The organization does not exist, or has no such workflow, or already has a
                configuration and `replace` is not set; or the platform reads its configurations elsewhere.
        """
        unserved = layouts.find(self._db, self._layout).unserved
        if unserved is not None:
            raise errors.InvalidConfiguration(unserved)
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
                    f"organization {organization_id} already has a configuration: --replace changes it"
                )

    def remove(self, organization_id: int) -> None:
        """Remove an organization's configuration. Raises InvalidConfiguration if it has none for an Asterisk."""
        with self._db.transaction() as connection:
            row = connection.execute(
                "SELECT id, value::text AS value FROM organization_configurations"
                " WHERE organization_id = %s AND key = %s FOR UPDATE",
                [organization_id, KEY],
            ).fetchone()
            if row is None or not telephony_configuration.is_ari(json_values.load(row["value"])):
                raise errors.InvalidConfiguration(f"organization {organization_id} has no ARI configuration")
            connection.execute("DELETE FROM organization_configurations WHERE id = %s", [row["id"]])
