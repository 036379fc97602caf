"""Servers that accept connections and answer nothing: every wait for them ends, and what comes after is served."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy

from devstack import servers, tcp_proxy
from devstack.pipeline import wait_until
from listener import redis_store
from shared import errors, ongoing, queues
from shared.call.limits import Limits
from shared.storage import database, leases, migrations
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from tests.support import worker_harness
from tests.support.flows import CommandQueue
from workers.exclusive import Exclusive

pytestmark = pytest.mark.services

#: A statement's time-out, and what is added to it.
STATEMENT_SECONDS = 0.5
BOUND_SECONDS = STATEMENT_SECONDS + 1.0
#: For a busy machine.
SLACK_SECONDS = 3.0
#: More than the kernel takes for a process that does not read.
MANY_BYTES = 30_000_000


@pytest.fixture(scope="module")
def postgres(stack_folder: Path) -> Iterator[servers.Postgres]:
    with servers.Postgres(stack_folder / "frozen-postgres", durable=False) as server:
        migrations.upgrade(server.url)
        yield server


@pytest.fixture
def db(postgres: servers.Postgres) -> Iterator[database.Database]:
    made = database.Database(postgres.url, size=2, statement_seconds=STATEMENT_SECONDS)
    made.open()
    with made.connection() as first, made.connection() as second:
        first.execute("SELECT 1")
        second.execute("SELECT 1")
    yield made
    postgres.thaw()
    made.close()


def read(db: database.Database) -> None:
    with db.connection() as connection:
        connection.execute("SELECT 1")


def write(db: database.Database) -> None:
    with db.transaction() as connection:
        connection.execute("INSERT INTO ari.leases VALUES (%s, 'b', 1, now())", [str(time.monotonic())])


def send_much(db: database.Database) -> None:
    """More than its socket takes, so that sending waits as well."""
    with db.connection() as connection:
        connection.execute("SELECT length(%s)", ["x" * MANY_BYTES])


@pytest.mark.parametrize("ask", [read, write, send_much])
def test_what_is_asked_of_a_frozen_postgres_ends_in_time(
    postgres: servers.Postgres, db: database.Database, ask: Callable[[database.Database], None]
) -> None:
    postgres.freeze()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(errors.DatabaseAway):
            ask(db)
        assert time.monotonic() - began < BOUND_SECONDS + SLACK_SECONDS
    postgres.thaw()
    thawed_at = time.monotonic()
    worker_harness.until(lambda: _is_served(db), seconds=5, what="not served again")
    assert time.monotonic() - thawed_at < 5


def _is_served(db: database.Database) -> bool:
    try:
        write(db)
    except errors.DatabaseUnavailable:
        return False
    return True


def test_a_transaction_that_has_begun_ends_as_well(postgres: servers.Postgres, db: database.Database) -> None:
    def begin() -> None:
        with db.transaction() as connection:
            connection.execute("INSERT INTO ari.leases VALUES ('begun', 'b', 1, now())")
            postgres.freeze()
            connection.execute("SELECT 1")

    began = time.monotonic()
    with pytest.raises(errors.DatabaseAway, match="no answer"):
        begin()
    assert time.monotonic() - began < BOUND_SECONDS + SLACK_SECONDS


def test_all_threads_come_back_from_a_frozen_postgres(postgres: servers.Postgres, db: database.Database) -> None:
    """Those that have a connection, and those that wait for one."""
    postgres.freeze()
    failed: list[errors.DatabaseUnavailable] = []

    def ask() -> None:
        try:
            read(db)
        except errors.DatabaseUnavailable as exc:
            failed.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_SECONDS * 2 + SLACK_SECONDS)
    assert not [thread for thread in threads if thread.is_alive()]
    assert len(failed) == 8


def test_a_pool_is_closed_while_postgres_is_frozen(postgres: servers.Postgres, db: database.Database) -> None:
    postgres.freeze()
    with pytest.raises(errors.DatabaseAway):
        read(db)
    began = time.monotonic()
    db.close()
    assert time.monotonic() - began < 4


def test_a_wait_for_a_frozen_postgres_is_seen_and_is_not_lost(
    postgres: servers.Postgres, db: database.Database
) -> None:
    postgres.freeze()
    asking = threading.Thread(target=_is_served, args=(db,))
    asking.start()
    worker_harness.until(
        lambda: (oldest := ongoing.oldest()) and oldest.what == "Postgres" and oldest.seconds > 0.3,
        seconds=5,
        what="not seen",
    )
    assert ongoing.lost() is None
    asking.join()


def test_a_migration_is_broken_off_once_postgres_has_kept_silent(
    postgres: servers.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no time-out of its own: an index may take hours."""
    monkeypatch.setattr(migrations, "_WATCH_SECONDS", 0.1)
    began = time.monotonic()
    with migrations._connected(postgres.url) as connection:
        postgres.freeze()
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.execute(sqlalchemy.text("SELECT 1"))
        postgres.thaw()
    assert time.monotonic() - began < 20


def test_a_migration_that_takes_long_is_left_alone(postgres: servers.Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "_WATCH_SECONDS", 0.05)
    with migrations._connected(postgres.url) as connection:
        assert connection.execute(sqlalchemy.text("SELECT pg_sleep(1), 1")).one()[1] == 1


def test_what_a_frozen_postgres_has_swallowed_does_not_keep_the_lead(database_url: str) -> None:
    """Its kernel acknowledges what it gets, so TCP finds nothing wrong with the connection."""
    with tcp_proxy.TcpProxy(database_url) as proxy:
        db = database.Database(proxy.url, size=2, statement_seconds=STATEMENT_SECONDS)
        db.open()
        held = leases.Leases(db)
        assert held.take("lead", "me", 5)
        proxy.swallow()
        with pytest.raises(errors.DatabaseAway):
            held.take("lead", "me", 5)
        assert held.take("lead", "me", 5)
        db.close()


def test_a_lease_that_a_frozen_postgres_has_swallowed_keeps_nobody_waiting(
    postgres: servers.Postgres, db: database.Database
) -> None:
    """The worker lives, so nobody else ends its lease: of a resync, for 25 s."""
    worker, another = (
        CallWriter(PostgresCalls(db, who=who, prefix="aip-"), CommandQueue(), Limits(), who=who) for who in ("a", "b")
    )
    exclusive = Exclusive(leases.Leases(db), worker)
    postgres.freeze()
    with pytest.raises(errors.DatabaseAway), exclusive.lease("swallowed", 60.0):
        pytest.fail("not acquired")
    postgres.thaw()

    def is_held_by_none() -> bool:
        # The worker goes on with other work.
        with exclusive.lease("other work", 60.0):
            pass
        with Exclusive(leases.Leases(db), another).lease("swallowed", 60.0) as acquired:
            return acquired

    wait_until(is_held_by_none, seconds=10, what="the lease is free")
    with db.connection() as connection:
        row = connection.execute("SELECT term FROM ari.leases WHERE name = 'swallowed'").fetchone()
    assert row == {"term": 2}, "it was taken, without an answer"


@pytest.fixture
def frozen_redis(stack_folder: Path) -> Iterator[servers.Redis]:
    with servers.Redis(stack_folder / f"frozen-redis-{time.monotonic_ns()}") as server:
        yield server
        server.thaw()


def test_what_is_asked_of_a_frozen_redis_ends_in_time(frozen_redis: servers.Redis) -> None:
    client = queues.client(frozen_redis.url)
    beats = redis_store.ThreadStore(frozen_redis.url, "me", seconds=0.5)
    harness = worker_harness.WorkerHarness(frozen_redis.url, patience_seconds=0.5)
    store = redis_store.client(frozen_redis.url)

    async def ping() -> None:
        await store.ping()

    client.ping()
    beats.beat("")
    frozen_redis.freeze()
    for ask, seconds in (
        (client.ping, 3.0),
        (lambda: beats.beat(""), 0.5),
        (harness.send, 3.5),
        (lambda: asyncio.run(ping()), 3.0),
    ):
        began = time.monotonic()
        with pytest.raises((redis.RedisError, errors.QueueUnavailable, Exception)) as caught:
            ask()
        assert time.monotonic() - began < seconds + SLACK_SECONDS, caught.value
    frozen_redis.thaw()
    worker_harness.until(client.ping, seconds=5, what="not served again")
    client.close()
    harness.broker.close()


def test_workers_go_on_when_a_frozen_redis_does(frozen_redis: servers.Redis) -> None:
    with worker_harness.WorkerHarness(frozen_redis.url).working() as harness:
        harness.send("before")
        harness.wait(1)
        frozen_redis.freeze()
        time.sleep(4)
        frozen_redis.thaw()
        harness.send("after")
        harness.wait(2, seconds=5)
