"""Events on their way to Redis: pushed in order, buffered through an outage, resynced when they do not fit."""

from __future__ import annotations

import asyncio
from typing import Any

import dramatiq
import pytest

from devstack import servers
from shared import messages, queues
from tests.support import queued
from tests.support.listener_harness import (
    Asterisk,
    Scheduler,
    assignment,
    connected,
    listening,
    stasis_end,
    stasis_start,
)
from tests.support.scenes import play, until

pytestmark = pytest.mark.services


def test_a_real_dramatiq_worker_gets_the_pushed_messages(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, listening(scheduler.url) as listener:
            await connected(scheduler, listener, assignment(pbx, 7))
            for number in range(600):
                await pbx.send(stasis_start(f"caller-{number}"))
            await pbx.send({"type": "ChannelVarset", "application": "voiceai"})
            await pbx.send(stasis_end("caller-0"))
            await until(lambda: len(scheduler.pushed("teardown")) == 1, "pushed")

    play(scene())
    broker = queues.broker(scheduler.url, threads=1)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in messages.ACTORS}
    for name, queue in messages.ACTORS.items():
        # Bound now: the loop moves on.
        def note(_into: list[dict[str, Any]] = seen[name], **body: Any) -> None:
            _into.append(body)

        dramatiq.actor(actor_name=name, queue_name=queue, broker=broker)(note)
    worker = dramatiq.Worker(broker, worker_threads=1)
    worker.start()
    try:
        for queue in ("admission", "teardown", "resync"):
            broker.join(queue, timeout=10_000)
        worker.join()
    finally:
        worker.stop()
        broker.close()
    assert [body["event"]["channel"]["id"] for body in seen["caller_entered"]] == [f"caller-{n}" for n in range(600)]
    assert [body["event"]["type"] for body in seen["leg_ended"]] == ["StasisEnd"]
    assert seen["resync_connection"] == [
        {"v": 1, "connection_id": 7, "connection_version": 1, "reason": "connected", "full": True}
    ]
    first = seen["caller_entered"][0]
    assert (first["v"], first["connection_id"], first["connection_version"]) == (1, 7, 1)
    now_seconds, _microseconds = scheduler.redis.time()
    assert abs(first["at_ms"] / 1000 - now_seconds) < 15
    # No message is left in Redis.
    assert queued.size(scheduler.redis, "admission") == 0


def test_an_outage_of_redis_loses_nothing_that_fitted(killable_redis: servers.Redis) -> None:
    async def scene() -> None:
        scheduler = Scheduler(killable_redis.url)
        async with Asterisk() as pbx, Asterisk() as breaking, listening(scheduler.url) as listener:
            ours, theirs = assignment(pbx, 1), assignment(breaking, 2)
            await connected(scheduler, listener, ours, theirs)
            await asyncio.to_thread(killable_redis.kill)
            for number in range(300):
                await pbx.send(stasis_start(f"caller-{number}"))
            await asyncio.sleep(1.5)
            breaking.newest.transport.abort()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(killable_redis.start)
            await until(lambda: len(scheduler.callers()) == 300, "pushed once Redis is back")
            assert scheduler.callers() == [f"caller-{number}" for number in range(300)]
            # Redis came back empty: every socket is reported, none is closed, and none opened without an assignment.
            await until(lambda: scheduler.is_connected(listener.id, ours), "reported again")
            await asyncio.sleep(0.3)
            assert (len(pbx.asked), len(breaking.asked)) == (1, 1)
            assert not pbx.closed
            # The revision counts from 1 again, no higher than the applied one: nothing is closed.
            scheduler.assign(listener.id, theirs)
            await until(lambda: len(breaking.sockets) == 2, "opened on an assignment just read")
            assert (len(pbx.asked), pbx.closed) == (1, [])
            scheduler.assign(listener.id, theirs)
            await until(lambda: len(pbx.closed) == 1, "a later revision closes")
        scheduler.redis.close()

    play(scene())


def test_a_connection_whose_events_do_not_fit_is_resynced(killable_redis: servers.Redis) -> None:
    async def scene() -> None:
        scheduler = Scheduler(killable_redis.url)
        async with (
            Asterisk() as pbx,
            Asterisk() as other,
            listening(scheduler.url, listener_buffer=50, listener_buffer_share=10) as listener,
        ):
            ours, theirs = assignment(pbx, 1), assignment(other, 2)
            await connected(scheduler, listener, ours, theirs)
            await asyncio.to_thread(killable_redis.kill)
            for number in range(30):
                await pbx.send(stasis_start(f"caller-{number}"))
            await other.send(stasis_start("other"))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(killable_redis.start)
            await until(lambda: (1, "events lost") in scheduler.resyncs(), "resynced")
            assert set(scheduler.callers()) == {f"caller-{number}" for number in range(10)} | {"other"}
            assert scheduler.resyncs() == [(1, "events lost")]
            await until(lambda: scheduler.report(listener.id, ours) is not None, "reported again")
            report = scheduler.report(listener.id, ours)
            assert report is not None
            assert report.dropped == 20
        scheduler.redis.close()

    play(scene())


def test_a_connection_with_too_many_events_in_redis_is_resynced_and_the_others_go_on(scheduler: Scheduler) -> None:
    async def scene() -> None:
        async with Asterisk() as pbx, Asterisk() as other, listening(scheduler.url, group_messages=100) as listener:
            await connected(scheduler, listener, assignment(pbx, 1), assignment(other, 2))
            for number in range(130):
                await pbx.send(stasis_start(f"caller-{number}"))
            await until(lambda: (1, "events lost") in scheduler.resyncs(), "resynced")
            await other.send(stasis_start("other"))
            await until(lambda: "other" in scheduler.callers(), "pushed")
            assert set(scheduler.callers()) == {f"caller-{number}" for number in range(100)} | {"other"}
            assert {connection for connection, reason in scheduler.resyncs() if reason == "events lost"} == {1}

    play(scene())
