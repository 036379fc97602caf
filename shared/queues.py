"""The broker with this project's queues, for every process that enqueues or works."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

import dramatiq
import dramatiq.errors
import redis

from shared import errors, keys, messages, spans
from shared.broker import redis_broker, redis_clients
from shared.broker.bounds import Bounds
from shared.call.commands import Command
from shared.process import logs

_DEFAULT_BOUNDS = Bounds()


def client(url: str) -> redis.Redis:
    """Return a client whose every command has a time limit."""
    return redis_clients.client(url)


def broker(
    url: str,
    middleware: Sequence[dramatiq.Middleware] = (),
    *,
    name: str = "producer",
    threads: int | None = None,
    bounds: Bounds = _DEFAULT_BOUNDS,
    redis_ms: Callable[[], int | None] = lambda: None,
) -> redis_broker.Broker:
    """Return a broker with all queues declared; it connects on first use.

    Args:
        name: Worker name, for logs and heartbeats.
        threads: Size of the worker's pool.
        bounds: What a connection's events, and the dead letters, may take up.
        redis_ms: Redis's clock, where no worker knows it.
    """
    made = redis_broker.Broker(
        client(url),
        namespace=keys.NAMESPACE,
        name=name,
        capacity=threads,
        describe=_describe,
        bounds=bounds,
        redis_ms=redis_ms,
        middleware=middleware,
    )
    for queue in messages.QUEUES:
        made.declare_queue(queue)
    return made


class BrokerCommandQueue:
    """Enqueues the core's commands as messages."""

    def __init__(self, made: redis_broker.Broker) -> None:
        self._broker = made

    def enqueue(self, commands: Sequence[Command], *, connection_id: int) -> None:
        """Enqueue a message for each command. Raises QueueUnavailable."""
        for command in commands:
            self.send(messages.of_command(command, connection_id=connection_id), wait=command.pause or None)

    def send(self, message: messages.Message, *, wait: timedelta | None = None) -> None:
        """Enqueue one message, for now or after a delay. Raises QueueUnavailable."""
        delay_ms = None if wait is None else int(wait.total_seconds() * 1000)
        try:
            with spans.sending(message.queue_name, message.message_id, message.kwargs.get("call_id")) as traceparent:
                if traceparent:
                    message.options[messages.TRACEPARENT] = traceparent
                self._broker.enqueue(message, delay=delay_ms)
        except (dramatiq.errors.BrokerConnectionError, redis_broker.GroupFull) as exc:
            raise errors.QueueUnavailable(logs.redact(str(exc))) from exc

    def send_all(self, made: Iterable[messages.Message]) -> None:
        """Enqueue new messages, for now, many with each request. Raises QueueUnavailable; some are enqueued by then."""
        try:
            self._broker.enqueue_all(made)
        except (dramatiq.errors.BrokerConnectionError, redis_broker.GroupFull) as exc:
            raise errors.QueueUnavailable(logs.redact(str(exc))) from exc


class LiveWorkers:
    """Which workers live, as their sessions with the broker show it. A worker lives as long as one of its sessions."""

    def __init__(self, made: redis_broker.Broker) -> None:
        self._broker = made

    def names(self) -> frozenset[str] | None:
        """Return their names; None while they are not known: Redis was away or emptied. Raises QueueUnavailable."""
        try:
            sessions = self._broker.live_sessions()
        except redis.RedisError as exc:
            raise errors.QueueUnavailable(logs.redact(f"{type(exc).__name__}: {exc}")) from exc
        # A session is named <worker>/<pool>/<tag>.
        return None if sessions is None else frozenset(each.rsplit("/", 2)[0] for each in sessions)


def _describe(exception: BaseException) -> str:
    """Return the error in a line, and its traceback: of a dead letter the beginning is kept."""
    error = f"{type(exception).__name__}: {exception}".partition("\n")[0]
    return logs.redact("".join([f"{error}\n", *traceback.format_exception(exception)]))
