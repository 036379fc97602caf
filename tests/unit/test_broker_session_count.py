"""How many broker sessions there are, as one of them knows it: what workers have together is divided by it."""

from __future__ import annotations

import time

import pytest
import redis

from shared.broker.bounds import Bounds
from shared.broker.session_client import SessionClient


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("clock")
def test_a_number_that_has_risen_is_believed_at_once() -> None:
    client = SessionClient(redis.Redis(), "ns", "worker", tag="a", timeout_ms=1000, bounds=Bounds())
    assert client.sessions() == 1
    for number in (3, 4, 12):
        client._believe(number)
        assert client.sessions() == number


def test_a_number_that_has_fallen_is_believed_after_a_while(clock: list[float]) -> None:
    """After Redis was emptied the sessions come back one by one: none is to take what the others still use."""
    client = SessionClient(redis.Redis(), "ns", "worker", tag="a", timeout_ms=1000, bounds=Bounds())
    client._believe(12)
    for number in (1, 5, 11):
        clock[0] += 1.0
        client._believe(number)
        assert client.sessions() == 12
    clock[0] += 3.0
    client._believe(6)
    assert client.sessions() == 6
