"""A claim bounds its step: it ends for its worker no later than for others, and after it no request starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors
from shared.call.steps import Step
from tests.support.calls import LIMITS, WAITING
from workers.claims import Claim

LENGTH = LIMITS.claim(Step.BRIDGE).total_seconds()


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def claim_of(clock: Clock, *, asked_for_seconds_ago: float = 0.0) -> Claim:
    writer = SimpleNamespace(clock=clock, limits=LIMITS, lives_since=lambda _moment: True)
    return Claim(cast(Any, writer), WAITING, Step.BRIDGE, owner="me", started=clock.now - asked_for_seconds_ago)


def test_a_claim_ends_as_it_was_asked_for_not_as_it_was_granted() -> None:
    """The row has it from an earlier moment on: when the answer is slow, another worker may have it sooner."""
    assert claim_of(Clock(), asked_for_seconds_ago=3.0).seconds_left() == LENGTH - 3.0


@pytest.mark.parametrize("late_seconds", [0.0, 0.001, 60.0])
def test_no_request_starts_after_the_claim(late_seconds: float) -> None:
    clock = Clock()
    claim = claim_of(clock)
    clock.now += LENGTH - 0.5
    assert claim.seconds_left() == 0.5
    assert claim.has_time(0.5)
    assert not claim.has_time(0.6)
    clock.now += 0.5 + late_seconds
    with pytest.raises(errors.OutOfTime):
        claim.seconds_left()
    with pytest.raises(errors.OutOfTime):
        claim.pause(1.0)
    assert clock.slept == []


def test_a_pause_ends_with_the_claim() -> None:
    clock = Clock()
    claim = claim_of(clock)
    claim.pause(1.0)
    claim.pause(LENGTH + 1.0)
    assert clock.slept == [1.0, LENGTH]
