"""Consumers that sleep until their queue is pushed to, on a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis

from shared import keys, messages, queues, wakes

pytestmark = pytest.mark.services


class Station:
    """A broker with one actor that notes when each message reached it."""

    def __init__(self, redis_url: str, *, threads: int = 4) -> None:
        self.broker = queues.broker(redis_url)
        self.arrived: list[float] = []
        self.release = threading.Event()
        self.release.set()
        dramatiq.actor(actor_name="tear_down", queue_name="teardown", broker=self.broker)(self._act)
        self.worker = dramatiq.Worker(self.broker, queues={"teardown"}, worker_threads=threads)

    def _act(self, number: int) -> None:
        self.release.wait(10)
        self.arrived.append(time.monotonic())

    def send(self, number: int = 0, *, delay_ms: int | None = None) -> None:
        message: messages.Message = dramatiq.Message(
            queue_name="teardown", actor_name="tear_down", args=(number,), kwargs={}, options={}
        )
        self.broker.enqueue(message, delay=delay_ms)

    def wait(self, count: int, *, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while len(self.arrived) < count:
            assert time.monotonic() < ends_at, f"{len(self.arrived)} of {count} messages arrived in {seconds} s"
            time.sleep(0.005)


@pytest.fixture
def station(redis_url: str) -> Iterator[Station]:
    made = Station(redis_url)
    made.worker.start()
    yield made
    made.release.set()
    made.worker.stop(timeout=5000)
    made.broker.close()


def test_an_idle_consumer_is_woken_long_before_it_would_look_by_itself(station: Station) -> None:
    station.send()
    station.wait(1, seconds=5)
    delays = []
    for number in range(2, 7):
        # Asleep again by now: it looked once after the last message, and found nothing.
        time.sleep(0.15)
        sent = time.monotonic()
        station.send()
        station.wait(number, seconds=5)
        delays.append(station.arrived[-1] - sent)
    assert sorted(delays)[2] < wakes.POLL_SECONDS / 4, delays


def test_a_message_whose_wake_up_was_lost_is_found_by_the_next_look(station: Station, redis_url: str) -> None:
    time.sleep(0.3)
    message: messages.Message = dramatiq.Message(
        queue_name="teardown", actor_name="tear_down", args=(0,), kwargs={}, options={"redis_message_id": "one"}
    )
    with redis.Redis.from_url(redis_url) as client:
        client.hset(f"{keys.NAMESPACE}:teardown.msgs", "one", message.encode())
        client.rpush(f"{keys.NAMESPACE}:teardown", "one")
    station.wait(1, seconds=wakes.POLL_SECONDS * 3)


def test_more_messages_than_are_prefetched_all_run(station: Station) -> None:
    station.release.clear()
    for number in range(100):
        station.send(number)
    station.release.set()
    station.wait(100, seconds=5)


def test_a_delayed_message_runs_when_it_is_due(station: Station) -> None:
    sent = time.monotonic()
    station.send(delay_ms=600)
    station.wait(1, seconds=5)
    assert 0.6 <= station.arrived[0] - sent < 0.6 + 2 * wakes.POLL_SECONDS


def test_a_flushed_redis_stops_no_consumer(station: Station, redis_url: str) -> None:
    station.send()
    station.wait(1, seconds=5)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    station.send()
    station.wait(2, seconds=10)


def test_what_dramatiq_announces_is_the_queue(redis_url: str) -> None:
    broker = queues.broker(redis_url)
    with redis.Redis.from_url(redis_url) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(keys.WAKE)
        heard.get_message(timeout=1)
        message: messages.Message = dramatiq.Message(
            queue_name="media", actor_name="start_media", args=(), kwargs={}, options={}
        )
        broker.enqueue(message)
        broker.enqueue(message, delay=100)
        told: list[Any] = []
        ends_at = time.monotonic() + 5
        while len(told) < 2 and time.monotonic() < ends_at:
            found = heard.get_message(timeout=0.1)
            told += [found["data"]] if found else []
    assert told == [b"media", b"media.DQ"]
    broker.close()
