"""Crews: a worker's threads, divided so that a flood of one kind of message holds up no other.

A crew serves its queues in the order of `messages.QUEUES`; what goes on in another crew is nothing to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import dramatiq

from shared import errors, messages, queues
from shared.broker import redis_broker, retries
from shared.call.limits import Step
from workers import actors
from workers.dead_letters import DeadLetters
from workers.ports import Tools

#: WorkerPool → its queues. Calls are set up by threads that nothing else can take.
POOLS = {
    "set-up": frozenset(messages.QUEUES) - {"teardown", "resync"},
    "teardown": frozenset({"teardown"}),
    "resync": frozenset({"resync"}),
}


class WorkerPool:
    """Some threads for some queues, with a place of their own at the broker."""

    def __init__(self, broker: redis_broker.Broker, *, served: frozenset[str], threads: int) -> None:
        self._broker = broker
        self._worker = dramatiq.Worker(broker, queues=set(served), worker_threads=threads)

    def start(self) -> None:
        """Begins to work."""
        self._worker.start()

    def drain(self) -> None:
        """Begins nothing more."""
        self._broker.drain()

    def stop(self, seconds: float) -> None:
        """Finishes what is in hand, within a bound."""
        self._worker.stop(timeout=int(seconds * 1000))
        self._broker.close()


def muster(
    redis_url: str,
    tools: Callable[[frozenset[Step]], Tools],
    *,
    name: str,
    served: frozenset[str],
    threads: Mapping[str, int],
) -> list[WorkerPool]:
    """The crews of one worker.

    Args:
        tools: Makes the ports of threads that serve these steps.
        name: The worker's.
        served: The queues it serves; empty means all. A crew that has none of them is not needed.
        threads: WorkerPool → how many.
    """
    mustered = []
    for crew, own in POOLS.items():
        if its_queues := own & (served or own):
            # What a set-up goes on to at once must not be done by a resync's thread that has found a missed caller.
            its_tools = tools(frozenset(step for step in Step if step in its_queues))
            broker = queues.broker(
                redis_url,
                [DeadLetters(its_tools.writer.store), retries.Retries(outages=(errors.DatabaseUnavailable,))],
                name=f"{name}/{crew}",
                threads=threads[crew],
            )
            actors.declare(broker, its_tools)
            mustered.append(WorkerPool(broker, served=its_queues, threads=threads[crew]))
    return mustered


def stop(crews: Sequence[WorkerPool], seconds: float) -> None:
    """Stops all of them at the same time."""
    for crew in crews:
        crew.drain()
    stopping = [threading.Thread(target=crew.stop, args=(seconds,), name="stop") for crew in crews]
    for thread in stopping:
        thread.start()
    for thread in stopping:
        thread.join()
