"""Work under a lease, and what is left of one when Postgres gives no answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors
from workers.exclusive import Exclusive


class Leases:
    """Leases whose answers get lost."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.is_free = True
        #: Of the next request: what it raises.
        self.fails: Exception | None = None

    def take(self, name: str, holder: str, seconds: float) -> int | None:
        assert seconds == 25.0
        self._ask("take", name, holder)
        return 1 if self.is_free else None

    def release(self, name: str, holder: str) -> None:
        self._ask("release", name, holder)

    def _ask(self, what: str, name: str, holder: str) -> None:
        self.asked.append((what, name, holder))
        failure, self.fails = self.fails, None
        if failure is not None:
            raise failure


class Scene:
    """A worker, its leases, and a clock that the test sets."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.now = 0.0
        owners = iter(f"me/{number}" for number in range(1000))
        writer = SimpleNamespace(clock=SimpleNamespace(monotonic=lambda: self.now), new_owner=lambda: next(owners))
        self.exclusive = Exclusive(self.leases, cast(Any, writer))

    def work(self, name: str = "a") -> bool:
        with self.exclusive.lease(name, 25.0) as acquired:
            return acquired

    def asked(self) -> list[tuple[str, str, str]]:
        """Return what was asked since the last time."""
        asked, self.leases.asked = self.leases.asked, []
        return asked


def test_a_lease_is_held_for_the_length_of_the_work() -> None:
    scene = Scene()
    assert scene.work()
    assert scene.asked() == [("take", "a", "me/0"), ("release", "a", "me/0")]
    scene.leases.is_free = False
    assert not scene.work()
    assert scene.asked() == [("take", "a", "me/1")]


def test_a_lease_is_released_when_the_work_under_it_breaks_off() -> None:
    scene = Scene()
    with pytest.raises(KeyError), scene.exclusive.lease("a", 25.0):
        raise KeyError
    assert scene.asked() == [("take", "a", "me/0"), ("release", "a", "me/0")]


def test_a_lease_that_may_have_been_taken_is_released_with_the_work_that_follows() -> None:
    """A frozen Postgres takes it when it goes on, after the worker has given up: nobody would hold it, for 25 s."""
    scene = Scene()
    scene.leases.fails = errors.DatabaseAway("no answer from Postgres in time")
    with pytest.raises(errors.DatabaseAway):
        scene.work()
    scene.asked()
    for _ in range(2):
        scene.now += 1.0
        scene.work("b")
        # It may be taken after this, too.
        assert scene.asked()[0] == ("release", "a", "me/0")
    # Not more often than once a second, and not for ever.
    scene.work("b")
    assert ("release", "a", "me/0") not in scene.asked()
    scene.now = 50.1
    scene.work("b")
    assert ("release", "a", "me/0") not in scene.asked()


def test_a_lease_that_could_not_be_released_is_released_with_the_work_that_follows() -> None:
    scene = Scene()
    with scene.exclusive.lease("a", 25.0):
        scene.leases.fails = errors.DatabaseAway("away")
    scene.asked()
    # Nor does it matter that this fails as well.
    scene.leases.fails = errors.DatabaseAway("away")
    assert scene.work("b")
    assert scene.asked() == [("release", "a", "me/0"), ("take", "b", "me/1"), ("release", "b", "me/1")]


def test_while_postgres_is_away_one_request_is_made_for_all_that_is_left() -> None:
    scene = Scene()
    for name in ("a", "b"):
        with scene.exclusive.lease(name, 25.0):
            scene.leases.fails = errors.DatabaseAway("away")
    scene.asked()
    scene.now = 1.0
    scene.leases.fails = errors.DatabaseAway("away")
    scene.work("c")
    assert [name for _, name, _ in scene.asked()] == ["a", "c", "c"]


def test_so_many_leases_are_remembered_the_last_ones() -> None:
    scene = Scene()
    for number in range(60):
        scene.leases.fails = errors.DatabaseAway("away")
        with pytest.raises(errors.DatabaseAway), scene.exclusive.lease(f"{number}", 25.0):
            pytest.fail("not acquired")
        scene.now -= 0.1
    scene.asked()
    scene.now = 1.0
    scene.work()
    released = [name for what, name, _ in scene.asked() if what == "release"]
    assert released == [f"{number}" for number in range(10, 60)] + ["a"]
