"""How long a session counts as alive, as far as it knows: its polls are answered in time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import fakeredis
import pytest
import redis

from shared.broker import session
from shared.broker.bounds import Bounds
from shared.broker.deliveries import Delivery
from shared.broker.session import WorkerSession
from shared.broker.session_client import PollResult
from tests.support.script_runner import LATE_MS, Scripts

TIMEOUT = session.TIMEOUT_MS / 1000
IDLE = PollResult(in_flight=0, due_seconds=math.inf, is_idle=True, fetched=[])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WorkerSession]:
    """Make a session whose polls are answered as given."""

    def make(poll: Callable[..., PollResult]) -> WorkerSession:
        made = WorkerSession(
            redis.Redis(), "ns", "w", tag="a", capacity=1, order=["q"], describe=str, bounds=Bounds()
        )  # fmt: skip
        monkeypatch.setattr(made._requests, "poll", lambda *given, **_others: poll(*given))
        return made

    return make


def test_a_session_lives_from_its_first_poll_until_a_time_out_after_its_last(
    made: Callable[..., WorkerSession], clock: list[float]
) -> None:
    polled = made(lambda *_: IDLE)
    assert not polled.lives_since(100.0), "not registered yet"
    for clock[0] in (101.0, 102.0, 102.0 + TIMEOUT):
        polled._poll()
    assert [polled.lives_since(moment) for moment in (100.5, 101.0, 200.0)] == [False, True, True]
    clock[0] += TIMEOUT - 0.1
    assert polled.lives_since(101.0)
    clock[0] += 0.1
    assert not polled.lives_since(101.0)


def test_a_poll_counts_from_when_it_was_asked(made: Callable[..., WorkerSession], clock: list[float]) -> None:
    """Redis has it from an earlier moment on than its answer."""

    def answer_late(*_: object) -> PollResult:
        clock[0] += 3.0
        return IDLE

    polled = made(answer_late)
    polled._poll()
    clock[0] += TIMEOUT - 3.0
    assert not polled.lives_since(100.0)


def test_a_session_that_was_not_heard_of_for_a_time_out_lives_anew(
    made: Callable[..., WorkerSession], clock: list[float]
) -> None:
    """What it had before may be another's by now."""
    polled = made(lambda *_: IDLE)
    polled._poll()
    clock[0] += TIMEOUT + 0.1
    polled._poll()
    assert [polled.lives_since(moment) for moment in (100.0, clock[0] - 0.1, clock[0])] == [False, False, True]


def test_a_poll_that_is_not_answered_is_no_sign_of_life(made: Callable[..., WorkerSession], clock: list[float]) -> None:
    answers: list[PollResult] = [IDLE]

    def poll(*_: object) -> PollResult:
        if not answers:
            raise redis.ConnectionError("away")
        return answers.pop()

    polled = made(poll)
    polled._poll()
    clock[0] += TIMEOUT - 0.1
    with pytest.raises(redis.ConnectionError):
        polled._poll()
    clock[0] += 0.2
    assert not polled.lives_since(100.0)


def test_a_session_whose_connections_were_cut_has_polled_again_before_it_is_taken_for_dead() -> None:
    with fakeredis.FakeRedis(server=fakeredis.FakeServer()) as client:
        lua = Scripts(client)
        lua.poll("cut")
        lua.silence("cut", LATE_MS)
        lua.poll("other")
        # It has no subscription for now.
        assert set(lua.sessions()) == {"cut", "other"}
        lua.poll("cut")
        lua.liveness(last_search=0)
        lua.poll("other")
        assert set(lua.sessions()) == {"cut", "other"}


def test_a_thread_that_is_to_stop_does_not_begin_to_listen(made: Callable[..., WorkerSession]) -> None:
    """Of a worker's threads each would listen for a second, one after the other."""
    listened, pushed = made(lambda *_: IDLE), Delivery("q", b"/1", b"{}")
    listened._pushed = (each for each in [pushed])
    assert listened.receive(1.0, lambda: False) is None
    assert listened.receive(1.0, lambda: True) is pushed
