"""Tenants in the platform's tables, written in plain SQL as the platform would."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import psycopg

#: A password with every character that breaks a URL.
PASSWORD = "pass word & # % + : ; ="  # noqa: S105 - a password of tests


class Tenant:
    """A tenant in the platform's tables, written by plain SQL as the platform would."""

    def __init__(self, database_url: str, name: str = "tenant") -> None:
        self._database_url = database_url
        self._connection = psycopg.connect(database_url, autocommit=True)
        self.organization_id = self._insert(
            "INSERT INTO organizations (provider_id, created_at) VALUES (%s, now()) RETURNING id", name
        )
        self.user_id = self._insert(
            "INSERT INTO users (provider_id, selected_organization_id, created_at) VALUES (%s, %s, now()) RETURNING id",
            name,
            self.organization_id,
        )
        self.workflow_id = self._insert(
            "INSERT INTO workflows (name, user_id, organization_id, workflow_definition, template_context_variables,"
            " call_disposition_codes, created_at) VALUES (%s, %s, %s, '{}', '{}', '{}', now()) RETURNING id",
            name,
            self.user_id,
            self.organization_id,
        )
        self.definition_id = self._insert(
            "INSERT INTO workflow_definitions (workflow_id, is_current) VALUES (%s, true) RETURNING id",
            self.workflow_id,
        )

    def configure(self, endpoint: str, *, app: str = "voiceai", password: str = PASSWORD, **changed: Any) -> int:
        """Write or change the telephony configuration and return the id of its row."""
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
        return self._insert(
            "INSERT INTO organization_configurations (organization_id, key, value, created_at)"
            " VALUES (%s, 'TELEPHONY_CONFIGURATION', %s, now())"
            " ON CONFLICT (organization_id, key) DO UPDATE SET value = excluded.value RETURNING id",
            self.organization_id,
            json.dumps(value),
        )

    def remove_configuration(self) -> None:
        """Delete the telephony configuration."""
        self._connection.execute(
            "DELETE FROM organization_configurations WHERE organization_id = %s", [self.organization_id]
        )

    def reconnect(self) -> None:
        """Connect again, to a Postgres that has failed over."""
        self._connection.close()
        self._connection = psycopg.connect(self._database_url, autocommit=True)

    def close(self) -> None:
        """Close its database connection."""
        self._connection.close()

    def _insert(self, statement: str, *values: object) -> int:
        row = self._connection.execute(statement.encode(), values).fetchone()
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
