"""The broker as Dramatiq knows it: enqueues, and gives a worker its consumers."""

from __future__ import annotations

import queue as queues
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import dramatiq
import dramatiq.broker
import dramatiq.common
import dramatiq.errors
import redis

from shared.broker import scripts, session
from shared.broker.deliveries import Delivery, Verdict

#: Between two attempts to enqueue.
_PAUSE_SECONDS = 0.1
_JOIN_SECONDS = 0.02

_Message = dramatiq.Message[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many messages of a queue are where."""

    waiting: int
    delayed: int
    #: In workers' hands.
    held: int


def reference(message: _Message) -> str:
    """What a message is called within its queue. Its option `group` says whose it is: groups take turns."""
    return f"{message.options.get('group', '')}/{message.message_id}"


class Broker(dramatiq.Broker):
    """For any number of producers and at most one Worker.

    A message is enqueued once for each message id, as long as one of that id is there.

    Args:
        client: Gives bytes, repeats nothing by itself, and bounds each command well below the heartbeat's time-out.
        namespace: Begins every key.
        name: How the worker is called among others.
        capacity: Most messages in a worker's hands: as many as its threads, so that none waits there for a thread
            while another worker idles. None takes what the Worker prefetches.
        patience_seconds: How long enqueuing is tried while Redis is away.
        describe: Makes of an exception what the dead letter says of it.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        namespace: str = "dramatiq",
        name: str = "worker",
        capacity: int | None = None,
        patience_seconds: float = 2.0,
        describe: session.Describe = session.describe,
        middleware: Sequence[dramatiq.Middleware] | None = None,
    ) -> None:
        super().__init__(None if middleware is None else list(middleware))
        self.client = client
        self.namespace = namespace
        self.queues: dict[str, None] = {}
        self._name = name
        self._capacity = capacity
        self._patience_seconds = patience_seconds
        self._describe = describe
        self._lock = threading.Lock()
        self._member: session.Member | None = None
        self.add_middleware(_Drain())

    def declare_queue(self, queue_name: str) -> None:
        """Makes a queue known; of those a worker serves, the one that was declared first is served first."""
        if "/" in queue_name:
            raise ValueError(f"the name of a queue has no slash: {queue_name!r}")
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: _Message, *, delay: int | None = None) -> _Message:
        """Enqueues a message, to be worked on at once or after a delay in ms.

        A message in this worker's hands that is enqueued again is so when it is acknowledged, by the same request: it
        is in the queue or in hand at any moment, and never twice.

        Raises:
            ConnectionFailed: Redis could not be reached, or would not take it; it may be there all the same.
            QueueNotFound: The queue was not declared.
        """
        self._check(message.queue_name)
        self.emit_before("enqueue", message, delay)
        delay_ms = max(0, int(delay or 0))
        member = self._member
        name = f"{message.queue_name}/{reference(message)}".encode()
        held = member.holding(name) if member is not None else None
        if held is not None:
            held.again = (delay_ms, message.encode())
        else:
            self._put(message.queue_name, reference(message), message.encode(), delay_ms)
        self.emit_after("enqueue", message, delay)
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> dramatiq.Consumer:
        """A consumer of the queue; `timeout`, in ms, bounds one look into it."""
        self._check(queue_name)
        with self._lock:
            if self._member is None:
                self._member = session.Member(
                    self.client,
                    self.namespace,
                    self._name,
                    capacity=self._capacity or prefetch,
                    order=self.queues,
                    describe=self._describe,
                )
                self._member.start()
            return _Consumer(self, self._member, queue_name, self._member.serve(queue_name), timeout / 1000)

    def now_ms(self) -> int:
        """The time by Redis's clock, where a worker is; otherwise by this host's."""
        return self._member.now_ms() if self._member is not None else int(time.time() * 1000)

    def drain(self) -> None:
        """The worker takes nothing more; what it has not begun goes back at once."""
        if self._member is not None:
            self._member.drain()

    def unserve(self, member: session.Member, queue_name: str) -> None:
        """A consumer ends; with the last one its member leaves."""
        with self._lock:
            if member.unserve(queue_name) or self._member is not member:
                return
            self._member = None
        member.leave()

    def close(self) -> None:
        """Leaves, if a worker did not, and closes the connections."""
        with self._lock:
            member, self._member = self._member, None
        if member is not None:
            member.leave()
        self.client.close()

    def count(self, queue_names: Iterable[str]) -> dict[str, Count]:
        """How many messages are where. Raises redis.RedisError."""
        names = list(queue_names)
        numbers = iter(scripts.COUNT.run(self.client, self.namespace, *names))
        return {
            name: Count(waiting=waiting, delayed=delayed, held=held)
            for name, waiting, delayed, held in zip(names, numbers, numbers, numbers, strict=True)
        }

    def flush(self, queue_name: str) -> None:
        """Drops all messages of a queue."""
        scripts.FLUSH.run(self.client, self.namespace, queue_name)

    def flush_all(self) -> None:
        """Drops all messages of the declared queues."""
        for queue_name in self.queues:
            self.flush(queue_name)

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Waits until no message of the queue is waiting, delayed or held. For tests."""
        ends_at = None if timeout is None else time.monotonic() + timeout / 1000
        while self.client.hlen(f"{self.namespace}:queue:{queue_name}"):
            if ends_at is not None and time.monotonic() > ends_at:
                raise dramatiq.errors.QueueJoinTimeout(queue_name)
            time.sleep(_JOIN_SECONDS)

    def _check(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            raise dramatiq.errors.QueueNotFound(queue_name)

    def _put(self, *message: str | bytes | int) -> None:
        ends_at = time.monotonic() + self._patience_seconds
        while True:
            try:
                scripts.ENQUEUE.run(self.client, self.namespace, *message)
            except redis.RedisError as exc:
                if time.monotonic() + _PAUSE_SECONDS > ends_at:
                    reason = f"Redis does not take messages: {type(exc).__name__}: {exc}"
                    raise dramatiq.errors.ConnectionFailed(reason) from exc
                time.sleep(_PAUSE_SECONDS)
            else:
                return


class _Consumer(dramatiq.Consumer):
    """One queue's part of a member. Never fails: what Redis cannot be told now, the member tells it later."""

    def __init__(
        self,
        broker: Broker,
        member: session.Member,
        queue: str,
        inbox: queues.SimpleQueue[Delivery],
        timeout_seconds: float,
    ) -> None:
        self._broker = broker
        self._member = member
        self._queue = queue
        self._inbox = inbox
        self._timeout_seconds = timeout_seconds

    def __next__(self) -> Delivery | None:
        try:
            return self._inbox.get(timeout=self._timeout_seconds)
        except queues.Empty:
            return None

    def ack(self, message: dramatiq.broker.MessageProxy) -> None:
        """It is done, or to be done again."""
        self._member.settle(cast(Delivery, message), Verdict.DONE)

    def nack(self, message: dramatiq.broker.MessageProxy) -> None:
        """To the dead letters."""
        self._member.settle(cast(Delivery, message), Verdict.DEAD)

    def requeue(self, messages: Iterable[dramatiq.broker.MessageProxy]) -> None:
        """Back into the queue, before all others."""
        for message in messages:
            self._member.settle(cast(Delivery, message), Verdict.BACK)

    def close(self) -> None:
        """Takes no more of this queue."""
        self._broker.unserve(self._member, self._queue)


class _Drain(dramatiq.Middleware):
    """A worker that stops lets go at once of what it has not begun, and not when its longest task has ended."""

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        assert isinstance(broker, Broker)
        broker.drain()
        for item in dramatiq.common.iter_queue(worker.work_queue):
            worker.consumers[item.message.queue_name].requeue_messages([item.message])
            worker.work_queue.task_done()
