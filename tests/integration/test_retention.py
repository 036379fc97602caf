"""Old rows are deleted from a real Postgres: nothing else, in small batches, without blocking others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from scheduler import retention
from scheduler.retention import Retention
from shared.call import facts
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import Direction, State
from shared.storage import database
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import TimelineEntry
from tests import databases

pytestmark = pytest.mark.services

DAYS = 32
MANY = 100_000

#: Calls one a second, the newest `days` old: each with an attempt and three rows of the timeline.
_OLD_CALLS = """
INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id, channel_created, entry,
    direction, state, received_at, state_since, lock_version, step_retries, channel_name, caller_number, called_number,
    args, continue_in_dialplan, attempt, legs_created, media_ready, caller_left, workflow_run_id, connected_at,
    ending_at, ended_at, outcome)
SELECT gen_random_uuid(), 1, 1, 3, 'old-' || n, '', 1, 'inbound', 'ended', at, at, 9, 0, '', '', '', '{}', false, 1,
       true, true, true, n, at, at + interval '1 minute', at + interval '1 minute', 'completed'
FROM (SELECT n, now() - make_interval(days => %s, secs => n) AS at FROM generate_series(1, %s) AS n) AS times;
"""
_THEIR_ATTEMPTS = """
INSERT INTO ari.attempts (call_id, attempt, media_id, bridge_id, in_doubt_until)
SELECT call_id, 1, 'm', 'b', received_at FROM ari.calls
"""
_THEIR_TIMELINE = """
INSERT INTO ari.timeline (at, call_id, kind, name, who)
SELECT received_at, call_id, 'note', 'x', 'test' FROM ari.calls, generate_series(1, 3) ORDER BY received_at
"""


class CommandQueue:
    """Drops every command: no worker runs here."""

    def enqueue(self, commands: object, *, connection_id: int) -> None:
        pass


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with databases.with_connection(database_url, size=8) as made:
        yield made


def execute(db: database.Database, query: str, *values: Any) -> None:
    with db.connection() as connection:
        connection.execute(query, values)


def count(db: database.Database, table: str, where: str = "true") -> int:
    with db.connection() as connection:
        row = connection.execute(f"SELECT count(*) AS number FROM ari.{table} WHERE {where}").fetchone()
    assert row is not None
    return int(row["number"])


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def received(store: PostgresCalls, *, days: float, ended_days: float | None) -> Call:
    """Write a call by its age, and by how long ago it ended; None: it has not."""
    now = store.now()
    call = Call(
        call_id=uuid4(), connection_id=1, connection_version=1, organization_id=3, channel_id=uuid4().hex,
        channel_created="", entry=1, direction=Direction.INBOUND, received_at=now - timedelta(days=days),
        state=State.ENDING if ended_days is None else State.ENDED, state_since=now, deadline_at=None,
        ended_at=None if ended_days is None else now - timedelta(days=ended_days),
    )  # fmt: skip
    assert store.insert(call, [TimelineEntry(kind="note", name="x")], None)
    return call


@pytest.mark.parametrize(
    ("days", "ended_days", "stays"),
    [
        (33, 32.1, False),
        (32.1, 32.01, False),
        # A month of 31 days is kept completely.
        (31, 31, True),
        (0, 0, True),
        # Received before the limit, ended after it.
        (40, 31.9, True),
        (400, None, True),
    ],
)
def test_a_call_is_deleted_when_it_has_ended_long_enough_ago(
    db: database.Database, days: float, ended_days: float | None, stays: bool
) -> None:
    store = PostgresCalls(db, who="test", prefix="aip-")
    call = received(store, days=days, ended_days=ended_days)
    execute(db, _THEIR_ATTEMPTS)
    for _ in range(2):
        Retention(db, days=DAYS).delete_old()
        assert (store.load(call.call_id) is not None) == stays
        assert (count(db, "attempts"), count(db, "timeline")) == ((1, 2) if stays else (0, 0))


def test_old_timeline_rows_of_connections_and_of_no_connection_are_deleted(db: database.Database) -> None:
    row = "INSERT INTO ari.timeline (at, connection_id, kind, name, who) VALUES (%s, %s, 'note', %s, 'test')"
    for connection_id in (1, None):
        execute(db, row, ago(33), connection_id, "old")
        execute(db, row, ago(31), connection_id, "young")
    Retention(db, days=DAYS).delete_old()
    assert (count(db, "timeline", "name = 'old'"), count(db, "timeline", "name = 'young'")) == (0, 2)


def test_one_run_deletes_all_old_rows_of_a_connection(db: database.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 100)
    rows = """
        INSERT INTO ari.timeline (at, connection_id, kind, name, who)
        SELECT %s, %s, 'note', 'x', 'test' FROM generate_series(1, 1050)
    """
    for connection_id in (1, None):
        execute(db, rows, ago(33), connection_id)
    execute(db, rows, ago(31), 1)
    Retention(db, days=DAYS).delete_old()
    assert count(db, "timeline") == 1050


def test_old_months_of_usage_and_old_leases_are_deleted(db: database.Database) -> None:
    lease = "INSERT INTO ari.leases (name, holder, term, expires_at) VALUES (%s, 'w', 1, %s)"
    for name, days in (("clean-up of http://once.example", 33), ("clean-up of http://a.example", 31), ("leader", 0)):
        execute(db, lease, name, ago(days))
    row = "INSERT INTO ari.usage (organization_id, month, until, seconds) VALUES (3, %s, %s, 1)"
    execute(db, row, ago(70), ago(40))
    execute(db, row, ago(40), ago(10))
    Retention(db, days=DAYS).delete_old()
    assert (count(db, "usage"), count(db, "leases")) == (1, 2)


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_run_ends_when_its_time_is_over_and_deletes_a_batch_at_least(
    db: database.Database, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(retention, "_BATCH", 10)
    monkeypatch.setattr(retention, "_RUN_SECONDS", seconds)
    execute(db, _OLD_CALLS, DAYS + 1, 35)
    rows = "INSERT INTO ari.timeline (at, kind, name, who) SELECT %s, 'note', 'x', 't' FROM generate_series(1, 35)"
    execute(db, rows, ago(33))
    Retention(db, days=DAYS).delete_old()
    assert (count(db, "calls"), count(db, "timeline")) == ((0, 0) if seconds else (25, 25))


def test_a_batch_begins_where_the_one_before_has_ended(db: database.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was deleted stays in the index while another transaction is open: it is not read once more by each batch."""
    monkeypatch.setattr(retention, "_BATCH", 10)
    execute(db, _OLD_CALLS, DAYS + 1, 35)
    read = []
    explained = database.Connection.execute

    def noted(connection: database.Connection, text: str, values: Any = ()) -> Any:
        if text == retention._CALLS:
            read.append(values["since"])
        return explained(connection, text, values)

    monkeypatch.setattr(database.Connection, "execute", noted)
    Retention(db, days=DAYS).delete_old()
    assert len(set(read)) == 4
    assert [str(since) for since in read] == ["-infinity", *sorted(map(str, read[1:]))]


def test_nothing_is_deleted_when_everything_is_kept(db: database.Database) -> None:
    store = PostgresCalls(db, who="test", prefix="aip-")
    call = received(store, days=5000, ended_days=5000)
    Retention(db, days=0).delete_old()
    assert store.load(call.call_id) == call


def test_of_very_many_calls_a_bounded_number_is_deleted_without_blocking_others(
    db: database.Database, database_url: str
) -> None:
    filling = database.Database(database_url, size=1, statement_seconds=120.0)
    filling.open()
    execute(filling, _OLD_CALLS, DAYS + 1, MANY)
    for query in (_THEIR_ATTEMPTS, _THEIR_TIMELINE, "ANALYZE ari.calls", "ANALYZE ari.timeline"):
        execute(filling, query)
    filling.close()
    store = PostgresCalls(db, who="test", prefix="aip-")
    writer = CallWriter(store, CommandQueue(), Limits(), who="test")
    over = threading.Event()

    def serve() -> int:
        """Receive and end calls meanwhile."""
        served = 0
        while not over.is_set():
            call = received(store, days=0, ended_days=None)
            assert writer.record(call, facts.LegsRemoved()).call.state is State.ENDED
            served += 1
        return served

    # It is silent for longer than a transaction of the product may be.
    patient = database.Database(database_url, size=1, idle_seconds=120.0)
    patient.open()
    with ThreadPoolExecutor(4) as pool, patient.transaction() as blocking:
        # The oldest call is locked by another transaction.
        locked = blocking.execute("SELECT call_id FROM ari.calls ORDER BY received_at LIMIT 1 FOR UPDATE").fetchone()
        serving = [pool.submit(serve) for _ in range(2)]
        try:
            # Each statement has 2 s. Two runs at once: a leader that was frozen goes on beside its successor.
            runs = [pool.submit(Retention(db, days=DAYS).delete_old) for _ in range(2)]
            for run in runs:
                run.result(timeout=60)
        finally:
            over.set()
        assert all(thread.result(timeout=30) > 0 for thread in serving)
    patient.close()
    assert locked is not None
    assert store.load(locked["call_id"]) is not None
    left = count(db, "calls", "channel_id LIKE 'old-%'")
    assert left < MANY
    of_old = "call_id IN (SELECT call_id FROM ari.calls WHERE channel_id LIKE 'old-%')"
    assert (count(db, "attempts", of_old), count(db, "timeline", of_old)) == (left, 3 * left)
    assert count(db, "timeline", f"NOT {of_old} AND who = 'test' AND state_to IS NULL AND name = 'x'") == count(
        db, "calls", "channel_id NOT LIKE 'old-%'"
    )
    assert "Seq Scan" not in plan(db, retention._CALLS)
    assert "timeline_by_age" in plan(db, retention._ROWS_WITHOUT_CALL)


def plan(db: database.Database, statement: str) -> str:
    with db.connection() as connection:
        bounds = {"days": DAYS, "batch": retention._BATCH, "since": "-infinity"}
        rows = connection.execute(f"EXPLAIN {statement}", bounds).fetchall()
    return "\n".join(row["QUERY PLAN"] for row in rows)
