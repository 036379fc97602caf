"""Migrations on a real Postgres: an empty database, one that is the platform's, twice, and many at once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import alembic.command
import psycopg
import pytest
import sqlalchemy
import sqlalchemy.exc

from shared import errors
from shared.platform import dograh
from shared.storage import database, migrations

pytestmark = pytest.mark.services

PLATFORM = {
    "organizations", "organization_configurations", "users", "user_configurations", "workflows", "workflow_definitions",
    "workflow_runs",
}  # fmt: skip
OURS = {
    "alembic_version",
    "audit",
    "attempts",
    "calls",
    "connection_versions",
    "connections",
    "console_sessions",
    "console_users",
    "dead_letter_set_letters",
    "dead_letter_sets",
    "id_prefixes",
    "leases",
    "outbox",
    "resyncs",
    "quotas",
    "timeline",
    "usage",
}


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def shape(url: str) -> dict[str, set[tuple[Any, ...]]]:
    """Every column of every table, by schema."""
    query = (
        "SELECT table_schema, table_name, column_name, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
    )
    found: dict[str, set[tuple[Any, ...]]] = {}
    with psycopg.connect(url) as connection:
        for schema, *rest in connection.execute(query):
            found.setdefault(schema, set()).add(tuple(rest))
    return found


def tables(url: str, schema: str) -> set[str]:
    return {column[0] for column in shape(url).get(schema, set())}


def test_an_empty_database_gets_everything(empty_database_url: str) -> None:
    assert migrations.pending(empty_database_url)
    revision = migrations.upgrade(empty_database_url)
    assert not migrations.pending(empty_database_url)
    assert revision
    assert (tables(empty_database_url, "ari"), tables(empty_database_url, "public")) == (OURS, PLATFORM)


def test_a_process_that_is_frozen_in_a_migration_loses_the_locks_that_calls_wait_for(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the one that keeps others from upgrading meanwhile."""
    monkeypatch.setitem(migrations._SETTINGS, "idle_in_transaction_session_timeout", "300")
    seen: list[Any] = []

    def freeze(config: Any, _revision: str) -> None:
        config.attributes["connection"].execute(sqlalchemy.text("LOCK TABLE ari.calls"))
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("SET lock_timeout = 2000")
            seen.extend(other.execute("SELECT count(*) FROM ari.calls").fetchone() or ())
            seen.extend(other.execute(f"SELECT pg_try_advisory_lock({migrations._LOCK})").fetchone() or ())

    monkeypatch.setattr(alembic.command, "upgrade", freeze)
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        migrations.upgrade(database_url)
    assert seen == [0, False]


def test_twice_is_harmless(empty_database_url: str) -> None:
    revision = migrations.upgrade(empty_database_url)
    execute(empty_database_url, "INSERT INTO organizations (provider_id) VALUES ('kept')")
    before = shape(empty_database_url)
    assert migrations.upgrade(empty_database_url) == revision
    assert shape(empty_database_url) == before
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT count(*) FROM organizations").fetchone() == (1,)


def test_the_platform_s_tables_are_not_altered(empty_database_url: str) -> None:
    execute(
        empty_database_url,
        "CREATE TABLE organizations (id serial PRIMARY KEY, provider_id varchar, theirs text)",
        "CREATE TABLE workflow_runs (id serial PRIMARY KEY, theirs text)",
        "CREATE TYPE workflow_run_state AS ENUM ('initialized', 'running', 'completed', 'theirs')",
    )
    before = shape(empty_database_url)["public"]
    migrations.upgrade(empty_database_url)
    assert shape(empty_database_url)["public"] == before
    assert tables(empty_database_url, "ari") == OURS


def test_a_platform_that_holds_its_tables_does_not_stop_us(empty_database_url: str) -> None:
    """A migration takes no lock that a busy platform would have to give."""
    migrations.upgrade(empty_database_url)
    execute(empty_database_url, "DROP SCHEMA ari CASCADE")
    with psycopg.connect(empty_database_url) as busy:
        busy.execute("LOCK TABLE workflow_runs, organizations IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(migrations.upgrade, empty_database_url).result(timeout=20)


def before_minutes(url: str) -> None:
    """Leave the database as the migration before `0003_minutes` does."""
    migrations.upgrade(url)
    execute(
        url,
        "DROP TABLE ari.resyncs",
        "DROP INDEX ari.calls_minutes",
        "CREATE INDEX calls_talk ON ari.calls (organization_id, ending_at) WHERE connected_at IS NOT NULL",
        "UPDATE ari.alembic_version SET version_num = '0002_platform'",
    )


def indexes(url: str) -> dict[str, bool]:
    """The calls' indexes by month, and whether each is valid."""
    query = (
        "SELECT relname, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " WHERE indrelid = 'ari.calls'::regclass AND relname IN ('calls_talk', 'calls_minutes')"
    )
    with psycopg.connect(url) as connection:
        return dict(connection.execute(query).fetchall())


@pytest.mark.parametrize(
    ("isolation", "waits_at"), [("REPEATABLE READ", "calls_minutes"), ("READ COMMITTED", "calls_talk")]
)
def test_calls_go_on_while_a_migration_waits_for_a_reader(
    empty_database_url: str, isolation: str, waits_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a snapshot holds up the index that is made, one with just a lock the index that is dropped."""
    monkeypatch.setattr(migrations, "_LOCK_ATTEMPTS", 1)
    before_minutes(empty_database_url)
    with (
        psycopg.connect(empty_database_url, options="-c lock_timeout=500 -c statement_timeout=500") as worker,
        psycopg.connect(empty_database_url) as reader,
        ThreadPoolExecutor(2) as pool,
    ):
        reader.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        reader.execute("SELECT FROM ari.calls")
        # The second one waits for the first.
        upgrades = [pool.submit(migrations.upgrade, empty_database_url) for _ in range(2)]
        try:
            until = time.monotonic() + 2 * migrations._LOCK_MILLISECONDS / 1000
            while time.monotonic() < until or indexes(empty_database_url).get(waits_at) is not False:
                worker.execute("UPDATE ari.calls SET reason = 'x'")
                worker.execute("SELECT FROM ari.calls")
                worker.commit()
                assert time.monotonic() < until + 10
                time.sleep(0.02)
            assert not any(upgrade.done() for upgrade in upgrades)
        finally:
            reader.rollback()
        for upgrade in upgrades:
            upgrade.result(timeout=20)
    assert indexes(empty_database_url) == {"calls_minutes": True}
    assert not migrations.pending(empty_database_url)


@pytest.mark.parametrize("is_old_dropped", [False, True])
def test_an_index_that_a_migration_left_half_made_is_made_anew(
    empty_database_url: str, *, is_old_dropped: bool
) -> None:
    before_minutes(empty_database_url)
    execute(
        empty_database_url,
        "CREATE INDEX calls_minutes ON ari.calls (organization_id)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ari.calls_minutes'::regclass",
        *(["DROP INDEX ari.calls_talk"] if is_old_dropped else []),
    )
    migrations.upgrade(empty_database_url)
    assert indexes(empty_database_url) == {"calls_minutes": True}


def test_a_migration_that_needs_a_lock_of_a_table_gives_up_early_and_tries_again(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the lock of a table stops all who come after it."""
    monkeypatch.setattr(migrations, "_LOCK_MILLISECONDS", 100)
    monkeypatch.setattr(migrations, "_LOCK_ATTEMPTS", 2)
    migrations.upgrade(empty_database_url)
    execute(
        empty_database_url,
        "DROP TABLE ari.resyncs",
        "UPDATE ari.alembic_version SET version_num = '0002_platform'",
    )
    with psycopg.connect(empty_database_url) as other:
        other.execute("LOCK TABLE ari.alembic_version IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(errors.DatabaseUnavailable, match="locked by others"):
            migrations.upgrade(empty_database_url)
        monkeypatch.setattr(migrations, "_LOCK_ATTEMPTS", 100)
        with ThreadPoolExecutor(1) as pool:
            upgrade = pool.submit(migrations.upgrade, empty_database_url)
            time.sleep(0.3)
            other.rollback()
            upgrade.result(timeout=20)
    assert not migrations.pending(empty_database_url)


@pytest.mark.parametrize("is_index_valid", [False, True])
def test_a_migration_that_was_broken_off_is_done_again(empty_database_url: str, *, is_index_valid: bool) -> None:
    migrations.upgrade(empty_database_url)
    before = shape(empty_database_url)
    execute(empty_database_url, "UPDATE ari.alembic_version SET version_num = '0004_resyncs'")
    if not is_index_valid:
        invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ari.timeline_by_age'::regclass"
        execute(empty_database_url, invalid)
    migrations.upgrade(empty_database_url)
    assert shape(empty_database_url) == before
    with psycopg.connect(empty_database_url) as connection:
        query = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ari.timeline_by_age'::regclass"
        assert connection.execute(query).fetchone() == (True,)


def test_many_at_once_do_it_once(empty_database_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        revisions = set(pool.map(migrations.upgrade, [empty_database_url] * 6))
    assert len(revisions) == 1
    assert tables(empty_database_url, "ari") == OURS


def test_a_schema_of_an_unknown_release_is_refused_and_stays_as_it_is(empty_database_url: str) -> None:
    migrations.upgrade(empty_database_url)
    execute(empty_database_url, "UPDATE ari.alembic_version SET version_num = '9999'")
    before = shape(empty_database_url)
    assert migrations.pending(empty_database_url)
    with pytest.raises(errors.DatabaseRefused, match="revision 9999, which this release does not know"):
        migrations.upgrade(empty_database_url)
    assert shape(empty_database_url) == before


@pytest.fixture
def url_of_ari(empty_database_url: str) -> Iterator[str]:
    """The database as a role named like our schema reaches it: the embedded server's own, else one made for this."""
    parts = urlsplit(empty_database_url)
    if parts.username == "ari":
        yield empty_database_url
        return
    execute(empty_database_url, "CREATE ROLE ari LOGIN PASSWORD 'ari'", "GRANT ALL ON SCHEMA public TO ari")
    execute(empty_database_url, f'GRANT ALL ON DATABASE "{parts.path.lstrip("/")}" TO ari')
    yield urlunsplit(parts._replace(netloc=f"ari:ari@{parts.netloc.rpartition('@')[2]}"))
    execute(empty_database_url, "DROP OWNED BY ari", "DROP ROLE ari")


def test_a_role_named_like_our_schema_finds_the_platform_s_tables(url_of_ari: str) -> None:
    """`"$user"` leads the search path: such a role would look for the platform's tables in our schema."""
    for _ in range(2):
        migrations.upgrade(url_of_ari)
    assert (tables(url_of_ari, "ari"), tables(url_of_ari, "public")) == (OURS, PLATFORM)
    db = database.Database(url_of_ari, size=1)
    db.open()
    assert dograh.Configurations(db).all() == []
    db.close()


@pytest.fixture
def url_without_rights(empty_database_url: str) -> Iterator[str]:
    role = f"reader_{uuid.uuid4().hex[:8]}"
    parts = urlsplit(empty_database_url)
    execute(empty_database_url, f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
    yield urlunsplit(parts._replace(netloc=f"{role}:hunter2@{parts.netloc.rpartition('@')[2]}"))
    execute(empty_database_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.mark.parametrize("owns_schema", [False, True])
def test_a_role_that_may_not_create_is_told_what_it_needs(
    empty_database_url: str, url_without_rights: str, *, owns_schema: bool
) -> None:
    """A schema that was made for it is not created again: then it lacks the right to the platform's tables only."""
    role = urlsplit(url_without_rights).username
    if owns_schema:
        execute(empty_database_url, f"CREATE SCHEMA ari AUTHORIZATION {role}")
    with pytest.raises(errors.DatabaseRefused, match="GRANT CREATE ON DATABASE") as caught:
        migrations.upgrade(url_without_rights)
    assert ("schema public" if owns_schema else "permission denied for database") in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    execute(empty_database_url, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    if owns_schema:
        assert migrations.upgrade(url_without_rights)


def test_a_database_that_cannot_be_reached_is_said_so_without_its_password() -> None:
    with pytest.raises(errors.DatabaseUnavailable, match="cannot be reached") as caught:
        migrations.upgrade(f"postgresql://u:hunter2@127.0.0.1:1/{uuid.uuid4().hex}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://u:hunter2@x/y", "hunter2", "sqlite:///hunter2"])
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidSettings, match="must begin with postgresql") as caught:
        migrations.upgrade(url)
    assert "hunter2" not in str(caught.value)


def test_both_spellings_of_the_scheme_work(empty_database_url: str) -> None:
    assert migrations.upgrade(empty_database_url.replace("postgresql://", "postgres://"))
