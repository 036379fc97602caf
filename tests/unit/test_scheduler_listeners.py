"""The scheduler's keys in Redis, on fakeredis: see `tests/support/scheduler_listeners.py` for what it cannot do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import fakeredis
import pytest
import redis

from scheduler.listeners import Listeners
from shared import errors, keys
from tests.support.scheduler_listeners import *  # noqa: F403 - the tests
from tests.support.scheduler_listeners import TIMEOUT_SECONDS, Monotonic, beat, written


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    # A server of its own: without one, all clients share their data.
    with contextlib.closing(fakeredis.FakeRedis(server=fakeredis.FakeServer())) as made:
        yield made


@pytest.mark.parametrize("ahead_seconds", [-3600.0, -2.0, 2.0, 3600.0])
def test_redis_s_clock_may_be_set_and_no_listener_is_lost_by_that(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, ahead_seconds: float
) -> None:
    """Set back, it would also keep a listener that is lost alive for as long."""
    monotonic, right = Monotonic(), time.time
    listeners = Listeners(client, timeout_seconds=TIMEOUT_SECONDS, monotonic=monotonic)
    beat(client, "alive")
    beat(client, "lost")
    assert listeners.snapshot(1).live.keys() == {"alive", "lost"}
    monkeypatch.setattr(time, "time", lambda: right() + ahead_seconds)
    monotonic.now += 0.25
    assert listeners.snapshot(1).live.keys() == {"alive", "lost"}
    for _ in range(10):
        beat(client, "alive")
        monotonic.now += TIMEOUT_SECONDS / 10
        seen = listeners.snapshot(1)
        assert "alive" in seen.live
    assert seen.silent == {"lost"}
    assert listeners.evict("lost", seen)


def test_a_leader_of_an_earlier_term_writes_nothing(client: redis.Redis) -> None:
    """It was frozen, and has been followed by another one when it wakes up."""
    frozen, leading = (Listeners(client, timeout_seconds=TIMEOUT_SECONDS) for _ in range(2))
    beat(client, "l1", seconds_ago=TIMEOUT_SECONDS + 1)
    beat(client, "l2")
    client.hset(keys.SUSPECTS, "l1", "1:1")
    seen = frozen.snapshot(1)
    frozen.write_assignments("l2", {"1:1": "old"})
    leading.snapshot(2)
    leading.write_assignments("l2", {"1:1": "new"})
    before = {key: client.dump(key) for key in client.scan_iter()}
    writes: list[Callable[[], object]] = [
        lambda: frozen.snapshot(1),
        lambda: frozen.evict("l1", seen),
        lambda: frozen.take_suspect("l1"),
        lambda: frozen.write_assignments("l2", {"1:1": "old"}),
        lambda: frozen.write_assignments("l2", {}),
    ]
    for write in writes:
        with pytest.raises(errors.LeadershipLost) as raised:
            write()
        assert raised.value.term == 2
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    assert written(client, "l2") == {b"1:1": b"new"}
    assert leading.evict("l1", leading.snapshot(2))
