"""The prefix of an installation: drawn once, drawn again by command, and told when the database is a copy."""

from __future__ import annotations

import importlib
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from arictl import main
from shared.call.calls import replace
from shared.call.ids import PREFIX
from shared.operator.checks import process_checks
from shared.operator.checks.findings import Level
from shared.storage import database, migrations
from shared.storage.id_prefixes import IdPrefixes
from shared.storage.postgres_calls import PostgresCalls
from tests.support.calls import RECEIVED

pytestmark = pytest.mark.services

MIGRATION = importlib.import_module("shared.storage.migrations.versions.0006_installation")


@pytest.fixture
def prefixes(db: database.Database) -> IdPrefixes:
    return IdPrefixes(db, override=None)


def arictl(monkeypatch: pytest.MonkeyPatch, database_url: str, *words: str, **environment: str) -> str:
    monkeypatch.delenv("ID_PREFIX", raising=False)
    for name, value in {"DATABASE_URL": database_url, **environment}.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(main.app, ["installation", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def restore_dump(db: database.Database) -> None:
    """Write the rows again, as the restore of a dump does."""
    with db.transaction() as connection:
        connection.execute("CREATE TEMPORARY TABLE dump ON COMMIT DROP AS SELECT * FROM ari.id_prefixes")
        connection.execute("DELETE FROM ari.id_prefixes")
        connection.execute("INSERT INTO ari.id_prefixes SELECT * FROM dump")


def finding(db: database.Database, override: str | None = None) -> tuple[Level, str]:
    (found,) = process_checks.check_id_prefix(db, override)
    return found.level, found.seen


def test_an_empty_database_has_one_prefix_however_many_ask_first(db: database.Database, prefixes: IdPrefixes) -> None:
    assert finding(db)[0] is Level.OK
    with ThreadPoolExecutor(8) as pool:
        (prefix,) = set(pool.map(lambda _: prefixes.current(), range(40)))
    assert re.fullmatch(r"aip-[0-9a-z]{6}-", prefix)
    assert re.fullmatch(PREFIX, prefix)
    assert [one.prefix for one in prefixes.drawn()] == [prefix]
    assert finding(db) == (Level.OK, prefix)


def test_the_setting_overrides_it_and_draws_none(db: database.Database, prefixes: IdPrefixes) -> None:
    assert IdPrefixes(db, override="staging-").current() == "staging-"
    assert prefixes.drawn() == []
    assert finding(db, "staging-")[0] is Level.OK


def test_a_restored_dump_is_told_until_a_prefix_is_drawn_or_kept(
    db: database.Database, prefixes: IdPrefixes, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    first = prefixes.current()
    restore_dump(db)
    assert finding(db)[0] is Level.WARNING
    assert "drawn in another database" in arictl(monkeypatch, database_url, "show")
    arictl(monkeypatch, database_url, "keep")
    assert finding(db) == (Level.OK, first)
    restore_dump(db)
    second = prefixes.current()
    assert second == first
    assert "begin with aip-" in arictl(monkeypatch, database_url, "draw")
    assert prefixes.current() not in ("aip-", first)
    assert finding(db)[0] is Level.OK
    shown = arictl(monkeypatch, database_url, "show").splitlines()
    assert [line.split()[0] for line in shown[1:]] == [prefixes.current(), first]


def test_calls_in_progress_keep_the_prefix_that_an_earlier_release_gave_them(
    db: database.Database, prefixes: IdPrefixes
) -> None:
    """Such a release writes no prefix: it is noted when another one is drawn."""
    earlier = prefixes.current()
    store = PostgresCalls(db, who="test", prefix=earlier)
    before = replace(RECEIVED, connection_id=1, connection_version=1)
    pinned = replace(before, call_id=uuid.uuid4(), channel_id="pinned", id_prefix="set-")
    for call in (before, pinned):
        assert store.insert(call, [], None)
    prefixes.draw()
    found = [store.load(call.call_id) for call in (before, pinned)]
    assert [call.id_prefix for call in found if call is not None] == [earlier, "set-"]


def test_a_database_in_use_keeps_the_prefix_that_every_installation_had(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations.upgrade(empty_database_url)
    db = database.Database(empty_database_url, size=2)
    db.open()
    try:
        with db.connection() as connection:
            connection.execute(
                "INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 1, 'active')"
            )
            connection.execute("DROP TABLE ari.id_prefixes")
            connection.execute("ALTER TABLE ari.calls DROP COLUMN id_prefix")
            connection.execute("UPDATE ari.alembic_version SET version_num = %s", [MIGRATION.down_revision])
        migrations.upgrade(empty_database_url)
        assert IdPrefixes(db, override=None).current() == "aip-"
        assert finding(db)[0] is Level.WARNING
        arictl(monkeypatch, empty_database_url, "draw")
        assert IdPrefixes(db, override=None).current() != "aip-"
        assert finding(db)[0] is Level.OK
    finally:
        db.close()
