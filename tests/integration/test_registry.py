"""A process in Redis: its entry, its errors, the levels wished for; and what is left of it when it is gone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import redis
import structlog

from devstack.pipeline import wait_until
from shared import keys
from shared.broker import redis_clients
from shared.errors import PermanentError, QueueUnavailable
from shared.operator.processes import MOST_WISHES, LevelWish, Processes
from shared.process.log_levels import LogLevels
from shared.process.recent_errors import MOST, RecentErrors, as_json
from shared.process.registry import Registry

pytestmark = pytest.mark.services


@pytest.fixture(autouse=True)
def client(redis_url: str) -> Iterator[redis.Redis]:
    made = redis_clients.client(redis_url, decodes=True)
    made.flushdb()
    level = logging.getLogger().level
    yield made
    logging.getLogger().setLevel(level)
    made.close()


@pytest.fixture
def known(redis_url: str) -> Iterator[Processes]:
    made = Processes(redis_url)
    yield made
    made.close()


class Formatter(logging.Formatter):
    """As that of `logs`, without what it takes out."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"timestamp": f"{record.created:.6f}", "severity_text": record.levelname, "event_name": record.msg}
        return as_json({**entry, "call": "c1", "connection": "7:2"}, most_bytes=400)


class Process:
    """A process whose registry writes when the test says so."""

    def __init__(self, url: str, name: str = "w1", kind: str = "worker") -> None:
        self.errors = RecentErrors()
        self.errors.setFormatter(Formatter())
        self.levels = LogLevels("info")
        client = redis_clients.client(url, seconds=1, decodes=True)
        self.registry = Registry(
            client, kind=kind, name=name, levels=self.levels, errors=self.errors, metrics_address=lambda: "127.0.0.1:9"
        )

    def log(self, level: int, message: str) -> None:
        self.errors.handle(logging.LogRecord("x", level, "", 0, message, None, None))


def test_a_process_is_there_with_what_it_is(redis_url: str, known: Processes) -> None:
    assert known.all() == []
    for process in (Process(redis_url, "w1"), Process(redis_url, "l1", "listener")):
        assert process.registry.write()
    listener, worker = known.all()
    assert (listener.kind, listener.name, worker.kind, worker.name) == ("listener", "l1", "worker", "w1")
    assert worker.is_there
    assert worker.silent_seconds < 5
    assert (worker.log_level, worker.metrics) == ("info", "127.0.0.1:9")
    assert worker.pid
    assert worker.host
    assert worker.started_at


def test_a_process_that_is_gone_is_known_with_its_errors(redis_url: str, known: Processes, client: redis.Redis) -> None:
    process = Process(redis_url)
    process.log(logging.ERROR, "it failed")
    assert process.registry.write()
    assert 0 < client.ttl(keys.process("worker/w1")) <= 30
    client.delete(keys.process("worker/w1"))
    (gone,) = known.all()
    assert not gone.is_there
    (error,) = known.errors("w1")
    assert (error.process, error.event, error.call, error.connection) == ("worker/w1", "it failed", "c1", "7:2")


def test_the_last_errors_are_kept_whatever_was_warned_of_since(redis_url: str, known: Processes) -> None:
    process = Process(redis_url)
    for number in range(MOST + 50):
        process.log(logging.ERROR, f"error {number}")
        if number % 70 == 0:
            assert process.registry.write()
    for number in range(3 * MOST):
        process.log(logging.WARNING, f"warning {number}")
    assert process.registry.write()
    assert [each.event for each in known.errors("worker/w1")] == [
        f"error {number}" for number in range(MOST + 49, 49, -1)
    ]
    warned = [each.event for each in known.errors(with_warnings=True, limit=10_000) if each.severity == "WARNING"]
    assert warned == [f"warning {number}" for number in range(3 * MOST - 1, 2 * MOST - 1, -1)]
    assert known.errors("w2") == []


def test_every_key_expires(redis_url: str, client: redis.Redis, known: Processes) -> None:
    process = Process(redis_url)
    process.log(logging.ERROR, "error")
    process.log(logging.WARNING, "warning")
    known.wish(LevelWish(level="debug", seconds=60))
    assert process.registry.write()
    found = client.keys("*")
    assert len(found) == 5
    assert all(0 < client.ttl(key) <= 86_400 for key in found)


def test_without_redis_the_errors_wait_and_nothing_else_happens(redis_url: str, known: Processes) -> None:
    away = Process("redis://127.0.0.1:1/0")
    away.log(logging.ERROR, "first")
    with structlog.testing.capture_logs() as logged:
        assert not away.registry.write()
        assert not away.registry.write()
    assert [entry["event"] for entry in logged] == ["registry not written, redis is away"]
    for number in range(MOST - 1):
        away.log(logging.ERROR, f"error {number}")
    assert not away.registry.write()
    away.registry._client = redis_clients.client(redis_url, seconds=1, decodes=True)
    with structlog.testing.capture_logs() as logged:
        assert away.registry.write()
    assert [entry["event"] for entry in logged] == ["registry written again"]
    events = [each.event for each in known.errors("w1")]
    assert len(events) == MOST
    assert events[-1] == "first"


def test_after_redis_has_lost_all_a_process_is_there_again_at_the_level_of_its_settings(
    redis_url: str, known: Processes, client: redis.Redis
) -> None:
    process = Process(redis_url)
    known.wish(LevelWish(level="debug", seconds=60))
    assert process.registry.write()
    assert process.levels.level == "debug"
    client.flushall()
    assert known.all() == []
    assert process.registry.write()
    assert (process.levels.level, [each.is_there for each in known.all()]) == ("info", [True])


def test_an_error_is_in_redis_at_once_and_the_rest_when_the_process_ends(redis_url: str, known: Processes) -> None:
    process = Process(redis_url)
    process.registry.start()
    wait_until(known.all, seconds=5)
    process.log(logging.ERROR, "just before the end")
    wait_until(lambda: known.errors("w1"), seconds=2)
    process.log(logging.WARNING, "the last word")
    process.registry.stop()
    assert not known.all()[0].is_there
    assert "the last word" in {each.event for each in known.errors("w1", with_warnings=True)}


def test_an_operator_changes_the_level_of_a_process_and_of_a_connection(redis_url: str, known: Processes) -> None:
    process, other = Process(redis_url), Process(redis_url, "w2")
    known.wish(LevelWish(level="debug", process="w1", seconds=60))
    known.wish(LevelWish(level="debug", connection_id=7, seconds=60))
    assert process.registry.write()
    assert other.registry.write()
    assert (process.levels.level, process.levels.of_connections) == ("debug", {7: "debug"})
    assert (other.levels.level, other.levels.of_connections) == ("info", {7: "debug"})
    assert {(each.process, each.connection_id, each.level) for each in known.wishes()} == {
        ("w1", 0, "debug"),
        ("", 7, "debug"),
    }
    assert known.take_back(process="w1")
    assert not known.take_back(process="w1")
    assert process.registry.write()
    assert process.levels.level == "info"
    assert process.registry.write()
    assert other.registry.write()
    assert [each.log_levels for each in known.all()] == [{"7": "debug"}] * 2


def test_another_process_of_the_same_name_is_said_once_and_one_before_it_never(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Process(redis_url)
    monkeypatch.setattr("os.getpid", lambda: 7)
    second = Process(redis_url)
    with structlog.testing.capture_logs() as logged:
        assert first.registry.write()
        assert second.registry.write()
        assert second.registry.write()
    assert logged == []
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            assert first.registry.write()
            assert second.registry.write()
    assert [entry["event"] for entry in logged] == ["another process has this name, set PROCESS_NAME"] * 2


def test_so_many_levels_are_wished_for_at_a_time(known: Processes, client: redis.Redis) -> None:
    client.hset(keys.LOG_LEVELS, '["", 1]', json.dumps({"level": "debug", "until_ms": 1}))
    for number in range(MOST_WISHES):
        known.wish(LevelWish(level="debug", connection_id=100 + number, seconds=60))
    known.wish(LevelWish(level="info", connection_id=100, seconds=60))
    with pytest.raises(PermanentError):
        known.wish(LevelWish(level="debug", connection_id=1, seconds=60))
    assert client.hlen(keys.LOG_LEVELS) == MOST_WISHES


def test_what_another_release_has_written_breaks_nothing(redis_url: str, known: Processes, client: redis.Redis) -> None:
    client.set(keys.process("worker/w1"), "[1]")
    client.zadd(keys.PROCESSES, {"worker/w1": 0})
    client.rpush(keys.errors("worker/w1"), "no JSON", "[1]", '{"event_name": "fine", "of_later": {"a": 1}}')
    client.hset(keys.LOG_LEVELS, mapping={"x": "y", '["", 7]': "{}"})
    assert [each.event for each in known.errors()] == ["fine"]
    assert known.all()[0].is_there
    assert known.wishes() == []
    assert Process(redis_url, "w2").registry.write()


def test_an_entry_is_bounded_in_bytes() -> None:
    huge = "ä" * 100_000
    entry = {"event_name": huge, "timestamp": "t", "call": huge, "connection": huge, "exception": huge, "reason": huge}
    assert len(as_json(entry, most_bytes=2048).encode()) < 3_000


def test_redis_away_is_an_error_of_ours() -> None:
    known = Processes("redis://127.0.0.1:1/0")
    with pytest.raises(QueueUnavailable):
        known.all()
