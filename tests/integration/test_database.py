"""A Postgres that is away: reported, logged once, and found again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from devstack import tcp_proxy
from shared import errors
from shared.call import facts
from shared.call.limits import Limits
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests import databases

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


def test_an_outage_of_postgres_is_logged_once_and_so_is_its_end(
    db: database.Database, caplog: pytest.LogCaptureFixture
) -> None:
    def ask() -> None:
        with contextlib.suppress(errors.DatabaseUnavailable), db.connection() as connection:
            connection.execute("SELECT 1")

    # arictl, run by other tests in this process, silences it.
    with caplog.at_level("WARNING", logger="shared.storage.database"):
        for _ in range(3):
            # Each time as if the server had stopped.
            with contextlib.suppress(errors.DatabaseUnavailable), db.connection() as connection:
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert caplog.messages == ["postgres unavailable, retrying"]
        ask()
        ask()
        # A statement that takes too long is no outage.
        with pytest.raises(errors.DatabaseUnavailable), db.connection() as connection:
            connection.execute("SELECT pg_sleep(5)")
    assert caplog.messages == ["postgres unavailable, retrying", "postgres available again"]


def test_an_unreachable_database_is_reported_without_its_password() -> None:
    db = database.Database("postgresql://u:hunter2@127.0.0.1:1/x", size=1, statement_seconds=0.3)
    db.open()
    try:
        with pytest.raises(errors.DatabaseUnavailable) as caught:
            PostgresCalls(db, who="test", prefix="aip-").now()
        assert "hunter2" not in str(caught.value)
    finally:
        db.close()
