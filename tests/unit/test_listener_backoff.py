"""The back-off of event sockets: doubling, jittered, reset by stability only."""

import pytest

from listener import backoff
from listener.backoff import Cause


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (8, 128), (9, 256), (10, 300), (50, 300), (10_000, 300)]
)
def test_ceiling_doubles_up_to_the_slowest(failures: int, seconds: float) -> None:
    assert backoff.delay_seconds(failures, 1.0, slowest=300) == seconds


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.999])
def test_jitter_is_full(jitter: float) -> None:
    assert backoff.delay_seconds(4, jitter, slowest=300) == 8 * jitter


class Socket:
    """The attempts of a socket, each made when the back-off says so."""

    def __init__(self, jitter: float = 0.999) -> None:
        self._backoff = backoff.Backoff()
        self._jitter = jitter
        self.now = 1000.0

    def fails(self, cause: Cause = Cause.PASSING, *, open_seconds: float = 0.0) -> float:
        self.now += open_seconds
        delay = self._backoff.next_delay_seconds(cause, now=self.now, open_seconds=open_seconds, jitter=self._jitter)
        self.now += delay
        return delay

    def until(self, seconds: float, cause: Cause) -> list[float]:
        """Fail until so much time has passed; return the moments of the attempts."""
        began, moments = self.now, []
        while self.now - began < seconds:
            moments.append(self.now - began)
            self.fails(cause)
        return moments


def test_delays_grow_with_failures_in_a_row_to_what_a_restart_may_take() -> None:
    socket = Socket(jitter=1.0)
    assert [socket.fails() for _ in range(6)] == [1, 2, 4, 8, 8, 8]


def test_who_stays_away_for_longer_is_asked_slowly() -> None:
    socket = Socket(jitter=1.0)
    socket.until(600, Cause.PASSING)
    assert socket.fails() == 300


def test_a_handshake_alone_does_not_reset() -> None:
    socket = Socket(jitter=1.0)
    assert [socket.fails(open_seconds=29.9) for _ in range(3)] == [1, 2, 4]


def test_a_stable_socket_resets_the_delay() -> None:
    socket = Socket(jitter=1.0)
    socket.until(700, Cause.PASSING)
    assert [socket.fails(open_seconds=30), socket.fails()] == [1, 2]


@pytest.mark.parametrize("cause", [Cause.PERMANENT, Cause.DENIED])
@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_a_permanent_answer_is_permanent_when_it_has_lasted_for_a_minute(cause: Cause, jitter: float) -> None:
    socket, delays = Socket(jitter), []
    began = socket.now
    while socket.now - began < 60:
        delays.append(socket.fails(cause))
        if not jitter and cause is Cause.PERMANENT:
            # Full jitter may be none.
            socket.now += 1
    assert max(delays) < 10
    assert 200 <= socket.fails(cause) <= 300


@pytest.mark.parametrize("jitter", [0.0, 0.3, 0.7, 0.999])
def test_a_wrong_password_costs_ten_handshakes_in_ten_minutes(jitter: float) -> None:
    assert len(Socket(jitter).until(600, Cause.DENIED)) <= 10


@pytest.mark.parametrize("cause", [Cause.PERMANENT, Cause.DENIED])
def test_a_permanent_answer_that_did_not_last_is_forgotten(cause: Cause) -> None:
    """An Asterisk boots twice: its first 404 says nothing about the second."""
    socket = Socket()
    socket.fails(cause)
    socket.until(55, Cause.PASSING)
    assert socket.fails(cause) < 10
    socket.now += 55
    socket.fails(Cause.PASSING, open_seconds=3600)
    assert socket.fails(cause) < 10


@pytest.mark.parametrize("cause", [Cause.PERMANENT, Cause.DENIED])
def test_an_answer_that_has_lasted_for_a_minute_was_given_five_times(cause: Cause) -> None:
    """The platform deactivates a configuration after five of them, the scheduler after that minute."""
    assert len(Socket().until(backoff.LASTING_SECONDS, cause)) >= 5


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 200), (0.5, 250), (1.0, 300)])
def test_a_flood_goes_to_the_slow_end_at_once(jitter: float, seconds: float) -> None:
    assert Socket(jitter).fails(Cause.FLOODED, open_seconds=5) == seconds
