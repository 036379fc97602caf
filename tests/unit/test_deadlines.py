"""The bounds of a call fit each other."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shared.call.limits import Limits
from shared.call.steps import Step

SLOW = Limits(connect_seconds=30, read_seconds=60, queue_seconds=60, quota_seconds=20, database_seconds=5)
EVERY = pytest.mark.parametrize("limits", [Limits(), SLOW])


@EVERY
@pytest.mark.parametrize("step", list(Step))
def test_a_claim_covers_the_time_outs_of_its_step(limits: Limits, step: Step) -> None:
    request, database, quota = limits.request_seconds, limits.database_seconds, limits.quota_seconds
    needed = {
        Step.ADMISSION: quota + database,
        # Lock, insert and store, then commit.
        Step.RUNS: 2 * database,
        # Media leg and bridge are asked for side by side, answer and addChannel as well.
        Step.MEDIA: request + database,
        Step.BRIDGE: request + database,
        # Removed side by side, then looked for.
        Step.TEARDOWN: 2 * request + database,
        # Quota, then one request.
        Step.ORIGINATE: quota + request + database,
    }[step]
    assert limits.claim(step) >= timedelta(seconds=needed)


@EVERY
def test_a_request_takes_no_longer_than_connecting_and_reading(limits: Limits) -> None:
    assert limits.request_seconds == limits.connect_seconds + limits.read_seconds


@EVERY
def test_a_begun_attempt_is_not_overdue_while_its_worker_may_hold_it(limits: Limits) -> None:
    assert limits.attempt_wait() > limits.claim(Step.MEDIA)


def test_a_blocked_media_request_is_waited_for() -> None:
    # Asking for a media leg can block about 2 s, removing one that connects about 1 s (measured).
    assert Limits().read_seconds > 3


def test_teardown_pauses_double_up_to_a_bound() -> None:
    pauses = [Limits().teardown_pause(tries).total_seconds() for tries in (0, 1, 2, 5, 6, 7, 100, 100_000)]
    assert pauses == [1, 2, 4, 32, 60, 60, 60, 60]
    assert Limits(teardown_pause_seconds=5).teardown_pause(9).total_seconds() == 5


def test_a_call_is_over_within_a_minute_of_its_last_sign_of_life() -> None:
    limits = Limits()
    waits = (limits.max_step_retries + 1) * limits.queue_wait()
    assert waits + limits.attempts * limits.attempt_wait() + (
        limits.media_checks + 1
    ) * limits.media_wait() < timedelta(seconds=60)
