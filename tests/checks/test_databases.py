"""A database that is used again shows nothing of the test before."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from devstack import servers
from tests import databases

pytestmark = pytest.mark.services

INSERT = "INSERT INTO organizations (provider_id) VALUES ('theirs') RETURNING id"


@pytest.fixture(autouse=True)
def none_is_free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(databases, "_free", {})
    yield
    databases.forget_all()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_a_database_that_is_used_again_is_empty_and_counts_from_one(
    postgres_server: servers.Postgres, database_template: str
) -> None:
    for _ in range(2):
        with databases.borrowed(postgres_server.url, database_template) as url:
            left_open = psycopg.connect(url, autocommit=True)
            assert left_open.execute(INSERT.encode()).fetchone() == (1,)
            assert left_open.execute("SELECT count(*) FROM organizations").fetchone() == (1,)
        assert [lent.url for lent in databases._free[database_template]] == [url], "it is used again"
        left_open.close()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE workflow_runs DROP COLUMN logs",
        "ALTER TABLE organizations ALTER COLUMN provider_id SET DEFAULT 'theirs'",
        "ALTER TABLE ari.calls ADD CHECK (entry > 0)",
        "CREATE TABLE theirs ()",
        "CREATE SCHEMA theirs",
        "CREATE INDEX ON ari.calls (organization_id, state)",
        "UPDATE ari.alembic_version SET version_num = '0001_schema'",
        "INSERT INTO organizations (provider_id) SELECT n FROM generate_series(1, 3000) n",
    ],
)
def test_a_changed_database_is_not_used_again(
    postgres_server: servers.Postgres, database_template: str, change: str
) -> None:
    with databases.borrowed(postgres_server.url, database_template) as url:
        execute(url, change)
    assert databases._free[database_template] == []
