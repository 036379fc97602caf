"""Jobs at intervals: each in its own thread, by the monotonic clock."""

from __future__ import annotations

import threading
import time

import pytest

from scheduler.intervals import Intervals


def test_a_job_runs_at_its_interval_whatever_the_wall_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = time.time()
    monkeypatch.setattr(time, "time", lambda: wall)
    runs: list[float] = []
    three = threading.Event()

    def job() -> None:
        nonlocal wall
        runs.append(time.monotonic())
        # An hour back and forth with each run.
        wall += 3600 if len(runs) % 2 else -3600
        if len(runs) == 3:
            three.set()

    intervals = Intervals()
    began = time.monotonic()
    intervals.add(job, seconds=0.05)
    intervals.start()
    assert three.wait(5)
    intervals.stop(seconds=5)
    assert runs[0] - began >= 0.05
    assert runs[2] - runs[0] >= 0.09


def test_a_slow_job_delays_no_other_and_is_not_made_up_for() -> None:
    release, quick = threading.Event(), threading.Semaphore(0)
    slow_runs: list[float] = []

    def slow() -> None:
        slow_runs.append(time.monotonic())
        if len(slow_runs) == 1:
            release.wait(5)

    intervals = Intervals()
    intervals.add(slow, seconds=0.05, at_once=True)
    intervals.add(quick.release, seconds=0.01)
    intervals.start()
    for _ in range(20):
        assert quick.acquire(timeout=5)
    assert len(slow_runs) == 1
    released = time.monotonic()
    release.set()
    while len(slow_runs) < 4:
        time.sleep(0.005)
    intervals.stop(seconds=5)
    # One at once, then one an interval: the four that were missed are left out.
    assert slow_runs[3] - released >= 0.09


def test_stopping_waits_for_a_job_that_runs_but_not_for_ever() -> None:
    started, release = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        release.wait(5)

    intervals = Intervals()
    intervals.add(job, seconds=60, at_once=True)
    intervals.start()
    assert started.wait(5)
    began = time.monotonic()
    intervals.stop(seconds=0.1)
    assert 0.09 <= time.monotonic() - began < 2
    release.set()
    intervals.stop(seconds=5)
