"""A message that fails permanently becomes a row of the timeline: real broker, real store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dramatiq
import pytest
import redis

from shared import errors, keys, messages, queues
from shared.broker import redis_broker, retries
from shared.broker.deliveries import Delivery
from shared.call import commands
from shared.call.calls import Call
from shared.call.states import Direction, State
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline_allowance import TimelineAllowance
from tests import databases
from tests.support import worker_harness
from workers import pools
from workers.dead_letters import DeadLetters

pytestmark = pytest.mark.services


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with databases.with_connection(database_url, size=4) as made:
        yield made


class Scene:
    """A worker whose only actor fails."""

    def __init__(self, db: database.Database, redis_url: str) -> None:
        self._db = db
        self.url = redis_url
        self.store = PostgresCalls(db, who="worker", prefix="aip-")
        self.error: Exception = errors.PermanentError("no")
        self.tries = 0
        self.broker = queues.broker(
            redis_url, [DeadLetters(self.store), retries.Retries((20,), outages=pools.OUTAGES)], threads=2
        )
        dramatiq.actor(
            actor_name="tear_down",
            queue_name="teardown",
            broker=self.broker,
            throws=errors.PermanentError,
            retry_for_ms=70,
        )(self._fail)
        self._worker = dramatiq.Worker(self.broker, queues={"teardown"}, worker_threads=2, worker_timeout=50)
        self._worker.start()

    def _fail(self, **body: Any) -> None:
        self.tries += 1
        raise self.error

    def letter(self) -> dict[str, Any]:
        """Return the only dead letter."""
        worker_harness.until(self._letters, seconds=10, what="no dead letter")
        self.broker.join("teardown", timeout=5000)
        (letter,) = self._letters()
        return letter

    def _letters(self) -> list[dict[str, Any]]:
        with self._db.connection() as connection:
            return connection.execute(
                "SELECT * FROM ari.timeline WHERE kind = 'dead-letter' ORDER BY connection_id"
            ).fetchall()

    def close(self) -> None:
        self._worker.stop(timeout=5000)
        self.broker.close()


@pytest.fixture
def scene(db: database.Database, redis_url: str) -> Iterator[Scene]:
    made = Scene(db, redis_url)
    yield made
    made.close()


def call(store: PostgresCalls) -> Call:
    now = store.now()
    made = Call(
        call_id=uuid.uuid4(),
        connection_id=1, connection_version=1, organization_id=3, channel_id="1.1", channel_created="c", entry=1,
        direction=Direction.INBOUND, state=State.ENDING, received_at=now, state_since=now,
        deadline_at=now + timedelta(seconds=60),
    )  # fmt: skip
    assert store.insert(made, [], None)
    return made


def test_what_fails_for_good_is_in_the_call_s_timeline(scene: Scene) -> None:
    made = call(scene.store)
    scene.broker.enqueue(messages.of_command(commands.TearDown(call_id=made.call_id), connection_id=1))
    letter = scene.letter()
    assert (letter["call_id"], letter["name"]) == (made.call_id, "tear_down")
    assert "PermanentError: no" in letter["detail"]
    assert "in _fail" in letter["detail"]
    assert str(made.call_id) in letter["detail"]
    assert scene.tries == 1


def test_a_transient_failure_is_retried_first(scene: Scene) -> None:
    scene.error = errors.DatabaseUnavailable("away")
    scene.broker.enqueue(messages.of_command(commands.TearDown(call_id=uuid.uuid4()), connection_id=1))
    letter = scene.letter()
    assert "DatabaseUnavailable: away" in letter["detail"]
    assert letter["call_id"] is None
    assert 2 <= scene.tries <= 5


def test_a_statement_that_takes_too_long_is_tried_again_for_a_bounded_time(scene: Scene, database_url: str) -> None:
    """It once counted as an outage, and its message was tried every second for ever."""
    hasty = database.Database(database_url, size=1, statement_seconds=0.5)
    hasty.open()
    try:
        with hasty.connection() as connection:
            connection.execute("SELECT pg_sleep(5)")
    except errors.PipelineError as exc:
        scene.error = exc
    finally:
        hasty.close()
    scene.broker.enqueue(messages.of_command(commands.TearDown(call_id=uuid.uuid4()), connection_id=1))
    assert "statement timeout" in scene.letter()["detail"]
    assert 2 <= scene.tries <= 5


def test_no_message_is_given_up_for_a_server_that_is_away(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "OUTAGE_DELAY_MS", 10)
    scene.error = errors.DatabaseAway("away")
    scene.broker.enqueue(messages.of_command(commands.TearDown(call_id=uuid.uuid4()), connection_id=1))
    worker_harness.until(lambda: scene.tries >= 20, seconds=10, what="given up")
    assert scene.broker.count(["teardown"])["teardown"] != redis_broker.Count(waiting=0, delayed=0, in_flight=0)
    scene.error = errors.PermanentError("no")
    scene.letter()


def test_no_secret_is_in_a_dead_letter(scene: Scene) -> None:
    scene.error = errors.PermanentError("postgresql://user:hunter2@host and Authorization: Basic aHVudGVyMg==")
    scene.broker.enqueue(messages.of_command(commands.TearDown(call_id=uuid.uuid4()), connection_id=1))
    letter = scene.letter()
    with redis.Redis.from_url(scene.url) as client:
        ((_, fields),) = client.xrange(f"{keys.NAMESPACE}:dead-letters")
    for text in (letter["detail"], fields[b"reason"].decode()):
        assert "PermanentError" in text
        assert "hunter2" not in text
        assert "aHVudGVyMg" not in text


@pytest.mark.parametrize("body", [b"\x00\xff{", b'{"v": 1}', b"{}"])
def test_an_unreadable_message_is_recorded_with_its_bytes(scene: Scene, body: bytes) -> None:
    with redis.Redis.from_url(scene.url) as client:
        name = f"{keys.NAMESPACE}:queue:teardown"
        client.hset(name, "7/unreadable", body)
        client.rpush(f"{name}:group:7", "7/unreadable")
        client.rpush(f"{name}:rotation", "7")
        letter = scene.letter()
        ((_, fields),) = client.xrange(f"{keys.NAMESPACE}:dead-letters")
    assert fields[b"body"] == body
    assert "DecodeError" in letter["detail"]
    assert body.decode(errors="backslashreplace").replace("\0", "\\x00") in letter["detail"]
    assert scene.tries == 0


def test_the_messages_of_one_connection_that_fail_write_so_many_rows(scene: Scene) -> None:
    """An Asterisk may send any number of events that cannot be worked on."""
    store = scene.store
    letters, most = DeadLetters(store), TimelineAllowance(5)
    store._allowance = most
    for connection_id in (1, 2):
        for _ in range(20):
            body: dict[str, Any] = {"connection_id": connection_id, "connection_version": 1, "event": {}}
            failed: dramatiq.Message[Any] = dramatiq.Message("teardown", "leg_ended", (), body, {})
            delivery = Delivery("teardown", b"1/a", failed.encode())
            delivery.stuff_exception(errors.InvalidMessage("no"))
            letters.before_nack(scene.broker, delivery)
    rows = scene._letters()
    assert [row["connection_id"] for row in rows] == [1] * 5 + [2] * 5
