"""A listener counts as dead when its process is gone, long before its heartbeats are too old: on a real Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from scheduler.listeners import Listeners
from shared import keys, queues
from tests.support.scheduler_listeners import TIMEOUT_SECONDS, Monotonic, beat

pytestmark = pytest.mark.services


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(queues.client(redis_url)) as made:
        yield made


class Watched:
    """The listeners as the scheduler sees them, every twelfth of the time-out."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._monotonic = Monotonic()
        self._listeners = Listeners(client, timeout_seconds=TIMEOUT_SECONDS, monotonic=self._monotonic)

    def seconds_until_lost(self, *, beats: bool = False) -> float:
        """Look until the listener counts as dead, for two time-outs at most; return after how long it did."""
        for look in range(24):
            if beats:
                beat(self._client, "l1", seconds_ago=-look / 1000)
            if self.look():
                return look * TIMEOUT_SECONDS / 12
        return 2 * TIMEOUT_SECONDS

    def look(self) -> bool:
        """Return whether the listener counts as dead."""
        silent = self._listeners.snapshot(1).silent
        self._monotonic.now += TIMEOUT_SECONDS / 12
        return "l1" in silent


@contextlib.contextmanager
def subscribed(client: redis.Redis, name: str) -> Iterator[None]:
    """Subscribe as a listener does that lives."""
    with client.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
        subscription.subscribe(keys.wakeups(name))
        while subscription.get_message(timeout=1.0) is None:
            pass
        yield


def test_a_listener_whose_process_was_killed_counts_as_dead_before_the_time_out(client: redis.Redis) -> None:
    """The kernel closes its sockets."""
    watched = Watched(client)
    with subscribed(client, "l1"):
        beat(client, "l1")
        assert not any(watched.look() for _ in range(3))
        beat(client, "l1", seconds_ago=-0.001)
    assert TIMEOUT_SECONDS * 3 / 8 <= watched.seconds_until_lost() <= TIMEOUT_SECONDS * 6 / 12


def test_a_listener_that_stalls_does_not(client: redis.Redis) -> None:
    watched = Watched(client)
    with subscribed(client, "l1"):
        beat(client, "l1")
        assert watched.seconds_until_lost() >= TIMEOUT_SECONDS


def test_nor_does_one_that_has_lost_its_subscription_and_sends_heartbeats(client: redis.Redis) -> None:
    """Its connections were cut, or it is subscribed at a server that is master no more."""
    watched = Watched(client)
    with subscribed(client, "l1"):
        beat(client, "l1")
        assert not any(watched.look() for _ in range(3))
    assert watched.seconds_until_lost(beats=True) == 2 * TIMEOUT_SECONDS


def test_nor_one_that_is_subscribed_again(client: redis.Redis) -> None:
    watched = Watched(client)
    with subscribed(client, "l1"):
        beat(client, "l1")
        assert not any(watched.look() for _ in range(2))
    assert not any(watched.look() for _ in range(2))
    with subscribed(client, "l1"):
        assert not any(watched.look() for _ in range(3))


def test_nor_one_that_has_never_subscribed(client: redis.Redis) -> None:
    """It is of v0.1.0-rc1."""
    watched = Watched(client)
    beat(client, "l1")
    assert watched.seconds_until_lost() >= TIMEOUT_SECONDS
