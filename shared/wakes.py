"""An idle consumer sleeps until its queue is pushed to, instead of asking Redis again and again.

Whoever enqueues publishes the queue's name. A wake-up that is lost costs at most POLL_SECONDS: publishing is a hint,
the queue is the truth.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import dramatiq
import dramatiq.common
import dramatiq.errors
import redis
import structlog
from dramatiq.brokers import redis as redis_broker

from shared import keys

log = structlog.stdlib.get_logger(__name__)

#: How long a consumer sleeps at most before it looks by itself.
POLL_SECONDS = 1.0
#: How often the consumer of a queue of delayed messages lets Dramatiq look whether one is due; asks Redis for nothing.
_DUE_SECONDS = 0.05
_RECONNECT_SECONDS = 0.5


class Announce(dramatiq.Middleware):
    """Publishes the queue of each message enqueued."""

    def after_enqueue(self, broker: Any, message: dramatiq.Message[Any], delay: int | None) -> None:
        """A lost announcement is made up for by the consumers' own looks."""
        queue = message.queue_name if delay is None else dramatiq.common.dq_name(message.queue_name)
        try:
            broker.client.publish(keys.WAKE, queue)
        except redis.RedisError:
            log.debug("wake-up not announced", queue=queue)


class WakingBroker(redis_broker.RedisBroker):
    """Dramatiq's Redis broker, whose consumers are woken."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]  # Dramatiq annotates it not
        self._bells: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._ears: threading.Thread | None = None
        self._lock = threading.Lock()
        self.add_middleware(Announce())

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> dramatiq.Consumer:
        """A consumer of the queue; the first one starts listening for wake-ups."""
        with self._lock:
            if self._ears is None:
                self._ears = threading.Thread(target=self._listen, name="wake-ups", daemon=True)
                self._ears.start()
        # Dramatiq's own consumer sleeps when it finds nothing, for 1 ms at most here; the real sleep is ours.
        inner = super().consume(queue_name, prefetch, 1)
        is_delayed = queue_name != dramatiq.common.q_name(queue_name)
        return _WokenConsumer(inner, self._bells[queue_name], prefetch, is_delayed=is_delayed)

    def _listen(self) -> None:
        while True:
            try:
                with self.client.pubsub(ignore_subscribe_messages=True) as subscription:
                    subscription.subscribe(keys.WAKE)
                    # What was announced while nobody listened is looked for at once.
                    self._ring(list(self._bells))
                    while True:
                        message = subscription.get_message(timeout=POLL_SECONDS)
                        if message is not None:
                            self._ring([message["data"].decode()])
            except redis.RedisError:
                time.sleep(_RECONNECT_SECONDS)

    def _ring(self, queues: Iterable[str]) -> None:
        for queue in queues:
            self._bells[queue].set()


class _WokenConsumer(dramatiq.Consumer):
    """Fetches by Dramatiq's consumer, sleeps by itself."""

    def __init__(self, inner: Any, bell: threading.Event, prefetch: int, *, is_delayed: bool) -> None:
        self._inner = inner
        self._bell = bell
        self._prefetch = prefetch
        self._is_delayed = is_delayed
        self._look_at = 0.0

    def __next__(self) -> Any:
        if self._is_delayed and time.monotonic() < self._look_at and not self._bell.is_set():
            self._bell.wait(_DUE_SECONDS)
            return None
        # Cleared before the look: what is announced during it rings again.
        self._bell.clear()
        self._look_at = time.monotonic() + POLL_SECONDS
        try:
            message = next(self._inner)
        except redis.TimeoutError as exc:
            raise dramatiq.errors.ConnectionClosed(exc) from None
        if message is None and not self._is_delayed:
            self._bell.wait(POLL_SECONDS)
        return message

    def ack(self, message: Any) -> None:
        """Gives a place for another message."""
        self._settle(self._inner.ack, message)

    def nack(self, message: Any) -> None:
        """To the dead letters; gives a place for another message."""
        self._settle(self._inner.nack, message)

    def requeue(self, messages: Iterable[Any]) -> None:
        """Back into the queue."""
        self._inner.requeue(messages)

    def close(self) -> None:
        """Nothing of ours is open."""
        self._inner.close()

    def _settle(self, settle: Any, message: Any) -> None:
        was_full = self._inner.outstanding_message_count >= self._prefetch
        try:
            settle(message)
        except redis.TimeoutError as exc:
            # Dramatiq repeats what failed by a lost connection, and nothing else.
            raise dramatiq.errors.ConnectionClosed(exc) from None
        if was_full:
            self._bell.set()
