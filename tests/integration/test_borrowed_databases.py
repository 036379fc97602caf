"""A test's database is used again for another test, unless the test has changed more than its rows."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from devstack.servers import Postgres
from tests import databases


@pytest.mark.parametrize(
    ("statement", "is_used_again"),
    [
        ("INSERT INTO ari.quotas (organization_id) VALUES (3)", True),
        ("ANALYZE ari.calls", True),
        ("ALTER TABLE ari.quotas ALTER COLUMN blocked DROP DEFAULT", False),
        ("CREATE INDEX ON ari.quotas (blocked)", False),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", False),
        ("CREATE SCHEMA another", False),
        ("GRANT SELECT ON ari.quotas TO PUBLIC", False),
        ("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 64', current_database()); END $$", False),
    ],
)
def test_a_database_is_used_again_if_only_rows_were_changed(
    postgres_server: Postgres, database_templates: Callable[[str], str], statement: str, *, is_used_again: bool
) -> None:
    template = database_templates("stand-alone")
    with databases.borrowed(postgres_server.url, template) as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
    with databases.borrowed(postgres_server.url, template) as another:
        assert (another == url) is is_used_again
