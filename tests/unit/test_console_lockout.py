"""Wrong passwords lock a name or an address for a while, in bounded memory."""

from __future__ import annotations

from console import lockout
from console.lockout import Lockout


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_last_attempt_locks_until_its_time_is_over() -> None:
    clock = Clock()
    locks = Lockout(attempts=3, seconds=60, clock=clock)
    assert [locks.begin("a") for _ in range(3)] == [0, 0, 0]
    assert locks.begin("a") == 60
    clock.now += 59
    assert locks.begin("a") == 1
    assert locks.begin("b") == 0
    clock.now += 1
    assert locks.begin("a") == 0


def test_a_right_password_forgets_the_failures() -> None:
    locks = Lockout(attempts=2, seconds=60, clock=Clock())
    for _ in range(5):
        assert locks.begin("a") == 0
        locks.succeed("a")
    assert len(locks) == 0


def test_attempts_at_once_are_not_more_than_one_after_the_other() -> None:
    """Each counts from its beginning, whether or not the one before has been judged."""
    locks = Lockout(attempts=5, seconds=60, clock=Clock())
    assert [locks.begin("a") == 0 for _ in range(20)].count(True) == 5


def test_an_attempt_that_was_not_judged_is_taken_back() -> None:
    locks = Lockout(attempts=2, seconds=60, clock=Clock())
    for _ in range(5):
        assert locks.begin("a") == 0
        locks.withdraw("a")
    assert len(locks) == 0


def test_the_one_that_failed_the_longest_ago_is_forgotten_first() -> None:
    locks = Lockout(attempts=1, seconds=1e9, clock=Clock())
    for number in range(lockout.MOST_KEYS + 5):
        locks.begin(str(number))
    assert len(locks) == lockout.MOST_KEYS
    assert locks.begin("0") == 0
    assert locks.begin(str(lockout.MOST_KEYS)) > 0
