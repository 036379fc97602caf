"""The circuit breaker: every state and what may happen in it; no clock, no request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.asterisk import breaker
from shared.asterisk.breaker import Breaker, State

A, B = object(), object()


def opened(now: float = 100.0) -> Breaker:
    """One that has just opened."""
    made = Breaker()
    for _ in range(breaker.FAILURES):
        made = breaker.unanswered(made, A, "connection refused", now)
    return made


def half_open(now: float = 101.0) -> Breaker:
    """One that step A probes."""
    made = breaker.admit(opened(), A, now)
    assert made is not None
    return made


def test_it_opens_when_nothing_was_answered_so_often_in_a_row() -> None:
    made = Breaker()
    for _ in range(breaker.FAILURES - 1):
        made = breaker.unanswered(made, A, "no answer in time", 100.0)
        assert made.state is State.CLOSED
        assert breaker.admit(made, B, 100.0) is made
    made = breaker.unanswered(made, B, "connection refused", 100.0)
    assert (made.state, made.reason, made.failures) == (State.OPEN, "connection refused", breaker.FAILURES)


def test_an_answer_in_between_begins_the_count_anew() -> None:
    made = Breaker()
    for _ in range(10):
        for _ in range(breaker.FAILURES - 1):
            made = breaker.unanswered(made, A, "no answer in time", 100.0)
        made = breaker.answered(made)
    assert made == Breaker()


def test_while_it_is_open_nothing_is_sent_and_after_the_pause_one_step_s() -> None:
    assert breaker.admit(opened(), A, 100.9) is None
    probed = breaker.admit(opened(), A, 101.0)
    assert probed is not None
    assert probed.state is State.HALF_OPEN
    # All requests of that step, which go side by side; nobody else's.
    assert breaker.admit(probed, A, 101.0) is probed
    assert breaker.admit(probed, B, 101.0) is None


def test_an_answer_closes_it_whoever_had_asked() -> None:
    for state in (opened(), half_open()):
        assert breaker.answered(state) == Breaker()


def test_a_probe_that_fails_opens_it_for_twice_as_long_to_a_bound() -> None:
    made, now, pauses = opened(), 100.0, []
    for _ in range(5):
        now = made.retry_at
        pauses.append(made.pause_seconds)
        probed = breaker.admit(made, A, now)
        assert probed is not None
        made = breaker.unanswered(probed, A, "connection refused", now)
        assert made.state is State.OPEN
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize("state", [opened(), half_open()], ids=["open", "half-open"])
def test_what_was_sent_before_it_opened_says_nothing_new(state: Breaker) -> None:
    assert breaker.unanswered(state, B, "no answer in time", 101.5) is state


def test_a_probe_that_never_reports_is_followed_by_another() -> None:
    lost = half_open(101.0)
    assert breaker.admit(lost, B, 101.0 + breaker.PROBE_SECONDS - 0.1) is None
    again = breaker.admit(lost, B, 101.0 + breaker.PROBE_SECONDS)
    assert again is not None
    assert (again.state, again.prober) == (State.HALF_OPEN, B)


def test_it_begins_small_again_after_it_was_closed() -> None:
    long_open = replace(opened(), pause_seconds=breaker.LONGEST_PAUSE_SECONDS)
    made = breaker.answered(long_open)
    for _ in range(breaker.FAILURES):
        made = breaker.unanswered(made, A, "x", 200.0)
    assert made.retry_at == 200.0 + breaker.FIRST_PAUSE_SECONDS
