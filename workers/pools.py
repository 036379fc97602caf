"""Thread pools of a worker process. Each serves its own queues, so a backlog in one cannot starve the others.

A pool serves its queues in the order of `messages.QUEUES`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence

import dramatiq

from shared import errors, messages, queues
from shared.broker import redis_broker, retries
from shared.broker.bounds import Bounds
from shared.call.steps import Step
from shared.storage.call_store import CallStore
from workers import actors
from workers.dead_letters import DeadLetters
from workers.message_context import MessageContext
from workers.set_ups_first import SetUpsFirst
from workers.step_ports import Handler

#: Pool → its queues. The threads that set calls up are not available for anything else.
POOLS = {
    "set-up": frozenset(messages.QUEUES) - {Step.TEARDOWN, messages.RESYNC, messages.APPS},
    "teardown": frozenset({Step.TEARDOWN}),
    "resync": frozenset({messages.RESYNC, messages.APPS}),
}

#: What a message is not to blame for.
OUTAGES = (errors.DatabaseAway,)
_DEFAULT_BOUNDS = Bounds()


class WorkerPool:
    """Some threads for some queues, with a broker session of their own."""

    def __init__(self, broker: redis_broker.Broker, *, served: Collection[str], threads: int) -> None:
        self._broker = broker
        self._worker = dramatiq.Worker(broker, queues=set(served), worker_threads=threads)

    @property
    def sessions(self) -> int:
        """The number of broker sessions of all workers' pools, as far as this one knows."""
        return self._broker.sessions()

    def lives_since(self, moment: float) -> bool:
        """Return whether its session has counted as alive without a break since then, by `time.monotonic`."""
        return self._broker.lives_since(moment)

    def start(self) -> None:
        """Start to work."""
        self._worker.start()

    def drain(self) -> None:
        """Begin no more messages."""
        self._broker.drain()

    def stop(self, seconds: float) -> None:
        """Finish the messages in work, within a bound."""
        self._worker.stop(timeout=int(seconds * 1000))
        self._broker.close()


def served_steps(pool_queues: Collection[str]) -> frozenset[Step]:
    """Return the steps of a pool's queues: to these its threads go on by themselves.

    The resync pool has none, so a caller it adopts is set up by the set-up pool: its own threads must not wait for an
    Asterisk once for each caller.
    """
    return frozenset(step for step in Step if step in pool_queues)


def build_pools(
    redis_url: str,
    handlers: Callable[[frozenset[Step], str], Mapping[str, Handler]],
    *,
    store: CallStore,
    name: str,
    served: frozenset[str],
    threads: Mapping[str, int],
    bounds: Bounds = _DEFAULT_BOUNDS,
    age_ms: Callable[[int], float] = lambda _at_ms: 0.0,
) -> list[WorkerPool]:
    """Return the pools of one worker.

    Args:
        handlers: Returns the handlers of a pool that serves these steps and whose session has this tag.
        store: Where dead letters are recorded.
        name: The worker's.
        served: The queues it serves; empty means all. A pool without any of them is left out.
        threads: Pool → its number of threads.
        bounds: What a connection's events, and the dead letters, may take up in Redis.
        age_ms: Returns how long ago a moment of Redis's clock was, in ms; 0 when unknown.
    """
    pools, set_ups_first = [], SetUpsFirst()
    # Outermost: what a message waits for its turn counts as its wait in the queue.
    turns = {"set-up": [set_ups_first.of_set_ups()], "teardown": [set_ups_first.of_teardowns()]}
    # What has a queue of its own for the sake of earlier releases is not left out by a setting of theirs.
    served |= {messages.APPS} if messages.RESYNC in served else frozenset()
    for pool, all_queues in POOLS.items():
        if pool_queues := all_queues & (served or all_queues):
            broker = queues.broker(
                redis_url,
                [*turns.get(pool, ()), MessageContext(age_ms), DeadLetters(store), retries.Retries(outages=OUTAGES)],
                name=f"{name}/{pool}",
                threads=threads[pool],
                bounds=bounds,
            )
            actors.declare(broker, handlers(served_steps(pool_queues), broker.tag))
            pools.append(WorkerPool(broker, served=pool_queues, threads=threads[pool]))
    return pools


def lives_since(pools: Sequence[WorkerPool], moment: float) -> bool:
    """Return whether this process has counted as alive without a break since then: one of its pools is enough."""
    return any(pool.lives_since(moment) for pool in pools)


def share(pools: Sequence[WorkerPool], whole: int) -> int:
    """Return this process's part of what all workers together may have: each of their pools has an equal one.

    It costs no request: each poll's reply says how many pools there are.
    """
    there = max(1, len(pools), *(pool.sessions for pool in pools))
    return whole * len(pools) // there


def stop(pools: Sequence[WorkerPool], seconds: float) -> None:
    """Stop all of them at the same time."""
    for pool in pools:
        pool.drain()
    stopping = [threading.Thread(target=pool.stop, args=(seconds,), name="stop") for pool in pools]
    for thread in stopping:
        thread.start()
    for thread in stopping:
        thread.join()
