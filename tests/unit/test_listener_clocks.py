"""Redis's clock without asking, and the right to open sockets."""

import asyncio

from listener.assignment_lease import Standing
from listener.clocks import RedisClock


class Monotonic:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_clock_follows_redis() -> None:
    monotonic = Monotonic()
    clock = RedisClock(monotonic)
    assert clock.now_ms() == 0
    clock.adjust(5_000_000, asked=100.0, answered=100.0)
    monotonic.now = 101.5
    assert clock.now_ms() == 5_001_500


def test_clock_ignores_what_a_slow_answer_cannot_tell() -> None:
    monotonic = Monotonic()
    clock = RedisClock(monotonic)
    clock.adjust(5_000_000, asked=100.0, answered=100.0)
    clock.adjust(5_000_000, asked=99.9, answered=100.9)
    assert clock.now_ms() == 5_000_000
    clock.adjust(9_000_000, asked=99.9, answered=100.1)
    assert clock.now_ms() == 9_000_000


def test_standing_expires_and_can_be_revoked() -> None:
    monotonic = Monotonic()
    standing = Standing(2.0, monotonic)
    assert not standing.good
    standing.confirm(100.0)
    monotonic.now = 102.0
    assert standing.good
    monotonic.now = 102.1
    assert not standing.good
    standing.confirm(102.0)
    assert standing.good
    standing.revoke()
    assert not standing.good


def test_standing_is_waited_for() -> None:
    async def scene() -> None:
        monotonic = Monotonic()
        standing = Standing(2.0, monotonic)
        waiting = asyncio.create_task(standing.wait())
        await asyncio.sleep(0)
        # A confirmation that is already too old opens nothing.
        standing.confirm(97.0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        standing.confirm(100.0)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(scene())
