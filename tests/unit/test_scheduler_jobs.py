"""The scheduler's jobs: they run only while it leads, and a lasting error is logged once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from scheduler import main
from shared import errors


class Leader:
    """Leads, or does not."""

    is_leader = True


@pytest.fixture
def leader() -> Leader:
    return Leader()


@pytest.fixture
def failures() -> list[Exception]:
    """The errors that the job raises, each once."""
    return []


@pytest.fixture
def tick(leader: Leader, failures: list[Exception]) -> Callable[[], list[Any]]:
    """Run the job once. Returns what is logged."""

    def count_sheep() -> None:
        if failures:
            raise failures.pop(0)

    job = main._guarded(lambda: leader.is_leader, count_sheep)

    def run() -> list[Any]:
        with capture_logs() as logged:
            job()
        return [(entry["event"], entry["job"]) for entry in logged]

    return run


def test_a_lasting_failure_is_logged_once_and_so_is_the_recovery(
    tick: Callable[[], list[Any]], failures: list[Exception]
) -> None:
    failures += [errors.QueueUnavailable("away")] * 3
    assert [tick() for _ in range(3)] == [[("job failing, will retry", "count_sheep")], [], []]
    assert [tick(), tick()] == [[("job recovered", "count_sheep")], []]


def test_an_unexpected_error_is_logged_each_time(tick: Callable[[], list[Any]], failures: list[Exception]) -> None:
    failures += [KeyError("a fault of ours"), KeyError("a fault of ours")]
    assert [tick() for _ in range(3)] == [[("job failed", "count_sheep")]] * 2 + [[]]


def test_a_standby_runs_no_job(tick: Callable[[], list[Any]], leader: Leader, failures: list[Exception]) -> None:
    leader.is_leader = False
    failures.append(errors.QueueUnavailable("away"))
    assert tick() == []
    assert failures
