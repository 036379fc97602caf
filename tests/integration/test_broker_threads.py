"""Which thread of a worker does what, on a real Redis: no thread is woken on the way of a message but its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared.broker import session_client
from shared.broker.deliveries import Delivery
from tests.support import worker_harness
from tests.support.worker_harness import WorkerHarness

pytestmark = pytest.mark.services


@contextlib.contextmanager
def idle_worker(redis_url: str, *, threads: int = 4) -> Iterator[WorkerHarness]:
    with WorkerHarness(redis_url, threads=threads).working() as harness:
        one = harness.broker.client
        worker_harness.until(lambda: worker_harness.with_credit(one), seconds=5, what="no credit")
        yield harness


def test_the_thread_that_reads_a_message_processes_it(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_by, run_by = [], []
    pushed = session_client._pushed

    def noted(data: bytes | int) -> Delivery | None:
        delivery = pushed(data)
        if delivery is not None:
            read_by.append(threading.current_thread().name)
        return delivery

    monkeypatch.setattr(session_client, "_pushed", noted)
    with idle_worker(redis_url) as harness:
        harness.does = lambda _what: run_by.append(threading.current_thread().name)
        for number in range(9):
            harness.send(number)
            harness.broker.join("first", timeout=5000)
    assert len(run_by) == 9
    assert read_by == run_by


def test_while_one_thread_works_another_listens(redis_url: str) -> None:
    with idle_worker(redis_url, threads=4) as harness:
        latch = worker_harness.Latch()
        harness.does = latch
        for number in range(3):
            harness.send(number, group=number)
            worker_harness.until(lambda n=number: len(harness.began) == n + 1, seconds=0.5, what="not begun")  # type: ignore[misc]
        latch.release()


def test_a_thread_acknowledges_what_it_has_finished(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To do so wakes no other thread."""
    ack, threads = session_client.SessionClient.ack, []

    def noted(*args: Any) -> bool:
        threads.append(threading.current_thread().name)
        return ack(*args)

    monkeypatch.setattr(session_client.SessionClient, "ack", noted)
    with idle_worker(redis_url) as harness:
        for number in range(5):
            harness.send(number)
            harness.broker.join("first", timeout=5000)
            worker_harness.until(lambda n=number: len(threads) == n + 1, seconds=5, what="not one each")  # type: ignore[misc]
    assert "broker poll" not in threads


def test_a_thread_does_not_wait_for_another_s_request_to_acknowledge(redis_url: str) -> None:
    with idle_worker(redis_url) as harness:
        current = harness.broker._session
        assert current is not None
        with current._requesting:
            for number in range(3):
                harness.send(number)
            harness.wait(3)
            worker_harness.until(lambda: len(current._outbox) == 3, seconds=5, what="not left to the poll thread")
            assert harness.broker.count(["first"])["first"].in_flight == 3
        harness.broker.join("first", timeout=5000)
