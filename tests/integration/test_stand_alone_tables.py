"""The stand-alone tables are as strict as the platform's own of 2026-02, as its migrations were seen to make them."""

from __future__ import annotations

import json

import psycopg
import pytest

pytestmark = pytest.mark.services

#: Table → column → type, whether NOT NULL, and the default that the database has.
COLUMNS = {
    "organizations": {
        "provider_id": ("character varying", True, None),
        "created_at": ("timestamp with time zone", False, None),
        "quota_type": ("quota_type", True, "'monthly'"),
        "quota_dograh_tokens": ("integer", True, "0"),
        "quota_reset_day": ("integer", True, "1"),
        "quota_start_date": ("timestamp with time zone", False, None),
        "quota_enabled": ("boolean", True, "false"),
        "price_per_second_usd": ("double precision", False, None),
    },
    "organization_configurations": {
        "organization_id": ("integer", True, None),
        "key": ("character varying", True, None),
        "value": ("json", True, None),
        "created_at": ("timestamp with time zone", False, None),
        "updated_at": ("timestamp with time zone", False, None),
    },
    "users": {
        "provider_id": ("character varying", True, None),
        "created_at": ("timestamp with time zone", False, None),
        "is_superuser": ("boolean", False, None),
        "selected_organization_id": ("integer", False, None),
    },
    "user_configurations": {
        "user_id": ("integer", False, None),
        "configuration": ("json", True, None),
        "last_validated_at": ("timestamp with time zone", False, None),
    },
    "workflows": {
        "name": ("character varying", True, None),
        "workflow_definition": ("json", True, None),
        "created_at": ("timestamp with time zone", False, None),
        "user_id": ("integer", False, None),
        "template_context_variables": ("json", True, None),
        "call_disposition_codes": ("json", True, None),
        "organization_id": ("integer", False, None),
        "status": ("workflow_status", True, "'active'"),
        "workflow_configurations": ("json", True, "'{}'"),
    },
    "workflow_definitions": {
        "workflow_hash": ("character varying", True, None),
        "workflow_json": ("json", True, None),
        "created_at": ("timestamp with time zone", False, None),
        "workflow_id": ("integer", False, None),
        "is_current": ("boolean", True, "false"),
    },
    "workflow_runs": {
        "name": ("character varying", True, None),
        "workflow_id": ("integer", True, None),
        "mode": ("workflow_run_mode", True, None),
        "created_at": ("timestamp with time zone", False, None),
        "is_completed": ("boolean", False, None),
        "recording_url": ("character varying", False, None),
        "transcript_url": ("character varying", False, None),
        "usage_info": ("json", True, None),
        "cost_info": ("json", True, None),
        "initial_context": ("json", True, None),
        "gathered_context": ("json", True, None),
        "definition_id": ("integer", False, None),
        "annotations": ("json", True, None),
        "campaign_id": ("integer", False, None),
        "logs": ("json", True, "'{}'"),
        "queued_run_id": ("integer", False, None),
        "storage_backend": ("storage_backend", True, "'s3'"),
        "state": ("workflow_run_state", True, "'initialized'"),
        "call_type": ("workflow_call_type", True, "'outbound'"),
        "public_access_token": ("character varying(36)", False, None),
    },
}
ENUMS = {
    "quota_type": {"monthly", "annual"},
    "storage_backend": {"s3", "minio"},
    "workflow_call_type": {"inbound", "outbound"},
    "workflow_run_mode": {
        "ari", "twilio", "vonage", "vobiz", "cloudonix", "webrtc", "smallwebrtc", "stasis", "VOICE", "CHAT",
    },
    "workflow_run_state": {"initialized", "running", "completed"},
    "workflow_status": {"active", "archived"},
}  # fmt: skip

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       split_part(pg_get_expr(d.adbin, d.adrelid), '::', 1)
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> 'id'
"""


@pytest.mark.parametrize("table", COLUMNS)
def test_a_column_is_as_strict_as_the_platform_s(database_url: str, table: str) -> None:
    with psycopg.connect(database_url) as connection:
        found = {name: tuple(rest) for name, *rest in connection.execute(_COLUMNS, [f"public.{table}"])}
    assert found == COLUMNS[table]


def test_an_enum_has_the_platform_s_values(database_url: str) -> None:
    query = (
        "SELECT t.typname, json_agg(e.enumlabel)::text FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid GROUP BY 1"
    )
    with psycopg.connect(database_url) as connection:
        found = {name: set(json.loads(labels)) for name, labels in connection.execute(query)}
    assert found == ENUMS


@pytest.mark.parametrize(
    "insert",
    [
        "INSERT INTO workflow_definitions (workflow_hash, workflow_json, workflow_id) VALUES ('a', '{}', NULL)",
        "INSERT INTO organization_configurations (organization_id, key, value) VALUES (1, 'K', '{}')",
    ],
)
def test_what_is_unique_at_the_platform_is_unique(database_url: str, insert: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO organizations (provider_id) VALUES ('o')")
        connection.execute(
            "INSERT INTO workflows (name, workflow_definition, template_context_variables, call_disposition_codes)"
            " VALUES ('w', '{}', '{}', '{}')"
        )
        connection.execute(insert.replace("NULL", "1").encode())
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(insert.replace("NULL", "1").encode())


def test_runs_are_found_by_their_call(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT pg_get_indexdef('idx_workflow_runs_call_id'::regclass)").fetchone()
    assert row is not None
    assert "((gathered_context ->> 'call_id'::text))" in row[0]
    assert row[0].endswith("WHERE ((gathered_context ->> 'call_id'::text) IS NOT NULL)")


@pytest.mark.parametrize("layout", ["stand-alone", "2026-02", "newest"], indirect=True)
def test_no_table_of_ours_hides_one_of_the_platform_s(database_url: str) -> None:
    """A role named `ari` that sets no search path looks into the schema `ari` first, and so would the platform."""
    with psycopg.connect(database_url) as connection:
        hidden = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname IN ('ari', 'public') GROUP BY 1 HAVING count(*) > 1"
        ).fetchall()
    assert [name for (name,) in hidden if name != "alembic_version"] == []
