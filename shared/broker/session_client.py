"""A worker session's requests to Redis: poll, redeliver, deregister, and the subscription to its wake-ups."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from shared.broker import scripts
from shared.broker.deliveries import Delivery, Settlement

#: How long the wake-up subscription waits before it checks whether it is to end.
_SUBSCRIPTION_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PollResult:
    """The reply to a poll."""

    #: How many messages Redis has in flight for this session, those of this reply included.
    in_flight: int
    #: When the next delayed message is due; None without one.
    due_seconds: float | None
    fetched: list[Delivery]


class SessionClient:
    """The requests of one session. Each raises redis.RedisError."""

    def __init__(self, client: redis.Redis, namespace: str, name: str, *, timeout_ms: int) -> None:
        self.id = f"{name}/{uuid.uuid4().hex[:12]}"
        self._client = client
        self._namespace = namespace
        self._timeout_ms = timeout_ms
        #: Redis's clock less this process's monotonic one.
        self._offset_ms = int((time.time() - time.monotonic()) * 1000)

    def now_ms(self) -> int:
        """Return the time by Redis's clock, as of the last poll."""
        return int(time.monotonic() * 1000) + self._offset_ms

    def poll(
        self,
        *,
        free: int,
        queues: Sequence[str],
        fairness: Iterable[bytes | int],
        settlements: Iterable[Settlement],
    ) -> PollResult:
        """Report settlements and fetch messages.

        Args:
            free: Most messages to fetch.
            queues: The queues served, those of higher priority first.
            fairness: What `Fairness.arguments` says.
        """
        now_ms, in_flight, due_ms, *fetched = scripts.POLL.run(
            self._client,
            self._namespace,
            self.id,
            self._timeout_ms,
            free,
            len(queues),
            *queues,
            *fairness,
            *itertools.chain.from_iterable(settlement.arguments() for settlement in settlements),
        )
        self._offset_ms = now_ms - int(time.monotonic() * 1000)
        # One millisecond more than Redis says: its clock is read in whole milliseconds.
        due_seconds = None if due_ms < 0 else (due_ms + 1) / 1000
        return PollResult(in_flight=in_flight, due_seconds=due_seconds, fetched=_deliveries(fetched))

    def redeliver(self, known: Iterable[bytes]) -> list[Delivery]:
        """Return the messages in flight that are not known here: the reply that carried them was lost."""
        return _deliveries(scripts.REDELIVER.run(self._client, self._namespace, self.id, *known))

    def deregister(self, queues: Iterable[str]) -> None:
        """End the session: Redis requeues what it still has in flight."""
        scripts.DEREGISTER.run(self._client, self._namespace, self.id, *queues)

    def wakeups(self, closed: threading.Event) -> Iterator[None]:
        """Subscribe, and yield at each wake-up until `closed` is set.

        The first wake-up is the confirmation of the subscription: earlier ones were published to no subscriber.
        """
        with self._client.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
            subscription.subscribe(f"{self._namespace}:wake:{self.id}")
            while not closed.is_set():
                if subscription.get_message(timeout=_SUBSCRIPTION_SECONDS) is not None:
                    yield


def _deliveries(parts: Iterable[Any]) -> list[Delivery]:
    rest = iter(parts)
    return [Delivery(queue.decode(), key, body) for queue, key, body in zip(rest, rest, rest, strict=True)]
