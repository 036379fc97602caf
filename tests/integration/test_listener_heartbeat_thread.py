"""The heartbeats of a real listener while its event loop does not turn."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest

from listener import redis_store
from shared import keys
from tests.support.listener_harness import Scheduler, listening
from tests.support.scenes import play, until

pytestmark = pytest.mark.services


def test_heartbeats_go_on_while_the_event_loop_is_busy_and_end_when_it_has_stopped(scheduler: Scheduler) -> None:
    beats: list[float] = []
    done = threading.Event()

    def watch(listener_id: str) -> None:
        while not done.wait(0.02):
            beat = scheduler.redis.zscore(keys.LISTENERS, listener_id)
            if beat is not None and (not beats or beat != beats[-1]):
                beats.append(beat)

    async def scene() -> None:
        async with listening(scheduler.url, listener_timeout_seconds=1.5) as listener:
            await until(lambda: scheduler.redis.zscore(keys.LISTENERS, listener.id) is not None, "registered")
            watcher = threading.Thread(target=watch, args=(listener.id,))
            watcher.start()
            await asyncio.sleep(0.5)
            # The event loop does not turn.
            time.sleep(4)
            done.set()
            watcher.join()

    play(scene())
    longest = max(after - before for before, after in itertools.pairwise(beats))
    assert longest < 1500, "it does not count as dead while it is busy"
    assert beats[-1] - beats[0] < 3500, "after 1.5 s without a turn"


def test_a_lost_listener_is_not_made_known_by_its_thread(scheduler: Scheduler) -> None:
    store = redis_store.ThreadStore(scheduler.url, "one", seconds=1.0)
    store.beat("")
    assert scheduler.redis.zscore(keys.LISTENERS, "one") is None
    scheduler.redis.zadd(keys.LISTENERS, {"one": 7})
    store.beat("7:2")
    assert scheduler.redis.zscore(keys.LISTENERS, "one") > 7
    assert scheduler.redis.hgetall(keys.SUSPECTS) == {b"one": b"7:2"}
    store.beat("")
    assert scheduler.redis.hgetall(keys.SUSPECTS) == {}
