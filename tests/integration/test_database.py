"""A Postgres that is away: reported, logged once, and found again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psycopg
import pytest

from devstack import tcp_proxy
from shared import errors
from shared.call import facts
from shared.call.limits import Limits
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests import databases
from tests.support import log_records

pytestmark = pytest.mark.services

LIMITS = Limits()
ADMITTED = facts.Admitted(workflow_id=1, user_id=2, media_client="media")


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with databases.with_connection(database_url, size=10) as made:
        yield made


def test_a_database_that_was_queried_often_during_its_outage_is_found_again(database_url: str) -> None:
    with tcp_proxy.TcpProxy(database_url) as proxy:
        patient = database.Database(proxy.url, size=1, statement_seconds=0.05)
        patient.open()
        try:
            proxy.cut()
            # For longer than the pool tries to connect by itself (5 s).
            away_until = time.monotonic() + 7
            while time.monotonic() < away_until:
                with pytest.raises(errors.DatabaseUnavailable), patient.connection():
                    pass
            proxy.mend()
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline:
                with contextlib.suppress(errors.DatabaseUnavailable), patient.connection() as connection:
                    assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}
                    return
            pytest.fail("Postgres was not found again")
        finally:
            patient.close()


def test_an_outage_of_postgres_is_logged_once_and_so_is_its_end(db: database.Database) -> None:
    def ask() -> None:
        with contextlib.suppress(errors.DatabaseUnavailable), db.connection() as connection:
            connection.execute("UPDATE ari.leases SET term = 1")

    with log_records.kept("shared.storage.database") as logged:
        for _ in range(3):
            # Each time as if the server had stopped.
            with contextlib.suppress(errors.DatabaseUnavailable), db.connection() as connection:
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert logged.messages == ["postgres unavailable, retrying"]
        ask()
        ask()
        # A statement that takes too long is no outage.
        with pytest.raises(errors.DatabaseUnavailable), db.connection() as connection:
            connection.execute("SELECT pg_sleep(5)")
    assert logged.messages == ["postgres unavailable, retrying", "postgres available again"]


_FAILS = "DO $$ BEGIN RAISE EXCEPTION 'it fails' USING ERRCODE = '{}'; END $$"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("SELECT pg_sleep(5)", "statement timeout"),
        ("SET LOCAL lock_timeout = 100; SELECT FROM ari.leases", "lock timeout"),
        (_FAILS.format("40P01"), "it fails"),  # deadlock_detected
        (_FAILS.format("53200"), "it fails"),  # out_of_memory
    ],
)
def test_a_statement_that_fails_or_takes_too_long_is_no_outage(database_url: str, statement: str, reason: str) -> None:
    hasty = database.Database(database_url, size=1, statement_seconds=0.5)
    hasty.open()
    with contextlib.closing(hasty), psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE ari.leases")
        with pytest.raises(errors.DatabaseUnavailable, match=reason) as caught:
            execute(hasty, statement)
    assert not isinstance(caught.value, errors.DatabaseAway)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SET LOCAL transaction_read_only = on; INSERT INTO ari.leases VALUES ('a', 'b', 1, now())",
    ],
)
def test_a_server_that_is_lost_or_read_only_is_an_outage(db: database.Database, statement: str) -> None:
    with pytest.raises(errors.DatabaseAway):
        execute(db, statement)


def execute(db: database.Database, statements: str) -> None:
    with db.transaction() as connection:
        for statement in statements.split("; ") if "DO" not in statements else [statements]:
            connection.execute(statement)


def test_an_unreachable_database_is_reported_without_its_password() -> None:
    db = database.Database("postgresql://u:hunter2@127.0.0.1:1/x", size=1, statement_seconds=0.3)
    db.open()
    try:
        with pytest.raises(errors.DatabaseAway) as caught:
            PostgresCalls(db, who="test", prefix="aip-").now()
        assert "hunter2" not in str(caught.value)
    finally:
        db.close()
