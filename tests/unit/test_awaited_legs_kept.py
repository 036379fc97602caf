"""What is kept of awaited legs, and for how long: one process's memory of them, without a flow around it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from shared.call.calls import Call
from tests.support.calls import ATTEMPTING, CALL_ID
from workers.awaited_legs import AwaitedLegs


class Kept:
    """A claim, as far as it matters here."""

    def __init__(self, number: int = 0, *, left_seconds: float = 5.0) -> None:
        self.call: Call = replace(ATTEMPTING, call_id=UUID(int=number)) if number else ATTEMPTING
        self._left_seconds = left_seconds

    def settle(self) -> None:
        raise AssertionError("nothing is stored here")

    def has_time(self, seconds: float) -> bool:
        return self._left_seconds >= seconds


class Scene:
    """Awaited legs, at most two, each for a second, and a clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.woken = 0
        self.legs: AwaitedLegs[Kept] = AwaitedLegs(
            capacity=2, wait_seconds=1.0, monotonic=lambda: self.now, first_kept=self._wake
        )

    def _wake(self) -> None:
        self.woken += 1

    def keep(self, claim: Kept) -> bool:
        self.legs.expect(claim)
        return self.legs.keep(claim)

    def take(self, attempt: int = 1, connection_id: int = 7) -> Kept | None:
        return self.legs.take(CALL_ID, attempt, connection_id=connection_id)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_leg_is_kept_if_it_is_expected_and_taken_once(scene: Scene) -> None:
    claim = Kept()
    assert not scene.legs.keep(claim)
    assert scene.keep(claim)
    assert not scene.legs.is_empty()
    # The expectation is used up.
    assert not scene.legs.keep(claim)
    assert scene.take() is claim
    assert scene.take() is None
    assert scene.legs.is_empty()


@pytest.mark.parametrize(("attempt", "connection_id"), [(2, 7), (1, 8)])
def test_a_leg_is_taken_by_its_attempt_on_its_connection(scene: Scene, attempt: int, connection_id: int) -> None:
    claim = Kept()
    scene.keep(claim)
    assert scene.take(attempt, connection_id) is None
    assert scene.take() is claim


def test_a_leg_whose_event_came_before_the_answer_is_not_kept(scene: Scene) -> None:
    claim = Kept()
    scene.legs.expect(claim)
    assert scene.take() is None
    assert not scene.legs.keep(claim)


def test_a_forgotten_leg_is_not_kept_and_a_kept_one_is_not_forgotten(scene: Scene) -> None:
    claim = Kept()
    scene.legs.expect(claim)
    scene.legs.forget(claim)
    assert not scene.legs.keep(claim)
    scene.keep(claim)
    scene.legs.forget(claim)
    assert scene.take() is claim


def test_expected_and_kept_legs_count_together(scene: Scene) -> None:
    assert scene.keep(Kept(1))
    scene.legs.expect(Kept(2))
    assert not scene.keep(Kept(3))
    scene.legs.forget(Kept(2))
    assert scene.keep(Kept(3))
    scene.legs.take(UUID(int=1), 1, connection_id=7)
    scene.legs.take(UUID(int=3), 1, connection_id=7)
    scene.legs.expect(Kept(4))
    scene.legs.expect(Kept(5))
    assert not scene.keep(Kept(6))


def test_the_thread_is_woken_for_the_first_kept_leg(scene: Scene) -> None:
    scene.keep(Kept(1))
    scene.keep(Kept(2))
    assert scene.woken == 1
    scene.legs.close()


def test_a_wait_ends_after_its_time_the_oldest_first(scene: Scene) -> None:
    first, second = Kept(1), Kept(2)
    scene.keep(first)
    scene.now += 0.5
    scene.keep(second)
    scene.now += 0.49
    assert scene.legs.expired() == []
    scene.now = 101.0
    assert scene.legs.expired() == [first]
    assert scene.legs.expired() == []
    assert not scene.legs.is_empty()
    scene.now = 101.5
    assert scene.legs.expired() == [second]
    assert scene.legs.is_empty()


def test_a_claim_is_kept_again_as_long_as_it_stands(scene: Scene) -> None:
    standing, ending, over = Kept(1), Kept(2, left_seconds=0.0), Kept(3, left_seconds=-0.1)
    for claim in (standing, ending, over):
        scene.legs.keep_again(claim)
    assert scene.woken == 3
    scene.now += 1.0
    assert scene.legs.expired() == [standing, ending]


def test_a_closed_process_keeps_nothing(scene: Scene) -> None:
    first, second = Kept(1), Kept(2)
    scene.keep(first)
    scene.legs.expect(second)
    assert scene.legs.close() == [first]
    assert scene.legs.is_empty()
    assert not scene.legs.keep(second)
    assert not scene.keep(Kept(3))
    scene.legs.keep_again(first)
    assert scene.legs.is_empty()
    assert scene.legs.close() == []
