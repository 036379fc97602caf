"""A Postgres that fails over to its streaming replica: everything works within 5 s, and nothing is started again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scheduler.leader import Leader
from shared import errors
from shared.storage import database
from tests.support import failover, log_records, worker_harness

pytestmark = pytest.mark.services

#: From the fail-over until everything works again.
SECONDS = 5.0
TOLD = ["postgres unavailable, retrying", "postgres available again"]


class Writer:
    """A thread that writes again and again, as a worker does; it notes when it last could."""

    def __init__(self, db: database.Database, number: int) -> None:
        self._db = db
        self._number = number
        self.wrote_at = 0.0
        self.failures = 0

    def run(self, stop: threading.Event) -> None:
        count = 0
        while not stop.wait(0.02):
            count += 1
            try:
                with self._db.transaction() as connection:
                    connection.execute("SELECT FROM ari.leases WHERE name = %s", [str(self._number)])
                    connection.execute("INSERT INTO ari.leases VALUES (%s, 'b', 1, now())", [f"{self._number}/{count}"])
                self.wrote_at = time.monotonic()
            except errors.DatabaseUnavailable:
                self.failures += 1


@pytest.fixture
def pair(stack_folder: Path) -> Iterator[failover.PostgresFailover]:
    with failover.postgres_in(stack_folder) as made:
        yield made


@pytest.mark.parametrize("how", ["happen", "happen_frozen"])
def test_writers_and_the_lead_move_within_five_seconds(pair: failover.PostgresFailover, how: str) -> None:
    """Of a server that lives on, read-only, and of one that answers nothing any more."""
    db = database.Database(pair.url, size=10)
    db.open()
    stop = threading.Event()
    writers = [Writer(db, number) for number in range(8)]
    threads = [threading.Thread(target=writer.run, args=(stop,)) for writer in writers]
    leader = Leader(db, holder="me", seconds=2)
    for thread in threads:
        thread.start()
    try:
        worker_harness.until(lambda: all(writer.wrote_at for writer in writers), seconds=10, what="not written")
        leader.renew()
        assert leader.is_leader
        with log_records.kept("shared.storage.database") as logged:
            moved_at = time.monotonic()
            getattr(pair, how)()

            def works() -> bool:
                leader.renew()
                return leader.is_leader and all(writer.wrote_at > answered_at for writer in writers)

            # The new server writes from here on.
            answered_at = time.monotonic()
            worker_harness.until(works, seconds=SECONDS, what="not every writer has written")
            took = time.monotonic() - moved_at
        assert took < SECONDS
        said = [message for message in logged.messages if message.startswith("postgres")]
        # Told once, or a few times: of eight writers, some may get through to the old server in between.
        assert said in [times * TOLD for times in (1, 2, 3, 4)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
        db.close()
    # Neither of them is met for each of the writes.
    assert all(writer.failures < 30 for writer in writers), [writer.failures for writer in writers]


def test_of_two_servers_in_the_url_the_one_that_takes_writes_is_chosen(pair: failover.PostgresFailover) -> None:
    """Named first is the one that is read-only: before the fail-over the replica, after it the old server."""
    for first, second in ((pair.new, pair.old), (pair.old, pair.new)):
        url = urlsplit(pair.old.url)
        hosts = f"127.0.0.1:{first.port},127.0.0.1:{second.port}"
        db = database.Database(url._replace(netloc=f"{url.username}:{url.password}@{hosts}").geturl(), size=1)
        db.open()
        with db.connection() as connection:
            connection.execute("INSERT INTO ari.leases VALUES (%s, 'b', 1, now())", [hosts])
        db.close()
        if first is pair.new:
            pair.happen()


def test_a_server_that_is_read_only_is_named_and_is_not_back(pair: failover.PostgresFailover) -> None:
    db = database.Database(pair.new.url, size=1)
    db.open()
    with log_records.kept("shared.storage.database") as logged:
        for _ in range(2):
            with pytest.raises(errors.DatabaseAway, match="read-only"), db.connection() as connection:
                connection.execute("SELECT 1")
    assert logged.messages == ["postgres unavailable, retrying"]
    db.close()
    # Asked for, it is read from.
    db = database.Database(f"{pair.new.url}?target_session_attrs=any", size=1)
    db.open()
    with db.connection() as connection:
        assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}
    db.close()


def test_back_is_said_after_a_write_alone(database_url: str) -> None:
    db = database.Database(database_url, size=2)
    db.open()

    def write_to_a_replica() -> None:
        with db.transaction() as connection:
            connection.execute("SET LOCAL transaction_read_only = on")
            connection.execute("INSERT INTO ari.leases VALUES ('a', 'b', 1, now())")

    with log_records.kept("shared.storage.database") as logged:
        with pytest.raises(errors.DatabaseAway, match="read-only"):
            write_to_a_replica()
        with db.connection() as connection:
            connection.execute("SELECT 1")
        assert logged.messages == ["postgres unavailable, retrying"]
        with db.connection() as connection:
            connection.execute("UPDATE ari.leases SET term = 2 WHERE name = 'none'")
    assert logged.messages[1:] == ["postgres available again"]
    db.close()
