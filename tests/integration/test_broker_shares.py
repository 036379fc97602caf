"""A group whose work hangs keeps no place from the others: our broker on a real Redis, with threads that wait."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest

from shared.broker import fairness, redis_broker
from tests import stations
from tests.stations import Station

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


def send(station: Station, group: str, count: int) -> None:
    for number in range(count):
        station.send((group, number), group=group)


def of(station: Station, group: str) -> list[int]:
    return [number for whose, number in station.ran if whose == group]


def test_a_group_that_hangs_leaves_the_others_their_places(redis_url: str) -> None:
    station, does = Station(redis_url, threads=4), Hanging("dead")
    station.does = does
    with station.working():
        send(station, "dead", 50)
        stations.until(lambda: does.at_work["dead"] == 3, seconds=5, what="it has its share")
        send(station, "other", 50)
        station.wait(50)
        assert of(station, "other") == list(range(50))
        assert station.broker.count(["first"])["first"] == redis_broker.Count(waiting=47, delayed=0, held=3)
        does.gate.set()
        station.wait(100)
    assert does.most["dead"] == 3
    assert sorted(of(station, "dead")) == list(range(50)), "none was lost, none ran twice"


def test_in_company_a_group_has_no_more_than_an_even_share(redis_url: str) -> None:
    station, does = Station(redis_url, threads=4), Hanging("burst")
    with station.working():
        # Both are about before the burst: a group that nobody has heard of yet is no company.
        send(station, "other", 1)
        send(station, "burst", 1)
        station.wait(2)
        station.does = does
        send(station, "burst", 50)
        stations.until(lambda: does.at_work["burst"] == 2, seconds=5, what="it has its share")
        send(station, "other", 20)
        station.wait(22)
        assert station.broker.count(["first"])["first"] == redis_broker.Count(waiting=48, delayed=0, held=2)
        does.gate.set()
        station.wait(72)
    assert does.most["burst"] == 2


def test_many_slow_groups_together_leave_a_quick_one_its_places(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "SLOW_SECONDS", 0.05)
    slow = [f"slow {number}" for number in range(4)]
    station, does = Station(redis_url, threads=4), Hanging(*slow)
    station.does = does
    with station.working():
        # What is not known to be slow may take every place, once.
        for group in slow:
            send(station, group, 1)
        stations.until(lambda: does.at_work.total() == 4, seconds=5, what="all are at work")
        began = time.monotonic()
        stations.until(lambda: time.monotonic() - began > 0.1, seconds=5, what="all are slow")
        does.gate.set()
        station.wait(4)
        does.gate.clear()
        does.most.clear()
        for group in slow:
            send(station, group, 5)
        stations.until(lambda: does.at_work.total() == 3, seconds=5, what="the slow ones have their share together")
        send(station, "quick", 50)
        stations.until(lambda: len(of(station, "quick")) == 50, seconds=5, what="the quick ones are done")
        assert does.most["slow ones"] == 3
        does.gate.set()
        station.wait(4 + 20 + 50)


def test_who_was_passed_over_is_the_next_of_another_worker(redis_url: str) -> None:
    first, second = Station(redis_url, threads=2, name="first"), Station(redis_url, threads=2, name="second")
    hanging, free = Hanging("dead"), Hanging()
    first.does, second.does = hanging, free
    with first.working():
        send(first, "dead", 3)
        stations.until(lambda: hanging.at_work["dead"] == 1, seconds=5, what="it has its share of the first")
        with second.working():
            stations.until(lambda: len(second.ran) == 2, seconds=5, what="the second takes the others")
            hanging.gate.set()
            first.wait(1)
    assert sorted(of(first, "dead") + of(second, "dead")) == [0, 1, 2]


def test_whose_group_is_nobody_s_may_hold_every_place(redis_url: str) -> None:
    station, does = Station(redis_url, threads=4), Hanging("")
    station.does = does
    with station.working():
        send(station, "", 4)
        stations.until(lambda: does.at_work[""] == 4, seconds=5, what="all are at work")
        does.gate.set()
        station.wait(4)
