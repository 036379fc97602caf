"""The sessions of one Asterisk in one process: how many, whose, and what is closed for whom."""

from __future__ import annotations

import threading
import time

import pytest

from shared.asterisk import sessions
from shared.asterisk.sessions import Sessions


class Pool:
    """The idle connections of a tenant."""

    def __init__(self, there: Sessions, tenant: object, idle: int = 0) -> None:
        self.there = there
        self.idle = idle
        there.add(self, tenant)
        for _ in range(idle):
            there.opening()

    def close_oldest(self) -> bool:
        if not self.idle:
            return False
        self.idle -= 1
        self.there.closed()
        return True


def acquire(there: Sessions, tenant: object, wanted: int, *, at_once: int = 10, seconds: float = 0.0) -> int:
    return there.acquire(tenant, wanted=wanted, at_once=at_once, until=time.monotonic() + seconds)


def test_a_tenant_alone_has_all_of_them_up_to_its_own_limit() -> None:
    there = Sessions(lambda: 8)
    Pool(there, 1)
    # Two versions of one connection are one tenant.
    Pool(there, 1)
    assert acquire(there, 1, 20) == 8
    assert acquire(there, 1, 1) == 0
    there.release(1, 8)
    assert acquire(there, 1, 20, at_once=3) == 3


@pytest.mark.parametrize(("most", "expected"), [(8, 6), (4, 3), (2, 1), (1, 1), (0, 1)])
def test_no_tenant_of_a_shared_asterisk_can_take_all(most: int, expected: int) -> None:
    there = Sessions(lambda: most)
    Pool(there, 1)
    Pool(there, 2)
    assert acquire(there, 1, 20) == expected
    assert acquire(there, 2, 20) == min(max(1, most) - expected, max(1, most // 2))


def test_those_that_are_active_have_equal_shares() -> None:
    there = Sessions(lambda: 8)
    for tenant in range(20):
        Pool(there, tenant)
    assert acquire(there, 0, 20) == 6
    there.release(0, 6)
    for tenant in (0, 1, 2, 3):
        acquire(there, tenant, 1)
        there.release(tenant, 1)
    assert [acquire(there, tenant, 20) for tenant in (0, 1, 2, 3)] == [2, 2, 2, 2]


def test_who_was_active_long_ago_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Sessions(lambda: 8)
    for tenant in range(20):
        Pool(there, tenant)
        acquire(there, tenant, 1)
        there.release(tenant, 1)
    assert acquire(there, 0, 20) == 1
    there.release(0, 1)
    monkeypatch.setattr(sessions, "_REMEMBERED_SECONDS", 0.0)
    for tenant in range(20):
        acquire(there, tenant, 1)
        there.release(tenant, 1)
    assert acquire(there, 0, 20) == 6


def test_a_permit_that_is_given_back_goes_to_one_who_waits() -> None:
    there = Sessions(lambda: 1)
    Pool(there, 1)
    assert acquire(there, 1, 3) == 1
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.append(acquire(there, 1, 3, seconds=5)))
    waiting.start()
    time.sleep(0.05)
    there.release(1, 1)
    waiting.join()
    assert got == [1]


def test_the_limit_may_change() -> None:
    most = 8
    there = Sessions(lambda: most)
    Pool(there, 1)
    assert acquire(there, 1, 8) == 8
    most = 4
    there.release(1, 4)
    assert acquire(there, 1, 1) == 0
    assert not there.has_excess()
    there.release(1, 1)
    assert acquire(there, 1, 5) == 1


def test_what_is_idle_gives_way_to_another_tenant() -> None:
    there = Sessions(lambda: 4)
    first, second = Pool(there, 1, idle=3), Pool(there, 2, idle=1)
    there.opening()
    assert (first.idle, second.idle) == (2, 1)
    there.opening()
    assert (first.idle, second.idle) == (1, 1)
    assert not there.has_excess()
    # The connections of a pool that is gone are its own to close.
    there.remove(first)
    there.opening()
    assert (first.idle, second.idle) == (1, 0)


def test_it_is_unused_without_pools_and_sessions() -> None:
    there = Sessions(lambda: 4)
    assert there.is_unused
    pool = Pool(there, 1)
    there.opening()
    there.remove(pool)
    assert not there.is_unused
    there.closed()
    assert there.is_unused
