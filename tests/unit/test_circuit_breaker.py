"""The circuit breaker: every state and what may happen in it; and one in many threads' hands."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from shared import errors
from shared.asterisk import circuit_breaker
from shared.asterisk.circuit_breaker import Circuit, CircuitBreaker, State

A, B = object(), object()


def opened(now: float = 100.0) -> Circuit:
    """A circuit that has just opened."""
    made = Circuit()
    for _ in range(circuit_breaker.FAILURES):
        made = circuit_breaker.unanswered(made, A, "connection refused", now)
    return made


def half_open(now: float = 101.0) -> Circuit:
    """A circuit that step A probes."""
    made = circuit_breaker.allow(opened(), A, now)
    assert made is not None
    return made


def test_it_opens_when_nothing_was_answered_so_often_in_a_row() -> None:
    made = Circuit()
    for _ in range(circuit_breaker.FAILURES - 1):
        made = circuit_breaker.unanswered(made, A, "no answer in time", 100.0)
        assert made.state is State.CLOSED
        assert circuit_breaker.allow(made, B, 100.0) is made
    made = circuit_breaker.unanswered(made, B, "connection refused", 100.0)
    assert (made.state, made.reason, made.failures) == (State.OPEN, "connection refused", circuit_breaker.FAILURES)


def test_an_answer_in_between_begins_the_count_again() -> None:
    made = Circuit()
    for _ in range(10):
        for _ in range(circuit_breaker.FAILURES - 1):
            made = circuit_breaker.unanswered(made, A, "no answer in time", 100.0)
        made = circuit_breaker.answered(made)
    assert made == Circuit()


def test_while_it_is_open_nothing_is_sent_and_after_the_pause_one_step_s() -> None:
    assert circuit_breaker.allow(opened(), A, 100.9) is None
    probed = circuit_breaker.allow(opened(), A, 101.0)
    assert probed is not None
    assert probed.state is State.HALF_OPEN
    # All requests of that step, which run in parallel; no other step's.
    assert circuit_breaker.allow(probed, A, 101.0) is probed
    assert circuit_breaker.allow(probed, B, 101.0) is None


def test_an_answer_closes_it_whichever_step_had_asked() -> None:
    for state in (opened(), half_open()):
        assert circuit_breaker.answered(state) == Circuit()


def test_a_probe_that_fails_opens_it_for_twice_as_long_to_a_bound() -> None:
    made, now, pauses = opened(), 100.0, []
    for _ in range(5):
        now = made.retry_at
        pauses.append(made.pause_seconds)
        probed = circuit_breaker.allow(made, A, now)
        assert probed is not None
        made = circuit_breaker.unanswered(probed, A, "connection refused", now)
        assert made.state is State.OPEN
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize("state", [opened(), half_open()], ids=["open", "half-open"])
def test_what_was_sent_before_it_opened_says_nothing_new(state: Circuit) -> None:
    assert circuit_breaker.unanswered(state, B, "no answer in time", 101.5) is state


def test_a_probe_that_never_reports_is_followed_by_another() -> None:
    lost = half_open(101.0)
    assert circuit_breaker.allow(lost, B, 101.0 + circuit_breaker.PROBE_SECONDS - 0.1) is None
    again = circuit_breaker.allow(lost, B, 101.0 + circuit_breaker.PROBE_SECONDS)
    assert again is not None
    assert (again.state, again.prober) == (State.HALF_OPEN, B)


def test_it_begins_small_again_after_it_was_closed() -> None:
    long_open = replace(opened(), pause_seconds=circuit_breaker.LONGEST_PAUSE_SECONDS)
    made = circuit_breaker.answered(long_open)
    for _ in range(circuit_breaker.FAILURES):
        made = circuit_breaker.unanswered(made, A, "x", 200.0)
    assert made.retry_at == 200.0 + circuit_breaker.FIRST_PAUSE_SECONDS


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Changes:
    def __init__(self) -> None:
        self.seen: list[tuple[bool, str]] = []

    def __call__(self, opened: bool, reason: str) -> None:
        self.seen.append((opened, reason))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
def breaker(clock: Clock, changes: Changes) -> CircuitBreaker:
    return CircuitBreaker(changes, clock)


def fail(breaker: CircuitBreaker, times: int = circuit_breaker.FAILURES) -> None:
    for _ in range(times):
        step = object()
        breaker.allow(step)
        breaker.unanswered(step, "connection refused")


def test_while_it_is_open_a_request_fails_at_once_and_cannot_have_acted(breaker: CircuitBreaker) -> None:
    fail(breaker)
    assert breaker.state is State.OPEN
    for ask in (breaker.allow, breaker.check):
        with pytest.raises(errors.AsteriskUnreachable) as caught:
            ask(object())
        assert str(caught.value) == "circuit breaker open after 5 consecutive failures; last: connection refused"
        assert not caught.value.may_have_acted


def test_of_many_threads_one_probes(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += circuit_breaker.FIRST_PAUSE_SECONDS
    let_through: list[object] = []
    together = threading.Barrier(20)

    def ask() -> None:
        step = object()
        together.wait(5)
        try:
            breaker.allow(step)
        except errors.AsteriskUnreachable:
            return
        let_through.append(step)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_through) == 1
    # Its other requests, which run in parallel, are let through as well.
    breaker.allow(let_through[0])
    breaker.answered()
    breaker.allow(object())


def test_a_look_does_not_begin_the_probe(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += circuit_breaker.FIRST_PAUSE_SECONDS
    breaker.check(object())
    breaker.allow(object())
    with pytest.raises(errors.AsteriskUnreachable):
        breaker.check(object())


def test_opening_and_closing_are_reported_and_at_intervals_that_it_stays_open(
    breaker: CircuitBreaker, clock: Clock, changes: Changes
) -> None:
    breaker.answered()
    fail(breaker, 4)
    breaker.answered()
    assert changes.seen == []
    fail(breaker)
    assert changes.seen == [(True, "connection refused")]
    begun = clock.now
    while clock.now < begun + 2.5 * circuit_breaker.REPEAT_SECONDS:
        clock.now += circuit_breaker.LONGEST_PAUSE_SECONDS
        fail(breaker, 1)
    assert changes.seen == [(True, "connection refused")] * 3
    breaker.answered()
    breaker.answered()
    assert changes.seen[3:] == [(False, "it answers again")]


def test_a_breaker_that_is_always_closed_never_opens() -> None:
    breaker = circuit_breaker.AlwaysClosed()
    fail(breaker, 100)
    assert breaker.state is State.CLOSED
