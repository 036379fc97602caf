"""A process that starts while a server is away waits for it, is alive meanwhile, and ends when it is told to."""

from __future__ import annotations

import threading

import pytest

from shared import errors
from shared.process import health, lifecycle


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TOUCH_SECONDS", 0.001)


class Server:
    """Answers after so many failures."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def read(self) -> str:
        if self.failures:
            self.failures -= 1
            raise errors.DatabaseUnavailable("not yet")
        return "aip-k3x9q2-"


def test_a_process_waits_for_the_server_and_is_alive_meanwhile() -> None:
    touches: list[int] = []
    assert lifecycle.wait_for(Server(3).read, threading.Event(), lambda: touches.append(1)) == "aip-k3x9q2-"
    assert len(touches) == 4


def test_a_process_that_is_to_stop_waits_no_longer() -> None:
    stop = threading.Event()
    stop.set()
    assert lifecycle.wait_for(Server(1).read, stop, lambda: None) is None
