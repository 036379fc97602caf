"""`arictl top`, and the sample that it shares with the console: real Postgres, real Redis."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis
from rich.console import Console

from arictl import tools
from shared import keys, messages, queues
from shared.call import commands
from shared.call.calls import Call
from shared.call.states import Direction, Outcome, State
from shared.operator import overview_sample as overview
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests import arictl_program, databases
from tests.arictl_program import Arictl

pytestmark = pytest.mark.services


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with databases.with_connection(database_url, size=2) as made:
        yield made


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(queues.client(redis_url)) as made:
        yield made


@pytest.fixture
def arictl(database_url: str, redis_url: str, tmp_path: Path) -> Arictl:
    run = arictl_program.runner(database_url, tmp_path)
    return lambda *words, **given: run(*words, **({"REDIS_URL": redis_url, "COLUMNS": "80"} | given))


def fill(db: database.Database, redis_url: str) -> None:
    """Calls in several states, messages, a leader, listeners and a dead letter."""
    store = PostgresCalls(db, who="test", prefix="aip-")
    now = store.now()
    for number in range(20):
        setup = timedelta(milliseconds=100 * (number + 1))
        received = now - timedelta(seconds=10)
        is_over = number < 10
        call = Call(
            call_id=uuid.uuid4(), connection_id=1, connection_version=1, organization_id=3, channel_id=f"1.{number}",
            channel_created="c", entry=1, direction=Direction.INBOUND,
            state=State.ENDED if is_over else State.CONNECTED, received_at=received, state_since=received,
            deadline_at=None if is_over else now - timedelta(seconds=20 if number == 19 else -60),
            connected_at=received + setup, ending_at=now if is_over else None, ended_at=now if is_over else None,
            outcome=Outcome.COMPLETED if number < 8 else Outcome.FAILED if is_over else None,
        )  # fmt: skip
        assert store.insert(call, [], None)
    with db.connection() as connection:
        connection.execute("UPDATE ari.connection_versions SET socket_state = 'connected'")
        connection.execute("UPDATE ari.calls SET fault = 'us' WHERE outcome = 'failed'")
        connection.execute("UPDATE ari.connections SET version = 1 WHERE connection_id = 1")
        connection.execute(
            "INSERT INTO ari.leases (name, holder, term, expires_at)"
            " VALUES ('scheduler', 'scheduler-1/abcd', 1, now() + interval '1 minute')"
        )
    with contextlib.closing(queues.broker(redis_url)) as broker:
        for _ in range(3):
            message = messages.of_command(commands.TearDown(call_id=uuid.uuid4()), connection_id=1)
            old = int((datetime.now(UTC) - timedelta(seconds=5)).timestamp() * 1000)
            broker.enqueue(message.copy(message_timestamp=old))
        broker.enqueue(messages.of_command(commands.TearDown(call_id=uuid.uuid4()), connection_id=2), delay=60_000)
        client: Any = broker.client
        client.xadd(
            f"{keys.NAMESPACE}:dead-letters", {"queue": "teardown", "message_key": "1/a", "body": "", "reason": ""}
        )
        seconds, _ = client.time()
        client.zadd(keys.LISTENERS, {"listener-1": seconds * 1000, "listener-gone": (seconds - 60) * 1000})
        client.zadd(f"{keys.NAMESPACE}:sessions", {"worker-1/steps/ab-cd": seconds * 1000})


def test_a_sample_has_all_that_is_asked(db: database.Database, client: redis.Redis, redis_url: str) -> None:
    fill(db, redis_url)
    sample = overview.take(db, client)
    assert sample.missing == ()
    calls, traffic = sample.calls, sample.traffic
    assert calls is not None
    assert traffic is not None
    assert calls.live == {"connected": 10}
    assert calls.received_per_second == pytest.approx(20 / 60, abs=0.01)
    assert (calls.looked_at, calls.connected) == (20, 20)
    assert calls.setup_p50 == pytest.approx(1.05)
    assert calls.setup_p99 == pytest.approx(1.981)
    assert calls.outcomes == {"completed": 8, "failed": 2}
    assert calls.faults == {"us": 2}
    assert calls.connections["connected"] == calls.up == 1
    assert (calls.leader, calls.overdue) == ("scheduler-1/abcd", 1)
    (queue,) = [queue for queue in traffic.queues if queue.name == "teardown"]
    assert (queue.waiting, queue.delayed, queue.in_flight) == (3, 1, 0)
    assert queue.oldest_seconds == pytest.approx(5, abs=2)
    assert all(queue.oldest_seconds is None for queue in traffic.queues if queue.name != "teardown")
    assert (traffic.dead_letters, traffic.dead_letters_dropped) == (1, 0)
    assert (traffic.listeners, traffic.workers) == (("listener-1",), ("worker-1",))


def test_an_empty_installation_has_a_sample(db: database.Database, client: redis.Redis) -> None:
    sample = overview.take(db, client)
    assert sample.calls is not None
    assert (sample.calls.setup_p50, sample.calls.leader, sample.calls.received_per_second) == (None, None, 0)


def test_one_sample_is_one_round_trip_of_postgres_and_few_of_redis(
    db: database.Database, client: redis.Redis, redis_url: str
) -> None:
    overview.take(db, client)
    with mock.patch.object(
        database.Connection, "_exchange", autospec=True, side_effect=database.Connection._exchange
    ) as to:
        overview.take(db, client)
    assert to.call_count == 1


def test_it_is_read_by_indexes(db: database.Database) -> None:
    with db.connection() as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute(
            "INSERT INTO ari.calls (call_id, connection_id, connection_version, organization_id, channel_id,"
            " channel_created, entry, direction, state, received_at, state_since, lock_version, step_retries,"
            " channel_name, caller_number, called_number, args, attempt, legs_created, media_ready, caller_left,"
            " continue_in_dialplan) SELECT gen_random_uuid(), 1, 1, 3, 'other-' || n, '', 1, 'inbound', 'ended',"
            " now() - n * interval '1 minute', now(), 1, 0, '', '', '', '{}', 1, true, true, true, false"
            " FROM generate_series(1, 20000) AS n"
        )
        connection.execute("ANALYZE ari.calls")
        for query in (overview._LIVE, overview._RECENT, overview._OVERDUE):
            plan = connection.execute(f"EXPLAIN {query}").fetchall()
            assert not [line for line in plan if "Seq Scan on calls" in line["QUERY PLAN"]], plan


def test_a_sample_is_shown_in_80_times_24(arictl: Arictl, db: database.Database, redis_url: str) -> None:
    fill(db, redis_url)
    done = arictl("top", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.rstrip("\n").splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for text in (
        "scheduler-1 leads", "1 listener", "1 worker", "10 live", "10 connected", "1 overdue", "p50 1.1 s", "p99 2.0 s",
        "8 completed", "2 failed", "2 us", "1 connected", "teardown", "1 in Redis",
    ):  # fmt: skip
        assert text in done.stdout, text
    found = json.loads(arictl("top", "--json").stdout)
    assert found["calls"]["outcomes"] == {"completed": 8, "failed": 2}


@pytest.mark.parametrize("away", ["DATABASE_URL", "REDIS_URL"])
def test_what_is_away_is_told_in_a_sentence_and_the_rest_is_shown(
    arictl: Arictl, db: database.Database, redis_url: str, away: str
) -> None:
    fill(db, redis_url)
    url = {"DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x", "REDIS_URL": "redis://:hunter2@127.0.0.1:1/0"}[away]
    done = arictl("top", "--once", **{away: url})
    assert done.returncode == 3
    assert ("Postgres cannot be reached" in done.stdout, "Redis: " in done.stdout) == (
        away == "DATABASE_URL",
        away == "REDIS_URL",
    )
    assert ("teardown" in done.stdout, "8 completed" in done.stdout) == (away == "DATABASE_URL", away == "REDIS_URL")
    assert "hunter2" not in done.stdout + done.stderr


def test_it_goes_on_until_it_is_interrupted(arictl: Arictl, db: database.Database) -> None:
    """Once a second at most, and the terminal is left as it was."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    terminal = Console(force_terminal=True, width=80, height=24, color_system=None)
    with mock.patch.object(tools, "out", terminal), mock.patch.object(time, "sleep", pause):
        done = arictl("top")
    assert done.returncode == 0
    assert len(pauses) == 3
    assert all(0.5 < seconds <= 1 for seconds in pauses)
    assert done.stdout.count("ari-pipeline") >= 3
    # The alternate screen is left, and the cursor is shown.
    assert done.stdout.rstrip().endswith("\x1b[?25h") or "\x1b[?1049l" in done.stdout
