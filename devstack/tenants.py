"""Tenants in the platform's tables, written in plain SQL as the platform would."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

#: A password with every character that breaks a URL.
PASSWORD = "pass word & # % + : ; ="  # noqa: S105 - a password of tests


#: What an inbound call of the simulator and of a real Asterisk in the tests dials, unless a test says otherwise.
NUMBERS = ("100", "5550100", "5551234")


class Tenant:
    """A tenant in the platform's tables, written by plain SQL as the platform would, in whichever layout they have.

    Args:
        name: One that exists is taken up again.
    """

    def __init__(self, database_url: str, name: str = "tenant") -> None:
        self._database_url = database_url
        self._connection = psycopg.connect(database_url, autocommit=True)
        self.organization_id = self._insert(
            "INSERT INTO organizations (provider_id, created_at) VALUES (%s, now())"
            " ON CONFLICT (provider_id) DO UPDATE SET provider_id = excluded.provider_id RETURNING id",
            name,
        )
        self.user_id = self._insert(
            "INSERT INTO users (provider_id, selected_organization_id, created_at) VALUES (%s, %s, now())"
            " ON CONFLICT (provider_id) DO UPDATE SET provider_id = excluded.provider_id RETURNING id",
            name,
            self.organization_id,
        )
        found = self._connection.execute(
            "SELECT w.id, d.id FROM workflows w JOIN workflow_definitions d ON d.workflow_id = w.id AND d.is_current"
            " WHERE w.organization_id = %s AND w.name = %s",
            [self.organization_id, name],
        ).fetchone()
        self.workflow_id = found[0] if found is not None else self.add_workflow(name)
        self.definition_id = found[1] if found is not None else self.add_definition(self.workflow_id)

    @property
    def is_newest(self) -> bool:
        """Whether the platform's tables have the newest layout, now."""
        return self._has("telephony_configurations")

    def add_workflow(self, name: str) -> int:
        """Write a workflow without a definition and return its id."""
        if self.is_newest:
            return self._insert(
                "INSERT INTO workflows (name, user_id, organization_id, workflow_definition,"
                " template_context_variables, call_disposition_codes, workflow_uuid, created_at)"
                " VALUES (%s, %s, %s, '{}', '{}', '{}', gen_random_uuid()::text, now()) RETURNING id",
                name,
                self.user_id,
                self.organization_id,
            )
        return self._insert(
            "INSERT INTO workflows (name, user_id, organization_id, workflow_definition, template_context_variables,"
            " call_disposition_codes, created_at) VALUES (%s, %s, %s, '{}', '{}', '{}', now()) RETURNING id",
            name,
            self.user_id,
            self.organization_id,
        )

    def add_definition(self, workflow_id: int) -> int:
        """Publish a definition of a workflow and return its id."""
        self._connection.execute(
            "UPDATE workflow_definitions SET is_current = false WHERE workflow_id = %s", [workflow_id]
        )
        # Stand-alone tables of v0.1.0-rc1 lack two columns.
        columns, values = "workflow_id, is_current, created_at", "%s, true, now()"
        if self._has("workflow_definitions", "workflow_hash"):
            columns, values = columns + ", workflow_hash, workflow_json", values + ", gen_random_uuid()::text, '{}'"
        definition_id = self._insert(
            f"INSERT INTO workflow_definitions ({columns}) VALUES ({values}) RETURNING id",  # noqa: S608 - constants
            workflow_id,
        )
        if self.is_newest:
            self._connection.execute(
                "UPDATE workflows SET released_definition_id = %s WHERE id = %s", [definition_id, workflow_id]
            )
        return definition_id

    def configure(
        self,
        endpoint: str,
        *,
        app: str = "voiceai",
        password: str = PASSWORD,
        name: str = "Default",
        numbers: Sequence[str] = NUMBERS,
        **changed: Any,
    ) -> int:
        """Write or change the telephony configuration and return the id of its row.

        Args:
            name: On the newest layout: the configuration's name, of which an organization may have several.
            numbers: On the newest layout: its phone numbers, as `address_normalized` has them.
        """
        value = {
            "provider": "ari",
            "ari_endpoint": endpoint,
            "app_name": app,
            "app_password": password,
            "ws_client_name": "media",
            "inbound_workflow_id": self.workflow_id,
            "from_numbers": [],
            **changed,
        }
        if self.is_newest:
            return self._configure_newest(name, value, numbers)
        return self._insert(
            "INSERT INTO organization_configurations (organization_id, key, value, created_at)"
            " VALUES (%s, 'TELEPHONY_CONFIGURATION', %s, now())"
            " ON CONFLICT (organization_id, key) DO UPDATE SET value = excluded.value RETURNING id",
            self.organization_id,
            json.dumps(value),
        )

    def _configure_newest(self, name: str, value: dict[str, Any], numbers: Sequence[str]) -> int:
        provider, workflow_id = value.pop("provider"), value.pop("inbound_workflow_id")
        value.pop("from_numbers")
        configuration_id = self._insert(
            "INSERT INTO telephony_configurations AS c (organization_id, name, provider, credentials,"
            " is_default_outbound, created_at, updated_at) VALUES (%(organization)s, %(name)s, %(provider)s,"
            " %(credentials)s, NOT EXISTS (SELECT 1 FROM telephony_configurations"
            " WHERE organization_id = %(organization)s AND is_default_outbound), now(), now())"
            " ON CONFLICT (organization_id, name) DO UPDATE SET provider = excluded.provider,"
            " credentials = excluded.credentials, updated_at = now() RETURNING id",
            organization=self.organization_id,
            name=name,
            provider=provider,
            credentials=json.dumps(value),
        )
        for number in numbers:
            self.add_number(number, configuration_id, workflow_id)
        return configuration_id

    def add_number(self, number: str, configuration_id: int, workflow_id: int | None) -> int:
        """Write or change a phone number, on the newest layout, and return the id of its row."""
        return self._insert(
            "INSERT INTO telephony_phone_numbers (organization_id, telephony_configuration_id, address,"
            " address_normalized, address_type, inbound_workflow_id, created_at, updated_at)"
            " VALUES (%(organization)s, %(configuration)s, %(number)s, %(number)s, 'extension', %(workflow)s, now(),"
            " now()) ON CONFLICT (organization_id, address_normalized) DO UPDATE"
            " SET inbound_workflow_id = excluded.inbound_workflow_id,"
            " telephony_configuration_id = excluded.telephony_configuration_id RETURNING id",
            organization=self.organization_id,
            configuration=configuration_id,
            number=number,
            workflow=workflow_id,
        )

    def limit_calls(self, most: int) -> None:
        """Write how many calls the organization may have at the same time."""
        self._insert(
            "INSERT INTO organization_configurations (organization_id, key, value, created_at)"
            " VALUES (%s, 'CONCURRENT_CALL_LIMIT', %s, now())"
            " ON CONFLICT (organization_id, key) DO UPDATE SET value = excluded.value RETURNING id",
            self.organization_id,
            json.dumps({"value": most}),
        )

    def remove_configuration(self) -> None:
        """Delete the telephony configurations, of whichever layout."""
        tables = ("organization_configurations", *(("telephony_configurations",) if self.is_newest else ()))
        for table in tables:
            self._connection.execute(
                f"DELETE FROM {table} WHERE organization_id = %s".encode(),  # noqa: S608 - built from constants
                [self.organization_id],
            )

    def reconnect(self) -> None:
        """Connect again, to a Postgres that has failed over."""
        self._connection.close()
        self._connection = psycopg.connect(self._database_url, autocommit=True)

    def close(self) -> None:
        """Close its database connection."""
        self._connection.close()

    def _has(self, table: str, column: str | None = None) -> bool:
        found = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = coalesce(%s, attname)"
        return self._connection.execute(found, [f"public.{table}", column]).fetchone() is not None

    def _insert(self, statement: str, *values: object, **named: object) -> int:
        row = self._connection.execute(statement.encode(), named or values).fetchone()
        assert row is not None
        return int(row[0])


@contextlib.contextmanager
def closing_tenant(database_url: str, name: str = "tenant") -> Iterator[Tenant]:
    """Create a tenant; at the end its database connection is closed."""
    tenant = Tenant(database_url, name)
    try:
        yield tenant
    finally:
        tenant.close()
