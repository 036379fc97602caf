"""A group that hangs leaves the other groups their capacity: the broker on a real Redis, with blocked threads."""

from __future__ import annotations

import contextlib
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
    """Work of these groups blocks until the event is set. Counts the work running, now and at most, by group."""

    def __init__(self, *groups: str) -> None:
        self.groups = set(groups)
        self.resumed = threading.Event()
        self._lock = threading.Lock()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def __call__(self, what: Any) -> None:
        group = what[0]
        with self._lock:
            self.running[group] += 1
            self.most[group] = max(self.most[group], self.running[group])
            self.most["all hanging"] = max(self.most["all hanging"], sum(self.running[each] for each in self.groups))
        try:
            if group in self.groups:
                assert self.resumed.wait(20), "the test did not resume it"
        finally:
            with self._lock:
                self.running[group] -= 1


def send(harness: WorkerHarness, group: str, count: int) -> None:
    for number in range(count):
        harness.send((group, number), group=group)


def of(harness: WorkerHarness, group: str) -> list[int]:
    return [number for owner, number in harness.ran if owner == group]


def until_counted(harness: WorkerHarness, expected: redis_broker.Count) -> None:
    """Wait for it: a message that has run is in flight until it is acknowledged."""
    worker_harness.until(
        lambda: harness.broker.count(["first"])["first"] == expected, seconds=5, what=f"the queue is not {expected}"
    )


def test_a_group_that_hangs_leaves_the_others_their_capacity(redis_url: str) -> None:
    harness, does = WorkerHarness(redis_url, threads=4), Hanging("dead")
    harness.does = does
    with harness.working():
        send(harness, "dead", 50)
        worker_harness.until(lambda: does.running["dead"] == 3, seconds=5, what="not at its limit")
        send(harness, "other", 50)
        harness.wait(50)
        assert of(harness, "other") == list(range(50))
        until_counted(harness, redis_broker.Count(waiting=47, delayed=0, in_flight=3))
        does.resumed.set()
        harness.wait(100)
    assert does.most["dead"] == 3
    assert sorted(of(harness, "dead")) == list(range(50)), "none was lost, none ran twice"


def test_while_other_groups_are_active_a_group_has_no_more_than_an_equal_share(redis_url: str) -> None:
    harness, does = WorkerHarness(redis_url, threads=4), Hanging("burst")
    with harness.working():
        # Both are active before the burst: a group that has sent nothing yet does not count.
        send(harness, "other", 1)
        send(harness, "burst", 1)
        harness.wait(2)
        harness.does = does
        send(harness, "burst", 50)
        worker_harness.until(lambda: does.running["burst"] == 2, seconds=5, what="not at its limit")
        send(harness, "other", 20)
        harness.wait(22)
        until_counted(harness, redis_broker.Count(waiting=48, delayed=0, in_flight=2))
        does.resumed.set()
        harness.wait(72)
    assert does.most["burst"] == 2


def test_many_slow_groups_together_leave_a_quick_one_its_capacity(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "SLOW_SECONDS", 0.05)
    slow = [f"slow {number}" for number in range(4)]
    harness, does = WorkerHarness(redis_url, threads=4), Hanging(*slow)
    harness.does = does
    with harness.working():
        # Groups not yet known to be slow may use the whole capacity, once.
        for group in slow:
            send(harness, group, 1)
        worker_harness.until(lambda: does.running.total() == 4, seconds=5, what="not all are running")
        began = time.monotonic()
        worker_harness.until(lambda: time.monotonic() - began > 0.1, seconds=5, what="not all are slow")
        does.resumed.set()
        harness.wait(4)
        does.resumed.clear()
        does.most.clear()
        for group in slow:
            send(harness, group, 5)
        worker_harness.until(
            lambda: does.running.total() == 3, seconds=5, what="the slow groups are not at their limit"
        )
        send(harness, "quick", 50)
        worker_harness.until(lambda: len(of(harness, "quick")) == 50, seconds=5, what="the quick messages did not run")
        assert does.most["all hanging"] == 3
        does.resumed.set()
        harness.wait(4 + 20 + 50)


def test_a_group_skipped_by_one_worker_is_next_for_another(redis_url: str) -> None:
    first, second = (
        WorkerHarness(redis_url, threads=2, name="first"),
        WorkerHarness(redis_url, threads=2, name="second"),
    )
    hanging, free = Hanging("dead"), Hanging()
    first.does, second.does = hanging, free
    with first.working():
        send(first, "dead", 3)
        worker_harness.until(
            lambda: hanging.running["dead"] == 1, seconds=5, what="not at its limit in the first worker"
        )
        with second.working():
            worker_harness.until(
                lambda: len(second.ran) == 2, seconds=5, what="the second worker did not run the others"
            )
            hanging.resumed.set()
            first.wait(1)
    assert sorted(of(first, "dead") + of(second, "dead")) == [0, 1, 2]


def test_messages_without_a_group_may_use_the_whole_capacity(redis_url: str) -> None:
    harness, does = WorkerHarness(redis_url, threads=4), Hanging("")
    harness.does = does
    with harness.working():
        send(harness, "", 4)
        worker_harness.until(lambda: does.running[""] == 4, seconds=5, what="not all are running")
        does.resumed.set()
        harness.wait(4)


def test_a_group_that_hangs_leaves_the_others_their_affinity(redis_url: str) -> None:
    """No worker has a credit then."""
    does = Hanging("dead")
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(WorkerHarness(redis_url, name=name).working()) for name in ("one", "other"))
        stack.callback(does.resumed.set)
        one.does = other.does = does
        send(one, "dead", 6)
        worker_harness.until(lambda: does.running["dead"] == 6, seconds=5, what="not at its limits")
        for number in range(10):
            # Each has been idle longest in turn.
            worker_harness.until(lambda: worker_harness.idle(one.broker.client) == 2, seconds=5, what="not idle")
            one.send(("quick", number), group="quick", affinity=one.broker.tag)
            worker_harness.until(
                lambda n=number: len(of(one, "quick")) + len(of(other, "quick")) == n + 1,  # type: ignore[misc]
                seconds=5,
                what="not run",
            )
        assert of(one, "quick") == list(range(10))
