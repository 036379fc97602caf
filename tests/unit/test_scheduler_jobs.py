"""The scheduler's jobs: only while it leads, and a trouble that lasts is told once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from scheduler import main
from shared import errors


class Lease:
    """Leads, or does not."""

    held = True


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def troubles() -> list[Exception]:
    """What the job fails with, each once."""
    return []


@pytest.fixture
def tick(lease: Lease, troubles: list[Exception]) -> Callable[[], list[Any]]:
    """Runs the job once; what is logged."""

    def count_sheep() -> None:
        if troubles:
            raise troubles.pop(0)

    job = main._guarded(lambda: lease.held, count_sheep)

    def run() -> list[Any]:
        with capture_logs() as logged:
            job()
        return [(entry["event"], entry["job"]) for entry in logged]

    return run


def test_a_trouble_that_lasts_is_told_once_and_so_is_its_end(
    tick: Callable[[], list[Any]], troubles: list[Exception]
) -> None:
    troubles += [errors.QueueUnavailable("away")] * 3
    assert [tick() for _ in range(3)] == [[("not possible now, tried again on each tick", "count_sheep")], [], []]
    assert [tick(), tick()] == [[("possible again", "count_sheep")], []]


def test_a_fault_is_told_each_time(tick: Callable[[], list[Any]], troubles: list[Exception]) -> None:
    troubles += [KeyError("a fault of ours"), KeyError("a fault of ours")]
    assert [tick() for _ in range(3)] == [[("a job failed", "count_sheep")]] * 2 + [[]]


def test_nothing_is_done_by_who_does_not_lead(
    tick: Callable[[], list[Any]], lease: Lease, troubles: list[Exception]
) -> None:
    lease.held = False
    troubles.append(errors.QueueUnavailable("away"))
    assert tick() == []
    assert troubles
