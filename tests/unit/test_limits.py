"""The bounds of a call agree with each other."""

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
        # Media leg and bridge are requested in parallel, answer and addChannel as well.
        Step.MEDIA: request + database,
        Step.BRIDGE: request + database,
        # Removed in parallel, then looked for.
        Step.TEARDOWN: 2 * request + database,
        # Quota, then one request.
        Step.ORIGINATE: quota + request + database,
    }[step]
    assert limits.claim(step) >= timedelta(seconds=needed)


def test_how_long_each_step_may_claim_a_call() -> None:
    assert {step: Limits().claim(step).total_seconds() for step in Step} == {
        Step.ADMISSION: 7,
        Step.RUNS: 9,
        Step.MEDIA: 8,
        Step.BRIDGE: 8,
        Step.TEARDOWN: 14,
        Step.ORIGINATE: 13,
    }


@EVERY
def test_a_request_takes_no_longer_than_connecting_and_reading(limits: Limits) -> None:
    assert limits.request_seconds == limits.connect_seconds + limits.read_seconds


@EVERY
def test_a_begun_attempt_is_not_overdue_while_its_worker_may_claim_it(limits: Limits) -> None:
    assert limits.attempt_wait() > limits.claim(Step.MEDIA)


def test_a_blocked_media_request_is_waited_for() -> None:
    # Requesting a media leg waits while another one connects: 2 s with four attempts of 0.5 s (measured). Removing one
    # that connects takes about 1 s.
    assert Limits().read_seconds > 3


def test_teardown_pauses_double_up_to_a_bound() -> None:
    pauses = [Limits().teardown_pause(tries).total_seconds() for tries in (0, 1, 2, 5, 6, 7, 100, 100_000)]
    assert pauses == [1, 2, 4, 32, 60, 60, 60, 60]
    assert Limits(teardown_pause_seconds=5).teardown_pause(9).total_seconds() == 5


def test_a_call_is_over_within_a_minute_of_its_last_sign_of_life() -> None:
    limits = Limits()
    waits = (limits.max_step_retries + 1) * limits.queue_wait()
    checks = (limits.media_checks + 1) * limits.media_wait()
    unknown = limits.unknown_attempts * limits.attempt_wait()
    assert waits + limits.reach_wait() + unknown + checks < timedelta(seconds=60)


def test_a_caller_whose_agent_is_not_reached_waits_for_twenty_seconds_at_most() -> None:
    limits = Limits()
    # The last attempt begins, and its leg neither comes up nor ends.
    checks = (limits.media_checks + 1) * limits.media_wait()
    assert limits.reach_wait() + checks <= timedelta(seconds=20)


def test_an_agent_that_is_not_reached_gets_all_its_attempts_in_time() -> None:
    """Each may take the second that the recommended websocket_client.conf gives it."""
    limits = Limits()
    pauses = sum((limits.reach_pause(attempt) for attempt in range(1, limits.attempts)), timedelta())
    assert pauses + (limits.attempts - 1) * timedelta(seconds=1) < limits.reach_wait()
