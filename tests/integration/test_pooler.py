"""Behind a pooler in transaction mode: settings in each transaction, statements prepared as it allows."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shared import errors
from shared.operator.checks import server_checks
from shared.operator.checks.findings import Level
from shared.storage import database, leases, migrations
from tests.support import pooler, round_trips

pytestmark = pytest.mark.services

SETTINGS = "SELECT lower(name) AS name, setting FROM pg_settings WHERE lower(name) = ANY(%s)"
IGNORES = {"ignore_startup_parameters": "options"}


@pytest.fixture(params=[{}, IGNORES], ids=["refuses options", "ignores options"])
def pooled_url(stack_folder: Path, database_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    with pooler.running(stack_folder, database_url, **request.param) as url:
        yield url


@contextlib.contextmanager
def opened(url: str, **how: Any) -> Iterator[database.Database]:
    made = database.Database(url, **({"size": 8, "statement_seconds": 10.0} | how))
    made.open()
    try:
        yield made
    finally:
        made.close()


def in_force(db: database.Database, connection: database.Connection) -> dict[str, str]:
    return {row["name"]: row["setting"] for row in connection.execute(SETTINGS, [list(db.settings)]).fetchall()}


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as exc:  # noqa: BLE001 - the test shows them
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return failed


def test_every_statement_is_run_and_has_its_settings(pooled_url: str) -> None:
    """More threads than the pooler has connections: each transaction may be on another one."""
    seen: Counter[str] = Counter()
    with opened(pooled_url) as db:

        def work(number: int) -> None:
            for turn in range(30):
                with db.connection() as connection:
                    connection.execute(
                        "INSERT INTO ari.leases VALUES (%s, 'b', %s, now())", [f"{number}/{turn}", number]
                    )
                    seen[str(sorted(in_force(db, connection).items()))] += 1
                with db.transaction() as connection:
                    connection.execute("UPDATE ari.leases SET term = %s WHERE name = %s", [turn, f"{number}/{turn}"])
                    seen[str(sorted(in_force(db, connection).items()))] += 1

        assert in_threads(6, work) == []
        assert dict(seen) == {str(sorted(db.settings.items())): 360}


def test_a_statement_that_takes_too_long_is_ended_by_postgres(pooled_url: str) -> None:
    def take_long(db: database.Database) -> None:
        with db.transaction() as connection:
            connection.execute("INSERT INTO ari.leases VALUES ('a', 'b', 1, now())")
            connection.execute("SELECT pg_sleep(5)")

    with opened(pooled_url, statement_seconds=1.0) as db:
        with pytest.raises(errors.DatabaseUnavailable, match="statement timeout"), db.connection() as connection:
            connection.execute("SELECT pg_sleep(5)")
        with pytest.raises(errors.DatabaseUnavailable, match="statement timeout"):
            take_long(db)
        with db.connection() as connection:
            assert connection.execute("SELECT FROM ari.leases").rowcount == 0


def test_no_setting_is_left_to_others(pooled_url: str) -> None:
    with opened(pooled_url) as db, db.connection() as connection:
        connection.execute("SELECT 1")
    with psycopg.connect(pooled_url, autocommit=True, prepare_threshold=None) as other:
        for _ in range(5):
            assert other.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_settings_cost_no_round_trip(pooled_url: str) -> None:
    with opened(pooled_url, size=1) as db:
        with db.connection() as connection:
            connection.execute("SELECT 1")
        with round_trips.recorded() as trips, db.transaction() as connection:
            connection.send("INSERT INTO ari.leases VALUES ('a', 'b', 1, now())")
        assert len(trips) == 1


def test_the_advisory_lock_of_a_transaction_is_held_until_its_end(pooled_url: str) -> None:
    with opened(pooled_url, statement_seconds=1.0) as db, db.transaction() as first:
        first.execute("SELECT pg_advisory_xact_lock(1, 2)")
        with pytest.raises(errors.DatabaseUnavailable, match="timeout"), db.transaction() as second:
            second.execute("SELECT pg_advisory_xact_lock(1, 2)")
    with opened(pooled_url) as db, db.transaction() as third:
        third.execute("SELECT pg_advisory_xact_lock(1, 2)")


def test_two_processes_share_its_connections(pooled_url: str) -> None:
    """Neither finds the other's prepared statements, nor leaves any."""
    with opened(pooled_url) as one, opened(pooled_url) as other:

        def work(number: int) -> None:
            held = leases.Leases((one, other)[number % 2])
            for _ in range(20):
                held.take(f"lease {number}", f"holder {number}", 5)

        assert in_threads(6, work) == []
        is_kept = one.prepares
        assert other.prepares == is_kept
    with psycopg.connect(pooled_url, autocommit=True, prepare_threshold=None) as connection:
        left = connection.execute("SELECT name FROM pg_prepared_statements").fetchall()
    # Those of a pooler that keeps them (1.21 and newer) are its own.
    assert {name.startswith("PGBOUNCER_") for (name,) in left} == ({True} if is_kept else set())


def test_a_schema_is_made_through_it(stack_folder: Path, empty_database_url: str) -> None:
    with pooler.running(stack_folder, empty_database_url) as url:
        first = migrations.upgrade(url)
        assert migrations.upgrade(url) == first
        assert not migrations.pending(url)


def test_the_doctor_tells_what_is_in_force(pooled_url: str, database_url: str) -> None:
    def findings(url: str) -> dict[str, str]:
        with opened(url, size=2, statement_seconds=5) as db:
            found = server_checks.check_postgres(url, db)
        assert not [one for one in found if one.level is Level.WRONG]
        return {one.what: one.seen for one in found}

    direct, pooled = findings(database_url), findings(pooled_url)
    assert "statement_timeout 5000 ms" in direct["Postgres settings"]
    assert direct["Postgres settings"] == pooled["Postgres settings"]
    assert "pooler" not in direct
    assert "prepared statements" in pooled["pooler"]


def test_the_doctor_tells_what_is_not_in_force(database_url: str) -> None:
    with opened(database_url, size=1) as db:
        with db.connection() as connection:
            connection.execute("SET statement_timeout = 0")
        (found,) = [one for one in server_checks.check_postgres(database_url, db) if one.what == "Postgres settings"]
    assert (found.level, found.seen) == (Level.WRONG, "statement_timeout is 0 and not 10000")


def test_options_of_the_url_that_it_refuses_are_named(stack_folder: Path, database_url: str) -> None:
    with (
        pooler.running(stack_folder, database_url) as url,
        opened(f"{url}?options=-c%20jit%3Doff") as db,
        pytest.raises(errors.DatabaseAway, match=r"unsupported startup parameter.*: (options|jit)"),
        db.connection(),
    ):
        pass
