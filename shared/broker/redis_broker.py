"""The broker as Dramatiq knows it: enqueues messages and provides a worker's consumers."""

from __future__ import annotations

import itertools
import queue as queues
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import dramatiq
import dramatiq.broker
import dramatiq.common
import dramatiq.errors
import dramatiq.worker
import redis

from shared.broker import scripts, session
from shared.broker.bounds import Bounds
from shared.broker.deliveries import Delivery, Disposition

#: The pause between two tries to enqueue.
_PAUSE_SECONDS = 0.1
_JOIN_SECONDS = 0.02
#: Most messages that one request enqueues: while a script runs, Redis does nothing else.
_ENQUEUED_AT_ONCE = 100

_DEFAULT_BOUNDS = Bounds()

_Message = dramatiq.Message[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The number of messages of a queue, by state."""

    waiting: int
    delayed: int
    #: Delivered to a worker and not yet acknowledged.
    in_flight: int


def message_key(message: _Message) -> str:
    """Return the key of a message within its queue: its option `group`, then its id. Groups are served round robin."""
    return f"{message.options.get('group', '')}/{message.message_id}"


def affinity(message: _Message) -> str:
    """Return the tag of the session to which the message should go, from its option `affinity`; empty for any.

    A hint: if there is no such session, or it has no free capacity, the message goes to another.
    """
    return str(message.options.get("affinity", ""))


def is_bounded(message: _Message) -> bool:
    """Return whether the message counts against the bounds of its group, by its option `bounded`.

    It is refused when its group has as much in the queues as it may: what a peer may send at will is bounded, what the
    product orders itself is not.
    """
    return bool(message.options.get("bounded"))


def unique(message: _Message) -> tuple[str, bool]:
    """Return the message's unique name, from its option `unique`, and whether it supersedes another of that name.

    Of the messages of one group and one unique name, at most one waits. A further one is dropped, or takes the place of
    that one, by its option `supersedes`. One that is in work is none that waits: it may have begun too early. An empty
    name is none.
    """
    return str(message.options.get("unique", "")), bool(message.options.get("supersedes"))


class GroupFull(dramatiq.errors.BrokerError):
    """A bounded message was refused: its group has as much in the queues as it may. Nothing was enqueued of it."""


class Broker(dramatiq.Broker):
    """A broker for any number of producers and at most one Worker.

    Enqueuing is idempotent: while a message of the same id is in the queue, in whatever state, it is skipped.

    Args:
        client: Returns bytes, never retries, and bounds each command well below the session time-out.
        namespace: The prefix of every key.
        name: Worker name, the beginning of its session's id.
        capacity: Most messages in flight in the worker: its number of threads, so that no message waits for a thread
            while another worker is idle. None means what the Worker prefetches.
        patience_seconds: How long enqueuing is tried while Redis is away.
        describe: Returns the dead letter's reason for an exception.
        bounds: What one group, and the dead letters, may take up.
        redis_ms: Returns the time by Redis's clock, for a broker without a worker; None while it is not known.

    Attributes:
        tag: Messages with this `affinity` go to this broker's worker, if it can take them.
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
        bounds: Bounds = _DEFAULT_BOUNDS,
        redis_ms: Callable[[], int | None] = lambda: None,
        middleware: Sequence[dramatiq.Middleware] | None = None,
    ) -> None:
        super().__init__(None if middleware is None else list(middleware))
        self.client = client
        self.namespace = namespace
        self.queues: dict[str, None] = {}
        self.tag = secrets.token_hex(4)
        self._name = name
        self._capacity = capacity
        self._patience_seconds = patience_seconds
        self._describe = describe
        self._bounds = bounds
        self._redis_ms = redis_ms
        self._lock = threading.Lock()
        self._session: session.WorkerSession | None = None
        self.add_middleware(_Drain())
        self.add_middleware(_Receive())

    def declare_queue(self, queue_name: str) -> None:
        """Make a queue known. Of the queues a worker serves, those declared first are served first."""
        if "/" in queue_name:
            raise ValueError(f"slash in a queue name: {queue_name!r}; choose a name without")
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: _Message, *, delay: int | None = None) -> _Message:
        """Enqueue a message, for now or after a delay in ms.

        A message that is in flight in this worker is enqueued again by the request that acknowledges it. So at any
        moment it is either in flight or in its queue, and never in both.

        Raises:
            ConnectionFailed: Redis was unreachable or rejected the message; it may have been enqueued all the same.
            GroupFull: It is bounded, and its group is full.
            QueueNotFound: The queue was not declared.
        """
        self._check(message.queue_name)
        self.emit_before("enqueue", message, delay)
        delay_ms = max(0, int(delay or 0))
        current = self._session
        key = message_key(message)
        delivery = current.in_flight(f"{message.queue_name}/{key}".encode()) if current is not None else None
        if delivery is not None:
            delivery.retry = (delay_ms, self._stamped(message, delay_ms).encode())
        else:
            self._store(_arguments(self._stamped(message, delay_ms), delay_ms))
        self.emit_after("enqueue", message, delay)
        return message

    def enqueue_all(self, messages: Iterable[_Message]) -> None:
        """Enqueue new messages, for now, with one request for many of them: for producers of thousands.

        Raises:
            ConnectionFailed: As `enqueue`; messages of earlier requests are enqueued.
            GroupFull: As `enqueue`; the others are enqueued, as far as they were looked at.
            QueueNotFound: A queue was not declared.
        """
        waiting = iter(messages)
        while batch := list(itertools.islice(waiting, _ENQUEUED_AT_ONCE)):
            arguments: list[str | bytes | int] = []
            for message in batch:
                self._check(message.queue_name)
                self.emit_before("enqueue", message, None)
                arguments += _arguments(self._stamped(message, 0), 0)
            self._store(arguments)
            for message in batch:
                self.emit_after("enqueue", message, None)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> dramatiq.Consumer:
        """Return a consumer of the queue; `timeout`, in ms, bounds each wait for a message."""
        self._check(queue_name)
        with self._lock:
            if self._session is None:
                self._session = session.WorkerSession(
                    self.client,
                    self.namespace,
                    self._name,
                    tag=self.tag,
                    capacity=self._capacity or prefetch,
                    order=self.queues,
                    describe=self._describe,
                    bounds=self._bounds,
                )
                self._session.start()
            return _Consumer(self, self._session, queue_name, self._session.serve(queue_name), timeout / 1000)

    def receive(self, seconds: float, wanted: Callable[[], bool]) -> Delivery | None:
        """Wait for a message that is pushed to the worker, as `WorkerSession.receive` does."""
        current = self._session
        if current is None:
            time.sleep(_JOIN_SECONDS)
            return None
        return current.receive(seconds, wanted)

    def now_ms(self) -> int:
        """Return the time by Redis's clock if a worker is running, otherwise by the host's."""
        return self._session.now_ms() if self._session is not None else int(time.time() * 1000)

    def sessions(self) -> int:
        """Return the number of sessions of all workers, as of the last poll; 1 before the first.

        While Redis is away it stays what it was.
        """
        return self._session.sessions() if self._session is not None else 1

    def lives_since(self, moment: float) -> bool:
        """Return whether the worker's session has counted as alive without a break since then, by `time.monotonic`."""
        return self._session is not None and self._session.lives_since(moment)

    def live_sessions(self) -> list[str] | None:
        """Expire the sessions that show no life; return the ids of the others. Needs no session of its own.

        None while it is not known which live: Redis was away or emptied, and they may not have polled since. Raises
        redis.RedisError.
        """
        found = scripts.SESSIONS.run(self.client, self.namespace, session.TIMEOUT_MS)
        return None if found is None else [each.decode() for each in found]

    def drain(self) -> None:
        """Fetch no more messages for the worker and requeue those no actor has begun."""
        if self._session is not None:
            self._session.drain()

    def unserve(self, ended: session.WorkerSession, queue_name: str) -> None:
        """End a consumer's part of a session; the last consumer closes the session."""
        with self._lock:
            if ended.unserve(queue_name) or self._session is not ended:
                return
            self._session = None
        ended.close()

    def close(self) -> None:
        """Close the session, if there still is one, and the connections."""
        with self._lock:
            ended, self._session = self._session, None
        if ended is not None:
            ended.close()
        self.client.close()

    def count(self, queue_names: Iterable[str]) -> dict[str, Count]:
        """Count the messages of the queues, by state. Raises redis.RedisError."""
        names = list(queue_names)
        numbers = iter(scripts.COUNT.run(self.client, self.namespace, *names))
        return {
            name: Count(waiting=waiting, delayed=delayed, in_flight=in_flight)
            for name, waiting, delayed, in_flight in zip(names, numbers, numbers, numbers, strict=True)
        }

    def flush(self, queue_name: str) -> None:
        """Delete all messages of a queue."""
        scripts.FLUSH.run(self.client, self.namespace, queue_name)

    def flush_all(self) -> None:
        """Delete all messages of the declared queues."""
        for queue_name in self.queues:
            self.flush(queue_name)

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until the queue has no message in any state. For tests."""
        ends_at = None if timeout is None else time.monotonic() + timeout / 1000
        while self.client.hlen(f"{self.namespace}:queue:{queue_name}"):
            if ends_at is not None and time.monotonic() > ends_at:
                raise dramatiq.errors.QueueJoinTimeout(queue_name)
            time.sleep(_JOIN_SECONDS)

    def oldest_ms(self, queue_names: Iterable[str]) -> dict[str, int]:
        """Return how long the message has waited that has waited longest, of each queue; 0 if none waits.

        Messages of which nothing told when they were due are left out. Raises redis.RedisError.
        """
        names = list(queue_names)
        return dict(zip(names, scripts.OLDEST.run(self.client, self.namespace, *names), strict=True))

    def dead_letters(self) -> int:
        """Return the number of dead letters that Redis keeps. Raises redis.RedisError."""
        return int(self.client.xlen(f"{self.namespace}:dead-letters"))

    def _stamped(self, message: _Message, delay_ms: int) -> _Message:
        """Return a message that tells when it is due, by Redis's clock, in the field that has the host's otherwise."""
        now_ms = self._session.now_ms() if self._session is not None else self._redis_ms()
        return message if now_ms is None else message.copy(message_timestamp=now_ms + delay_ms)

    def _check(self, queue_name: str) -> None:
        if queue_name not in self.queues:
            raise dramatiq.errors.QueueNotFound(queue_name)

    def _store(self, messages: Sequence[str | bytes | int]) -> None:
        ends_at = time.monotonic() + self._patience_seconds
        most = (self._bounds.group_messages, self._bounds.group_bytes)
        while True:
            try:
                refused = scripts.ENQUEUE.run(self.client, self.namespace, *most, *messages)
            except redis.RedisError as exc:
                if time.monotonic() + _PAUSE_SECONDS > ends_at:
                    reason = f"message not enqueued, check Redis: {type(exc).__name__}: {exc}"
                    raise dramatiq.errors.ConnectionFailed(reason) from exc
                time.sleep(_PAUSE_SECONDS)
                continue
            if refused:
                reason = f"{len(refused)} messages refused: their group has too many waiting"
                raise GroupFull(reason)  # type: ignore[no-untyped-call]  # dramatiq's
            return


def _arguments(message: _Message, delay_ms: int) -> Sequence[str | bytes | int]:
    """Return the arguments of `enqueue.lua`."""
    name, supersedes = unique(message)
    return (
        message.queue_name,
        message_key(message),
        message.encode(),
        delay_ms,
        affinity(message),
        int(is_bounded(message)),
        name,
        int(supersedes),
    )


class _Consumer(dramatiq.Consumer):
    """One queue's part of a session. Never fails: the session reports to Redis, and repeats what has failed."""

    def __init__(
        self,
        broker: Broker,
        served_by: session.WorkerSession,
        queue: str,
        inbox: queues.SimpleQueue[Delivery],
        timeout_seconds: float,
    ) -> None:
        self._broker = broker
        self._session = served_by
        self._queue = queue
        self._inbox = inbox
        self._timeout_seconds = timeout_seconds

    def __next__(self) -> Delivery | None:
        try:
            return self._inbox.get(timeout=self._timeout_seconds)
        except queues.Empty:
            return None

    def ack(self, message: dramatiq.broker.MessageProxy) -> None:
        """Settle a message that was processed, or that is to be retried."""
        self._session.settle(cast(Delivery, message), Disposition.ACK)

    def nack(self, message: dramatiq.broker.MessageProxy) -> None:
        """Move a message to the dead letters."""
        self._session.settle(cast(Delivery, message), Disposition.DEAD_LETTER)

    def requeue(self, messages: Iterable[dramatiq.broker.MessageProxy]) -> None:
        """Put messages back at the front of their groups."""
        for message in messages:
            self._session.settle(cast(Delivery, message), Disposition.REQUEUE)

    def close(self) -> None:
        """Stop serving this queue."""
        self._broker.unserve(self._session, self._queue)


class _Drain(dramatiq.Middleware):
    """Requeues what a stopping worker has not begun: at once, not when its longest task has ended."""

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        assert isinstance(broker, Broker)
        broker.drain()
        for item in dramatiq.common.iter_queue(worker.work_queue):
            worker.consumers[item.message.queue_name].requeue_messages([item.message])
            worker.work_queue.task_done()


class _Receive(dramatiq.Middleware):
    """Gives a worker as many threads for what is pushed to it as it has for what it polls.

    There is always one that is free to listen while the worker has capacity; together they never run more than that.
    """

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        for _ in range(worker.worker_threads):
            receiver = _Receiver(broker, worker)
            receiver.start()
            worker.workers.append(receiver)


class _Receiver(dramatiq.worker.WorkerThread):
    """Processes the messages that it has received by itself."""

    def __init__(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        super().__init__(
            broker=broker,
            consumers=worker.consumers,
            work_queue=_NoQueue(),
            worker_timeout=worker.worker_timeout,
        )

    def run(self) -> None:
        broker = cast(Broker, self.broker)
        self.running = True
        while self.running:
            if self.paused:
                self.paused_event.set()
                time.sleep(self.timeout)
            elif (message := broker.receive(self.timeout, lambda: self.running)) is not None:
                self.process_message(message)


class _NoQueue(queues.PriorityQueue[Any]):
    """What is received was in no queue of the worker."""

    def task_done(self) -> None:
        pass
