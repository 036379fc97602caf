"""Redis's clock without a request: an offset to the monotonic clock."""

import fakeredis
import pytest

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


class SetClient(fakeredis.FakeRedis):
    """A Redis whose clock the test sets."""

    now = 5_000.0

    def time(self, **_: object) -> tuple[int, int]:
        return int(self.now), int(self.now % 1 * 1e6)


def test_an_age_is_the_difference_and_never_negative() -> None:
    monotonic, client = Monotonic(), SetClient()
    clock = PollingRedisClock(client, monotonic)
    assert clock.age_ms(4_999_750) == 250
    assert clock.age_ms(5_000_250) == 0
    assert clock.age_ms(4_000_000) == 1_000_000, "no clock was set: it is that old"


@pytest.mark.parametrize("ahead_seconds", [-3600.0, 3600.0])
def test_no_event_is_old_because_redis_s_clock_was_set(ahead_seconds: float) -> None:
    monotonic, client = Monotonic(), SetClient()
    clock = PollingRedisClock(client, monotonic)
    assert clock.age_ms(5_000_000) == 0
    # The listener has heard of it, this worker not yet; or the other way round.
    client.now += ahead_seconds
    monotonic.now += 0.2
    assert clock.age_ms(int(client.now * 1000)) == 0
    monotonic.now += 10.0
    client.now += 10.0
    for at_ms in (5_009_900, int(client.now * 1000) - 100):
        assert clock.age_ms(at_ms) in (0, 100)
    monotonic.now += 70.0
    client.now += 70.0
    assert clock.age_ms(int(client.now * 1000) - 65_000) == 65_000, "it is of the time since"


def test_while_redis_is_away_no_age_is_known() -> None:
    server = fakeredis.FakeServer()
    server.connected = False
    assert PollingRedisClock(fakeredis.FakeRedis(server=server), Monotonic()).age_ms(1) == 0


def test_old_events_ask_again_and_again_by_one_connection_for_a_second() -> None:
    """After an outage each event is old; a server that is master no more would tell its time for ever."""
    monotonic, client = Monotonic(), SetClient()
    disconnected: list[float] = []
    client.connection_pool.disconnect = lambda *_, **__: disconnected.append(monotonic.now)  # type: ignore[method-assign]
    clock = PollingRedisClock(client, monotonic)
    for _ in range(10):
        clock.age_ms(4_000_000)
        monotonic.now += 0.25
        client.now += 0.25
    assert disconnected == [100.0, 101.0, 102.0]
