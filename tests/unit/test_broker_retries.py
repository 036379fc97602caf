"""When a failed message is retried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dramatiq.errors
import pytest

from shared.broker.retries import Retries


class Broker:
    """Records the delays of what is enqueued; the test sets its clock."""

    def __init__(self, **options: Any) -> None:
        self.now = 1_000_000
        self.delays: list[int] = []
        self._actor = SimpleNamespace(options=options)

    def now_ms(self) -> int:
        return self.now

    def get_actor(self, name: str) -> Any:
        return self._actor

    def enqueue(self, message: Any, *, delay: int) -> None:
        self.delays.append(delay)


class Message:
    """A message in flight."""

    def __init__(self) -> None:
        self.actor_name = "act"
        self.options: dict[str, Any] = {}
        self.failed = False

    def fail(self) -> None:
        self.failed = True


def fail_until_given_up(broker: Broker, message: Message, retries: Retries, *, work_ms: int = 0) -> list[int]:
    """Let each try fail after `work_ms`; return the delays between them."""
    while not message.failed:
        broker.now += work_ms
        tried = len(broker.delays)
        retries.after_process_message(broker, message, exception=ValueError("no"))
        assert message.failed or len(broker.delays) == tried + 1
        broker.now += broker.delays[-1]
    return broker.delays


@pytest.mark.parametrize(
    ("for_ms", "work_ms", "delays"),
    [
        (5_000, 0, [100, 300, 1000, 3000]),
        (20_000, 0, [100, 300, 1000, 3000, 5000, 5000, 5000]),
        (5_000, 1_000, [100, 300, 1000]),
        (0, 0, []),
        (99, 0, []),
        (100, 0, [100]),
    ],
)
def test_retries_come_soon_at_first_and_end_with_the_time_limit(for_ms: int, work_ms: int, delays: list[int]) -> None:
    broker, message = Broker(), Message()
    if not delays:
        Retries(for_ms=for_ms).after_process_message(broker, message, exception=ValueError("no"))
        assert (message.failed, broker.delays) == (True, [])
    else:
        assert fail_until_given_up(broker, message, Retries(for_ms=for_ms), work_ms=work_ms) == delays


def test_an_actor_may_set_the_time_limit() -> None:
    assert fail_until_given_up(Broker(retry_for_ms=500), Message(), Retries()) == [100, 300]


def test_an_error_that_the_actor_throws_is_not_retried() -> None:
    broker, message = Broker(throws=(KeyError,)), Message()
    Retries().after_process_message(broker, message, exception=KeyError("x"))
    assert (message.failed, broker.delays) == (True, [])


def test_an_actor_may_ask_for_a_delay() -> None:
    broker, message = Broker(), Message()
    Retries().after_process_message(broker, message, exception=dramatiq.errors.Retry(delay=700))
    assert (message.failed, broker.delays) == (False, [700])


def test_a_clock_that_is_set_back_extends_no_time_limit() -> None:
    broker, message = Broker(), Message()
    Retries().after_process_message(broker, message, exception=ValueError("no"))
    broker.now -= 60_000
    Retries().after_process_message(broker, message, exception=ValueError("no"))
    assert message.failed


@pytest.mark.parametrize("failed", [True, False])
def test_a_success_or_a_rejected_message_is_left_unchanged(failed: bool) -> None:
    broker, message = Broker(), Message()
    message.failed = failed
    Retries().after_process_message(broker, message, exception=ValueError("no") if failed else None)
    assert (message.failed, broker.delays, message.options) == (failed, [], {})


def test_an_outage_does_not_count_towards_the_time_limit() -> None:
    broker, message = Broker(retry_for_ms=5_000), Message()
    retries = Retries(outages=(ConnectionError,))
    for _ in range(100):
        retries.after_process_message(broker, message, exception=ConnectionError("away"))
        broker.now += broker.delays[-1]
    assert broker.delays == [1_000] * 100
    broker.delays.clear()
    assert fail_until_given_up(broker, message, retries) == [100, 300, 1000, 3000]
