"""The broker: Dramatiq on Redis, the same for everyone who enqueues or works."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import dramatiq
import redis
import redis.backoff
import redis.retry

from shared import errors, keys, messages, wakes
from shared.core import commands

#: A worker silent for this long is taken for dead, and its messages go to another. Dramatiq's default is a minute.
HEARTBEAT_TIMEOUT_MS = 10_000
#: How many of a million commands look for dead workers; an idle worker sends some ten a second.
MAINTENANCE_CHANCE = 20_000


def client(url: str) -> redis.Redis:
    """A client whose every command is bounded in time."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=2,
        socket_timeout=3,
        health_check_interval=15,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    )


def broker(url: str, middleware: Sequence[dramatiq.Middleware] = ()) -> wakes.WakingBroker:
    """A broker with all our queues; connects when first used."""
    made = wakes.WakingBroker(
        client=client(url),
        namespace=keys.NAMESPACE,
        heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
        maintenance_chance=MAINTENANCE_CHANCE,
        middleware=list(middleware),
    )
    for queue in messages.QUEUES:
        made.declare_queue(queue)
    return made


class BrokerOrders:
    """Gives the core's orders to the broker."""

    def __init__(self, made: wakes.WakingBroker) -> None:
        self._broker = made

    def give(self, orders: Sequence[commands.Command]) -> None:
        """Enqueues them, each by name. Raises QueueUnavailable."""
        for order in orders:
            self.send(messages.of_command(order))

    def send(self, message: messages.Message, *, wait: timedelta | None = None) -> None:
        """Enqueues one message, to be worked on at once or after a while. Raises QueueUnavailable."""
        delay_ms = None if wait is None else int(wait.total_seconds() * 1000)
        try:
            self._broker.enqueue(message, delay=delay_ms)
        except redis.RedisError as exc:
            raise errors.QueueUnavailable(f"Redis: {type(exc).__name__}") from exc

    def waiting(self, queue: str) -> int:
        """How many messages wait in a queue. Raises QueueUnavailable."""
        try:
            return int(self._broker.client.llen(f"{keys.NAMESPACE}:{queue}"))
        except redis.RedisError as exc:
            raise errors.QueueUnavailable(f"Redis: {type(exc).__name__}") from exc
