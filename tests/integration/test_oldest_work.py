"""For how long each worker has been at its oldest message, as `arictl doctor` shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from shared import keys
from shared.operator.checks import process_checks
from shared.operator.checks.findings import Finding, Level

pytestmark = pytest.mark.services

SESSIONS = ("one/1f/set-up/a", "one/1f/teardown/b", "two/2f/set-up/c", "dead/3f/set-up/d")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(redis.Redis.from_url(redis_url)) as made:
        yield made


@pytest.mark.parametrize(
    ("seconds", "level", "shown"),
    [
        ((2, 8, 20, 4000), Level.OK, [("two 2", "(set-up)"), ("one", "(teardown)")]),
        ((2, 62, 20, 4000), Level.WARNING, [("one 6", "(teardown)"), ("two 2", "(set-up)")]),
    ],
)
def test_the_oldest_message_of_each_worker_that_lives_is_shown(
    client: redis.Redis, redis_url: str, seconds: tuple[int, ...], level: Level, shown: list[tuple[str, str]]
) -> None:
    now = int(client.time()[0]) * 1000
    client.zadd(f"{keys.NAMESPACE}:sessions", dict.fromkeys(SESSIONS[:-1], now + 60_000) | {SESSIONS[-1]: now - 90_000})
    for name, ago in zip(SESSIONS, seconds, strict=True):
        client.hset(f"{keys.NAMESPACE}:oldest", name, str(now - ago * 1000))
    finding = found(redis_url)
    assert finding.level is level
    parts = finding.seen.split(", ")
    for part, (begins, ends) in zip(parts, shown, strict=True):
        assert (part.startswith(begins), part.endswith(ends)) == (True, True), finding.seen


def test_workers_without_a_message_are_shown(client: redis.Redis, redis_url: str) -> None:
    client.zadd(f"{keys.NAMESPACE}:sessions", {SESSIONS[0]: int(client.time()[0]) * 1000 + 60_000})
    assert found(redis_url).seen == "no worker has a message"


def found(redis_url: str) -> Finding:
    findings = process_checks.check_redis(redis_url, listener_timeout_seconds=2.0, asterisk_sessions=60)
    (finding,) = [finding for finding in findings if finding.what == "oldest work"]
    return finding
