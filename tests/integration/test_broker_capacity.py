"""A group whose work hangs keeps no place from the others: our broker on a real Redis, with threads that wait."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest

from shared.broker import fairness, redis_broker
from tests.support import worker_harness
from tests.support.worker_harness import WorkerHarness

pytestmark = pytest.mark.services


class Hanging:
    """Work of these groups hangs until it is let go; counts who is at work, and the most there ever were."""

    def __init__(self, *groups: str) -> None:
        self.groups = set(groups)
        self.gate = threading.Event()
        self._lock = threading.Lock()
        self.at_work: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def __call__(self, what: Any) -> None:
        group = what[0]
        with self._lock:
            self.at_work[group] += 1
            self.most[group] = max(self.most[group], self.at_work[group])
            self.most["slow ones"] = max(self.most["slow ones"], sum(self.at_work[each] for each in self.groups))
        try:
            if group in self.groups:
                assert self.gate.wait(20), "nobody let it go"
        finally:
            with self._lock:
                self.at_work[group] -= 1


def send(harness: WorkerHarness, group: str, count: int) -> None:
    for number in range(count):
        harness.send((group, number), group=group)


def of(harness: WorkerHarness, group: str) -> list[int]:
    return [number for whose, number in harness.ran if whose == group]


def test_a_group_that_hangs_leaves_the_others_their_places(redis_url: str) -> None:
    harness, does = WorkerHarness(redis_url, threads=4), Hanging("dead")
    harness.does = does
    with harness.working():
        send(harness, "dead", 50)
        worker_harness.until(lambda: does.at_work["dead"] == 3, seconds=5, what="it has its share")
        send(harness, "other", 50)
        harness.wait(50)
        assert of(harness, "other") == list(range(50))
        assert harness.broker.count(["first"])["first"] == redis_broker.Count(waiting=47, delayed=0, in_flight=3)
        does.gate.set()
        harness.wait(100)
    assert does.most["dead"] == 3
    assert sorted(of(harness, "dead")) == list(range(50)), "none was lost, none ran twice"


def test_in_company_a_group_has_no_more_than_an_even_share(redis_url: str) -> None:
    harness, does = WorkerHarness(redis_url, threads=4), Hanging("burst")
    with harness.working():
        # Both are about before the burst: a group that nobody has heard of yet is no company.
        send(harness, "other", 1)
        send(harness, "burst", 1)
        harness.wait(2)
        harness.does = does
        send(harness, "burst", 50)
        worker_harness.until(lambda: does.at_work["burst"] == 2, seconds=5, what="it has its share")
        send(harness, "other", 20)
        harness.wait(22)
        assert harness.broker.count(["first"])["first"] == redis_broker.Count(waiting=48, delayed=0, in_flight=2)
        does.gate.set()
        harness.wait(72)
    assert does.most["burst"] == 2


def test_many_slow_groups_together_leave_a_quick_one_its_places(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "SLOW_SECONDS", 0.05)
    slow = [f"slow {number}" for number in range(4)]
    harness, does = WorkerHarness(redis_url, threads=4), Hanging(*slow)
    harness.does = does
    with harness.working():
        # What is not known to be slow may take every place, once.
        for group in slow:
            send(harness, group, 1)
        worker_harness.until(lambda: does.at_work.total() == 4, seconds=5, what="all are at work")
        began = time.monotonic()
        worker_harness.until(lambda: time.monotonic() - began > 0.1, seconds=5, what="all are slow")
        does.gate.set()
        harness.wait(4)
        does.gate.clear()
        does.most.clear()
        for group in slow:
            send(harness, group, 5)
        worker_harness.until(
            lambda: does.at_work.total() == 3, seconds=5, what="the slow ones have their share together"
        )
        send(harness, "quick", 50)
        worker_harness.until(lambda: len(of(harness, "quick")) == 50, seconds=5, what="the quick ones are done")
        assert does.most["slow ones"] == 3
        does.gate.set()
        harness.wait(4 + 20 + 50)


def test_who_was_passed_over_is_the_next_of_another_worker(redis_url: str) -> None:
    first, second = (
        WorkerHarness(redis_url, threads=2, name="first"),
        WorkerHarness(redis_url, threads=2, name="second"),
    )
    hanging, free = Hanging("dead"), Hanging()
    first.does, second.does = hanging, free
    with first.working():
        send(first, "dead", 3)
        worker_harness.until(lambda: hanging.at_work["dead"] == 1, seconds=5, what="it has its share of the first")
        with second.working():
            worker_harness.until(lambda: len(second.ran) == 2, seconds=5, what="the second takes the others")
            hanging.gate.set()
            first.wait(1)
    assert sorted(of(first, "dead") + of(second, "dead")) == [0, 1, 2]


def test_whose_group_is_nobody_s_may_hold_every_place(redis_url: str) -> None:
    harness, does = WorkerHarness(redis_url, threads=4), Hanging("")
    harness.does = does
    with harness.working():
        send(harness, "", 4)
        worker_harness.until(lambda: does.at_work[""] == 4, seconds=5, what="all are at work")
        does.gate.set()
        harness.wait(4)
