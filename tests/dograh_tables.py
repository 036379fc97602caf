"""The platform's tables with two organizations and their workflows, for the tests of the Dograh adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from shared.storage import database

VALUE: dict[str, Any] = {
    "provider": "ari",
    "ari_endpoint": "http://pbx.example",
    "app_name": "voiceai",
    "app_password": "hunter2",
    "ws_client_name": "media",
    "inbound_workflow_id": 1,
    "from_numbers": [],
}


@contextlib.contextmanager
def filled(database_url: str) -> Iterator[database.Database]:
    """A database with the platform's rows."""
    made = database.Database(database_url, size=4)
    made.open()
    with made.connection() as connection:
        connection.execute("INSERT INTO organizations (provider_id, created_at) VALUES ('o1', now()), ('o2', now())")
        connection.execute("INSERT INTO users (provider_id, created_at) VALUES ('u1', now())")
        connection.execute(
            "INSERT INTO workflows (name, user_id, organization_id, status, workflow_definition,"
            " template_context_variables, call_disposition_codes) VALUES"
            " ('good', 1, 1, 'active', '{}', '{}', '{}'),"
            " ('foreign', 1, 2, 'active', '{}', '{}', '{}'),"
            " ('archived', 1, 1, 'archived', '{}', '{}', '{}'),"
            " ('no user', NULL, 1, 'active', '{}', '{}', '{}'),"
            " ('no organization', 1, NULL, 'active', '{}', '{}', '{}')"
        )
    yield made
    made.close()


def run(db: database.Database, run_id: int) -> dict[str, Any]:
    return one(db, "SELECT * FROM workflow_runs WHERE id = %s", run_id)


def one(db: database.Database, query: str, *values: object) -> dict[str, Any]:
    with db.connection() as connection:
        row = connection.execute(query, values).fetchone()
    assert row is not None
    return row


def execute(db: database.Database, query: str, *values: object) -> None:
    with db.connection() as connection:
        connection.execute(query, values)


def configure(db: database.Database, text: str, organization_id: int = 1) -> int:
    query = (
        "INSERT INTO organization_configurations (organization_id, key, value, created_at)"
        " VALUES (%s, 'TELEPHONY_CONFIGURATION', %s, now()) RETURNING id"
    )
    return int(one(db, query, organization_id, text)["id"])
