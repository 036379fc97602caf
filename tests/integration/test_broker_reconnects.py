"""A Redis that is master no more and still answers, a subscription that has died silently: the broker connects anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from devstack import tcp_proxy
from shared import queues
from shared.broker import session_client
from shared.process import redis_clock
from tests.support import failover, worker_harness
from tests.support.worker_harness import WorkerHarness

pytestmark = pytest.mark.services


def test_a_worker_leaves_an_old_master_that_refuses_its_requests(stack_folder: Path) -> None:
    """The wake-up thread as well, whose subscription is refused nothing."""
    with failover.servers_in(stack_folder) as pair, WorkerHarness(pair.url).working() as harness:
        worker_harness.until(lambda: worker_harness.with_credit(pair.old), seconds=5, what="no credit")
        harness.send("before")
        harness.wait(1)
        pair.happen()
        outside = WorkerHarness(pair.new_url)
        outside.send("waits at the new master")
        harness.wait(2)
        worker_harness.until(
            lambda: worker_harness.subscribed(pair.new) == 1, seconds=5, what="not subscribed at the new master"
        )
        outside.broker.close()


def test_a_worker_whose_requests_have_moved_does_not_stay_subscribed_to_the_old_master(stack_folder: Path) -> None:
    """No request of its session has failed since it subscribed: its client had met the refusal before, or elsewhere."""
    with failover.servers_in(stack_folder) as pair, WorkerHarness(pair.url).working() as harness:
        worker_harness.until(lambda: worker_harness.with_credit(pair.old), seconds=5, what="no credit")
        pair.move()
        connections: Any = harness.broker.client.connection_pool.connection_class
        connections.fitness.renew()
        worker_harness.until(
            lambda: worker_harness.subscribed(pair.new) == 1, seconds=5, what="not subscribed at the new master"
        )
        worker_harness.until(lambda: worker_harness.with_credit(pair.new), seconds=5, what="no credit there")


def test_a_producer_leaves_an_old_master_that_refuses_its_messages(stack_folder: Path) -> None:
    with failover.servers_in(stack_folder) as pair:
        harness = WorkerHarness(pair.url)
        harness.send("connected")
        pair.happen()
        harness.send("it")
        assert harness.broker.count(["first"])["first"].waiting == 1
        harness.broker.close()


def test_a_clock_leaves_an_old_master_which_refuses_it_nothing(stack_folder: Path) -> None:
    now = [0.0]
    with failover.servers_in(stack_folder) as pair, queues.client(pair.url) as client:
        clock = redis_clock.PollingRedisClock(client, lambda: now[0])
        assert clock.now_ms() is not None
        pair.happen()
        now[0] = 10.0
        clock.now_ms()
        asked: Any = pair.new.info("commandstats")
        assert asked["cmdstat_time"]["calls"] == 1


def test_a_subscription_that_has_died_silently_is_made_anew(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis believes in it. As long as no other is confirmed, nothing is pushed, so nothing more is lost."""
    redeliver, found = session_client.SessionClient.redeliver, []

    def noted(requests: session_client.SessionClient, known: Any) -> session_client.Difference:
        difference = redeliver(requests, known)
        found.extend(difference.lost)
        return difference

    monkeypatch.setattr(session_client.SessionClient, "redeliver", noted)
    with (
        tcp_proxy.TcpProxy(redis_url) as proxy,
        WorkerHarness(proxy.url).working() as harness,
        redis.Redis.from_url(redis_url) as client,
    ):

        def credit() -> Any:
            return client.hvals(f"{worker_harness.NAMESPACE}:credits")

        worker_harness.until(lambda: credit() == [b"3"], seconds=5, what="no credit")
        outside = WorkerHarness(redis_url)
        proxy.silences = lambda request: b"SUBSCRIBE" in request
        for number in range(2):
            outside.send(number)
            harness.wait(number + 1)
        worker_harness.until(lambda: credit() == [b"0"], seconds=5, what="a credit without a subscription")
        lost = len(found)
        outside.send(2)
        harness.wait(3)
        proxy.silences = lambda request: False
        worker_harness.until(lambda: credit() == [b"3"], seconds=5, what="no credit again")
        outside.send(3)
        harness.wait(4)
        assert len(found) == lost
        outside.broker.close()
