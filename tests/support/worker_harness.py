"""Workers in this process, on a broker of the test, that record what they ran."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dramatiq
import redis

from shared import queues
from shared.broker import redis_broker, retries
from shared.broker.bounds import Bounds

NAMESPACE = "harness"
QUEUES = ("first", "second")
_BOUNDS = Bounds()

Message = dramatiq.Message[Any]


class WorkerHarness:
    """A broker and its worker. The actor of each queue records its argument, then calls `does` with it."""

    def __init__(
        self,
        url: str,
        *,
        threads: int = 4,
        name: str = "worker",
        middleware: Sequence[dramatiq.Middleware] = (),
        patience_seconds: float = 2.0,
        delays_ms: Sequence[int] = (20, 40),
        for_ms: int = 20_000,
        bounds: Bounds = _BOUNDS,
    ) -> None:
        self.broker = redis_broker.Broker(
            queues.client(url),
            namespace=NAMESPACE,
            name=name,
            capacity=threads,
            patience_seconds=patience_seconds,
            bounds=bounds,
            middleware=[*middleware, retries.Retries(delays_ms, for_ms)],
        )
        self.ran: list[Any] = []
        self.began: list[Any] = []
        self.times: dict[Any, float] = {}
        self.does: Callable[[Any], None] = lambda what: None
        for queue in QUEUES:
            self.broker.declare_queue(queue)
            dramatiq.actor(actor_name=f"act_{queue}", queue_name=queue, broker=self.broker, throws=KeyError)(self._act)
        self._threads = threads
        self.worker = self.new_worker()

    def new_worker(self, *served: str) -> dramatiq.Worker:
        return dramatiq.Worker(self.broker, queues=set(served) or None, worker_threads=self._threads, worker_timeout=50)

    def _act(self, what: Any) -> None:
        self.times[str(what)] = time.monotonic()
        self.began.append(what)
        self.does(what)
        self.ran.append(what)

    def send(
        self, what: Any = 0, *, queue: str = "first", group: object = "", delay_ms: int | None = None, **options: Any
    ) -> Message:
        message: Message = dramatiq.Message(queue, f"act_{queue}", (what,), {}, {"group": group, **options})
        self.broker.enqueue(message, delay=delay_ms)
        return message

    def wait(self, count: int, *, seconds: float = 10.0) -> None:
        """Wait until so many messages ran."""
        until(lambda: len(self.ran) >= count, seconds=seconds, what=lambda: f"{len(self.ran)} of {count} ran")

    def dead_letters(self) -> list[dict[bytes, bytes]]:
        """Return the dead letters, the oldest first."""
        entries: Any = self.broker.client.xrange(f"{NAMESPACE}:dead-letters")
        return [fields for _, fields in entries]

    @contextlib.contextmanager
    def working(self) -> Iterator[WorkerHarness]:
        """Run the worker until the end of the block."""
        self.worker.start()
        try:
            yield self
        finally:
            self.worker.stop(timeout=10_000)
            self.broker.close()


def until(holds: Callable[[], object], *, seconds: float, what: Callable[[], str] | str) -> object:
    """Poll until it holds, and return what it returned; fail with the text after so many seconds."""
    ends_at = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < ends_at, f"{what if isinstance(what, str) else what()} after {seconds} s"
        time.sleep(0.003)
    return found


def add_waiting(client: redis.Redis, what: Any) -> None:
    """Add a message that waits, without a wake-up."""
    message: Message = dramatiq.Message("first", "act_first", (what,), {}, {})
    name, message_key = f"{NAMESPACE}:queue:first", redis_broker.message_key(message)
    client.hset(name, message_key, message.encode())
    client.rpush(f"{name}:group:", message_key)
    client.rpush(f"{name}:rotation", "")


def idle(client: redis.Redis) -> int:
    """Return how many workers are idle, to be woken for the first queue."""
    return int(client.zcard(f"{NAMESPACE}:queue:first:idle"))


def subscribed(client: redis.Redis) -> int:
    """Return how many workers listen for what is pushed to them."""
    return len(client.pubsub_channels(f"{NAMESPACE}:wake:*"))


def with_credit(client: redis.Redis) -> int:
    """Return how many workers get messages pushed: their subscription is confirmed, and they have capacity."""
    credits_left: Any = client.hvals(f"{NAMESPACE}:credits")
    return sum(int(each) > 0 for each in credits_left)


def longest_idle(client: redis.Redis) -> int:
    """Return the number of the worker (`worker-3`) that has been idle longest on the first queue."""
    found: Any = client.zrange(f"{NAMESPACE}:queue:first:idle", 0, 0)
    return int(found[0].decode().partition("/")[0].removeprefix("worker-"))


def sessions(client: redis.Redis) -> list[bytes]:
    """Return the sessions registered in Redis."""
    found: Any = client.zrange(f"{NAMESPACE}:sessions", 0, -1)
    return list(found)


class Latch:
    """Blocks the actors that call it until it is released."""

    def __init__(self) -> None:
        self._released = threading.Event()

    def __call__(self, what: Any) -> None:
        assert self._released.wait(30), "the test did not release the latch"

    def release(self) -> None:
        self._released.set()
