"""The platform's tables with two organizations and their workflows, for the tests of the Dograh adapter."""

from __future__ import annotations

import contextlib
import json
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
#: On the newest layout, the number of a connection whose callers get its `inbound_workflow_id`.
NUMBER = "2077"


@contextlib.contextmanager
def filled(database_url: str) -> Iterator[database.Database]:
    """A database with the platform's rows, in whichever layout."""
    made = database.Database(database_url, size=4)
    made.open()
    uuid = ("workflow_uuid, ", "gen_random_uuid()::text, ") if is_newest(made) else ("", "")
    with made.connection() as connection:
        connection.execute("INSERT INTO organizations (provider_id, created_at) VALUES ('o1', now()), ('o2', now())")
        connection.execute("INSERT INTO users (provider_id, created_at) VALUES ('u1', now())")
        connection.execute(
            f"INSERT INTO workflows ({uuid[0]}name, user_id, organization_id, status, workflow_definition,"
            f" template_context_variables, call_disposition_codes) SELECT {uuid[1]}w.*, '{{}}', '{{}}', '{{}}'"
            " FROM (VALUES ('good', 1, 1, 'active'::workflow_status), ('foreign', 1, 2, 'active'),"
            " ('archived', 1, 1, 'archived'), ('no user', NULL, 1, 'active'), ('no organization', 1, NULL, 'active'))"
            " AS w (name, user_id, organization_id, status)"
        )
    yield made
    made.close()


def is_newest(db: database.Database) -> bool:
    return bool(one(db, "SELECT to_regclass('telephony_configurations') IS NOT NULL AS it")["it"])


def publish(db: database.Database, workflow_id: int = 1) -> int:
    """Publish a definition of a workflow, as the platform does in this layout; return its id."""
    execute(db, "UPDATE workflow_definitions SET is_current = false WHERE workflow_id = %s", workflow_id)
    query = (
        "INSERT INTO workflow_definitions (workflow_id, is_current, workflow_hash, workflow_json)"
        " VALUES (%s, true, gen_random_uuid()::text, '{}') RETURNING id"
    )
    definition_id = int(one(db, query, workflow_id)["id"])
    if is_newest(db):
        execute(db, "UPDATE workflows SET released_definition_id = %s WHERE id = %s", definition_id, workflow_id)
    return definition_id


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


def configure(db: database.Database, text: str, organization_id: int = 1, *, name: str = "Default") -> int:
    """Write a configuration, and on the newest layout its number; return what the adapter knows it by."""
    if not is_newest(db):
        query = (
            "INSERT INTO organization_configurations (organization_id, key, value, created_at)"
            " VALUES (%s, 'TELEPHONY_CONFIGURATION', %s, now()) RETURNING id"
        )
        return int(one(db, query, organization_id, text)["id"])
    row_id = one(
        db,
        "INSERT INTO telephony_configurations (organization_id, name, provider, credentials, created_at)"
        " VALUES (%s, %s, 'ari', %s, now()) RETURNING id",
        organization_id,
        name,
        text,
    )["id"]
    workflow_id = json.loads(text).get("inbound_workflow_id") if text.startswith("{") else None
    if isinstance(workflow_id, int):
        number(db, row_id, workflow_id, organization_id=organization_id)
    return -int(row_id)


def number(
    db: database.Database, row_id: int, workflow_id: int | None, *, address: str = NUMBER, organization_id: int = 1
) -> None:
    """Write a phone number of a configuration, on the newest layout."""
    execute(
        db,
        "INSERT INTO telephony_phone_numbers (organization_id, telephony_configuration_id, address,"
        " address_normalized, address_type, inbound_workflow_id) VALUES (%s, %s, %s, %s, 'sip_extension', %s)",
        organization_id,
        row_id,
        address,
        address,
        workflow_id,
    )


def connect(db: database.Database, source_id: int, organization_id: int = 1) -> int:
    """Write the connection of a configuration, as the scheduler does; return its id."""
    query = (
        "INSERT INTO ari.connections (source_id, organization_id, state) VALUES (%s, %s, 'active')"
        " RETURNING connection_id AS id"
    )
    return int(one(db, query, source_id, organization_id)["id"])
