"""Teardowns of a worker wait for its set-ups and for each other, for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import dramatiq
import dramatiq.brokers.stub
import pytest

from workers import pools
from workers.set_ups_first import SetUpsFirst

#: Longer than a test takes, and shorter than what it waits for at most.
LONG_SECONDS = 5.0
WAIT_SECONDS = 20.0
#: So long a thread that does not wait takes at most.
SOON_SECONDS = 0.05


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


class Work:
    """A message in a thread of its own, until it is told to end."""

    def __init__(self, threads: ThreadPoolExecutor, middleware: dramatiq.Middleware) -> None:
        self.begun, self._may_end = threading.Event(), threading.Event()
        self._done: Future[None] = threads.submit(self._run, middleware)

    def end(self) -> None:
        self._may_end.set()
        self._done.result(WAIT_SECONDS)

    def _run(self, middleware: Any) -> None:
        middleware.before_process_message(None, None)
        self.begun.set()
        self._may_end.wait(WAIT_SECONDS)
        middleware.after_process_message(None, None)


def begun(work: Work) -> Work:
    assert work.begun.wait(WAIT_SECONDS)
    return work


def test_a_teardown_begins_once_every_set_up_has_ended(threads: ThreadPoolExecutor) -> None:
    turns = SetUpsFirst(LONG_SECONDS)
    first, second = (begun(Work(threads, turns.of_set_ups())) for _ in range(2))
    teardown = Work(threads, turns.of_teardowns())
    assert not teardown.begun.wait(SOON_SECONDS)
    first.end()
    assert not teardown.begun.wait(SOON_SECONDS)
    second.end()
    begun(teardown).end()


def test_a_teardown_waits_for_another_one(threads: ThreadPoolExecutor) -> None:
    turns = SetUpsFirst(LONG_SECONDS)
    first = begun(Work(threads, turns.of_teardowns()))
    second = Work(threads, turns.of_teardowns())
    assert not second.begun.wait(SOON_SECONDS)
    first.end()
    begun(second).end()


def test_a_teardown_begins_at_once_while_another_one_waits(threads: ThreadPoolExecutor) -> None:
    turns = SetUpsFirst(WAIT_SECONDS)
    stuck = begun(Work(threads, turns.of_set_ups()))
    waiting = Work(threads, turns.of_teardowns())
    assert not waiting.begun.wait(SOON_SECONDS)
    for _ in range(3):
        begun(Work(threads, turns.of_teardowns())).end()
    assert not waiting.begun.is_set()
    stuck.end()
    begun(waiting).end()


@pytest.mark.parametrize(("pause_seconds", "waits"), [(0.0, 1), (0.005, 1), (0.02, 50)])
def test_of_many_teardowns_in_one_thread_the_first_waits(pause_seconds: float, waits: int) -> None:
    """A tenant whose calls all end at once has one thread of the pool, while others set calls up throughout."""
    now = 0.0
    turns = SetUpsFirst(0.001, monotonic=lambda: now)
    waited = []
    turns._turn.wait_for = lambda *_how: waited.append(now)  # type: ignore[assignment,method-assign]
    set_up, teardown = turns.of_set_ups(), turns.of_teardowns()
    with ThreadPoolExecutor(1) as other:
        other.submit(set_up.before_process_message, None, None).result()  # type: ignore[arg-type]
        for _ in range(50):
            teardown.before_process_message(None, None)  # type: ignore[arg-type]
            teardown.after_process_message(None, None)  # type: ignore[arg-type]
            now += pause_seconds
    assert len(waited) == waits


def test_a_set_up_waits_for_nothing(threads: ThreadPoolExecutor) -> None:
    turns = SetUpsFirst(WAIT_SECONDS)
    works = [begun(Work(threads, turns.of_teardowns()))]
    works += [begun(Work(threads, turns.of_set_ups())) for _ in range(3)]
    for work in works:
        work.end()


def test_a_teardown_waits_no_longer_than_a_moment(threads: ThreadPoolExecutor) -> None:
    turns = SetUpsFirst(0.02)
    stuck = [begun(Work(threads, turns.of_set_ups())), begun(Work(threads, turns.of_teardowns()))]
    # For the second one, which waits for both.
    late = begun(Work(threads, turns.of_teardowns()))
    for work in (late, *stuck):
        work.end()


def test_after_a_wait_that_was_too_long_turns_are_taken_again(threads: ThreadPoolExecutor) -> None:
    turns = SetUpsFirst(0.02)
    stuck = begun(Work(threads, turns.of_set_ups()))
    begun(Work(threads, turns.of_teardowns())).end()
    stuck.end()
    time.sleep(SOON_SECONDS)
    turns._most_seconds = LONG_SECONDS
    set_up = begun(Work(threads, turns.of_set_ups()))
    teardown = Work(threads, turns.of_teardowns())
    assert not teardown.begun.wait(SOON_SECONDS)
    set_up.end()
    begun(teardown).end()


@pytest.mark.parametrize("failure", [ValueError("broken"), dramatiq.middleware.SkipMessage("skipped")])
def test_a_message_that_fails_or_is_skipped_ends_its_turn(failure: Exception) -> None:
    turns, stub = SetUpsFirst(WAIT_SECONDS), dramatiq.brokers.stub.StubBroker(middleware=[])

    class Failing(dramatiq.Middleware):
        def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
            raise failure

    stub.add_middleware(turns.of_set_ups())
    stub.add_middleware(Failing())
    actor = dramatiq.actor(broker=stub)(_fail)
    worker = dramatiq.Worker(stub, worker_timeout=5, worker_threads=1)
    worker.start()
    try:
        actor.send()
        stub.join("default", timeout=int(WAIT_SECONDS * 1000), fail_fast=False)
        worker.join()
    finally:
        worker.stop()
    turns.of_teardowns().before_process_message(stub, None)  # type: ignore[arg-type]
    assert not turns._setting_up


def _fail() -> None:
    raise ValueError("broken")


def test_the_pools_of_a_worker_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, list[str]] = {}

    def broker(url: str, middleware: Any, *, name: str, **_more: Any) -> Any:
        made[name] = [type(each).__name__ for each in middleware]
        raise NotImplementedError

    monkeypatch.setattr("shared.queues.broker", broker)
    for pool, own in pools.POOLS.items():
        with pytest.raises(NotImplementedError):
            pools.build_pools(
                "redis://h",
                lambda _steps, _tag: {},
                store=None,  # type: ignore[arg-type]
                name="w",
                served=frozenset(own),
                threads=dict.fromkeys(pools.POOLS, 1),
            )
        assert (made[f"w/{pool}"][0] == "_Turns") is (pool != "resync")
