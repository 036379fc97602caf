"""A breaker in many threads' hands: one probe at a time, and its changes are told once."""

from __future__ import annotations

import threading

import pytest

from shared import errors
from shared.asterisk import breaker, circuit_breaker
from shared.asterisk.breaker import State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Told:
    def __init__(self) -> None:
        self.changes: list[tuple[bool, str]] = []

    def __call__(self, opened: bool, reason: str) -> None:
        self.changes.append((opened, reason))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def circuit(clock: Clock, told: Told) -> circuit_breaker.Circuit:
    return circuit_breaker.Circuit(told, clock)


def fail(circuit: circuit_breaker.Circuit, times: int = breaker.FAILURES) -> None:
    for _ in range(times):
        who = object()
        circuit.enter(who)
        circuit.unanswered(who, "connection refused")


def test_while_it_is_open_a_request_fails_at_once_and_cannot_have_acted(circuit: circuit_breaker.Circuit) -> None:
    fail(circuit)
    assert circuit.state is State.OPEN
    for ask in (circuit.enter, circuit.check):
        with pytest.raises(errors.AsteriskUnreachable, match="5 times in a row: connection refused") as caught:
            ask(object())
        assert not caught.value.may_have_acted


def test_of_many_threads_one_probes(circuit: circuit_breaker.Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += breaker.FIRST_PAUSE_SECONDS
    let_through: list[object] = []
    together = threading.Barrier(20)

    def step() -> None:
        who = object()
        together.wait(5)
        try:
            circuit.enter(who)
        except errors.AsteriskUnreachable:
            return
        let_through.append(who)

    threads = [threading.Thread(target=step) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_through) == 1
    # Its other requests, which go side by side, are let through as well.
    circuit.enter(let_through[0])
    circuit.answered()
    circuit.enter(object())


def test_a_look_does_not_begin_the_probe(circuit: circuit_breaker.Circuit, clock: Clock) -> None:
    fail(circuit)
    clock.now += breaker.FIRST_PAUSE_SECONDS
    circuit.check(object())
    circuit.enter(object())
    with pytest.raises(errors.AsteriskUnreachable):
        circuit.check(object())


def test_opening_and_closing_are_told_and_so_is_now_and_then_that_it_stays_open(
    circuit: circuit_breaker.Circuit, clock: Clock, told: Told
) -> None:
    circuit.answered()
    fail(circuit, 4)
    circuit.answered()
    assert told.changes == []
    fail(circuit)
    assert told.changes == [(True, "connection refused")]
    begun = clock.now
    while clock.now < begun + 2.5 * circuit_breaker.NOTED_SECONDS:
        clock.now += breaker.LONGEST_PAUSE_SECONDS
        fail(circuit, 1)
    assert told.changes == [(True, "connection refused")] * 3
    circuit.answered()
    circuit.answered()
    assert told.changes[3:] == [(False, "it answers again")]


def test_one_that_never_opens_never_opens() -> None:
    circuit = circuit_breaker.Closed()
    fail(circuit, 100)
    assert circuit.state is State.CLOSED
