"""Redis's clock without a request: an offset to the monotonic clock."""

import fakeredis

from shared.process.redis_clock import PollingRedisClock, RedisClock


class Monotonic:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_clock_follows_redis() -> None:
    monotonic = Monotonic()
    clock = RedisClock(monotonic)
    assert clock.now_ms() is None
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


def test_a_polling_clock_asks_now_and_then_and_outlasts_an_outage() -> None:
    monotonic, server = Monotonic(), fakeredis.FakeServer()
    server.connected = False
    clock = PollingRedisClock(fakeredis.FakeRedis(server=server), monotonic)
    assert clock.now_ms() is None
    server.connected = True
    assert clock.now_ms() is None, "not asked again at once"
    monotonic.now = 110.0
    first = clock.now_ms()
    assert first is not None
    monotonic.now = 111.5
    assert clock.now_ms() == first + 1500, "without a request"
    server.connected = False
    monotonic.now = 130.0
    assert clock.now_ms() == first + 20_000
