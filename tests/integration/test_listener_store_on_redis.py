"""The listener's store and heartbeats on a real Redis: their contracts, and what fakeredis cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from devstack import processes, servers
from listener import redis_store, tasks
from scheduler.listeners import Listeners
from shared import assignments, errors, keys
from tests.support import queued
from tests.support.heartbeats_contract import HeartbeatsContract, Scene, beating
from tests.support.redis_store_contract import TIMEOUT_SECONDS, A, RedisClients, RedisStoreContract, message
from tests.support.scenes import play, until

pytestmark = pytest.mark.services


def clients_of(url: str, client: redis.Redis) -> RedisClients:
    nowhere = f"redis://127.0.0.1:{processes.free_port()}/0"
    return RedisClients(
        client=client,
        connect=functools.partial(redis_store.client, url),
        connect_nowhere=functools.partial(redis_store.client, nowhere),
    )


@pytest.fixture
def redis_clients(redis_url: str) -> Iterator[RedisClients]:
    """Clients of a real Redis; of another that is not there."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        yield clients_of(redis_url, client)


@pytest.fixture
def killable_clients(killable_redis: servers.Redis) -> Iterator[RedisClients]:
    """Clients of a Redis of this test only."""
    with contextlib.closing(redis.Redis.from_url(killable_redis.url)) as client:
        yield clients_of(killable_redis.url, client)


class TestRedisStore(RedisStoreContract):
    """On a real Redis."""


class TestHeartbeats(HeartbeatsContract):
    """On a real Redis."""


def test_a_restarted_redis_is_used_again_by_the_next_operation(
    killable_redis: servers.Redis, killable_clients: RedisClients
) -> None:
    async def scene() -> None:
        async with killable_clients.store() as store:
            await store.beat([], [])
            await store.push([message(1)])
            await asyncio.to_thread(killable_redis.kill)
            with pytest.raises(errors.QueueUnavailable):
                await store.beat([], [])
            await asyncio.to_thread(killable_redis.start)
            assert (await store.beat([], [])).unknown
            await store.push([message(2)])
        assert queued.size(killable_clients.client, "admission") == 1

    play(scene())


def test_a_redis_that_hangs_fails_an_operation_in_bounded_time(
    killable_clients: RedisClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.broker.redis_clients.ANSWER_SECONDS", 0.2)
    pid = int(killable_clients.client.info("server")["process_id"])

    async def scene() -> None:
        async with killable_clients.store() as store:
            await store.beat([], [])
            os.kill(pid, signal.SIGSTOP)
            began = time.monotonic()
            try:
                with pytest.raises(errors.QueueUnavailable):
                    await store.beat([], [])
                assert time.monotonic() - began < TIMEOUT_SECONDS
            finally:
                os.kill(pid, signal.SIGCONT)
            await store.beat([], [])

    play(scene())


def test_a_full_redis_refuses_a_push_but_not_the_end_of_a_listener(killable_clients: RedisClients) -> None:
    async def scene() -> None:
        client = killable_clients.client
        async with killable_clients.store() as store:
            await store.beat([], [])
            await store.push([message(1)])
            client.config_set("maxmemory", 1)
            with pytest.raises(errors.QueueUnavailable, match="maxmemory"):
                await store.push([message(2)])
            assert await store.deregister() == 0
            assert client.zcard(keys.LISTENERS) == 0
            client.config_set("maxmemory", 0)
            await store.push([message(1), message(2)])
        assert queued.size(client, "admission") == 2

    play(scene())


def test_a_heartbeat_counts_by_redis_s_clock_not_by_the_listener_s(
    redis_clients: RedisClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)

    async def scene() -> None:
        async with redis_clients.store() as store:
            reply = await store.beat([], [])
            assert redis_clients.now_ms() - 1000 < reply.redis_ms <= redis_clients.now_ms()

    play(scene())


def test_a_listener_beats_at_once_when_its_assignments_have_changed(redis_clients: RedisClients) -> None:
    async def scene() -> None:
        async with beating(redis_clients, interval_seconds=60.0) as listener, serving(listener):
            await until(lambda: subscriptions(redis_clients.client) == 1, "subscribed")
            await until(lambda: redis_clients.client.zscore(keys.LISTENERS, "one") is not None, "heard")
            scheduler = Listeners(redis_clients.client, timeout_seconds=TIMEOUT_SECONDS)
            await asyncio.to_thread(scheduler.snapshot, 1)
            await asyncio.to_thread(scheduler.write_assignments, "one", {A.key: assignments.encode(A)})
            await until(lambda: listener.scheduler.is_connected("one", A), "connected")

    play(scene())


def test_a_subscription_that_was_cut_is_made_anew(redis_clients: RedisClients) -> None:
    async def scene() -> None:
        async with beating(redis_clients) as listener, serving(listener):
            for _ in range(2):
                await until(lambda: subscriptions(redis_clients.client) == 1, "subscribed")
                redis_clients.client.client_kill_filter(_type="pubsub")

    play(scene())


def test_a_subscription_at_a_server_that_is_master_no_more_is_made_anew(redis_clients: RedisClients) -> None:
    """No heartbeat finds it there."""

    async def scene() -> None:
        async with redis_clients.store() as store:
            wakeups = store.wakeups()
            await anext(wakeups)
            assert subscriptions(redis_clients.client) == 1
            store._doubt_subscription(0)
            await store.beat([], [])
            store._doubt_subscription(0)
            store._doubt_subscription(0)
            with pytest.raises(StopAsyncIteration):
                await anext(wakeups)
            await until(lambda: subscriptions(redis_clients.client) == 0, "ended")

    play(scene())


@contextlib.asynccontextmanager
async def serving(listener: Scene) -> AsyncIterator[None]:
    """Run the heartbeats and the wake-ups of a listener."""
    running = [asyncio.create_task(run()) for run in (listener.heartbeats.run, listener.heartbeats.wake)]
    try:
        yield
    finally:
        await tasks.end(running, patience_seconds=1.0)


def subscriptions(client: redis.Redis) -> int:
    """Return how many are subscribed to the wake-ups of listener `one`."""
    ((_, number),) = client.pubsub_numsub(keys.wakeups("one"))
    return int(number)
