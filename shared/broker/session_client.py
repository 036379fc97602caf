"""A worker session's requests to Redis: poll, ack, redeliver, deregister, and the subscription to its channel."""

from __future__ import annotations

import itertools
import math
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from shared.broker import scripts, subscription
from shared.broker.bounds import Bounds
from shared.broker.deliveries import Delivery, Settlement

#: A number of sessions that has fallen is believed after this: when Redis was emptied, they come back one by one.
_FEWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a session tells Redis about itself."""

    #: The queues served, those of higher priority first.
    queues: Sequence[str]
    #: Most messages to fetch.
    free: int
    #: How many messages are in flight as far as the session knows, without those settled by this request.
    known: int
    #: How many messages may be pushed to it.
    credit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PollResult:
    """The reply to a poll."""

    #: How many messages Redis has in flight for this session, those of this reply included.
    in_flight: int
    #: Until the next delayed message is due; infinite without one.
    due_seconds: float
    #: The session is registered as idle, and no message of its queues was left waiting.
    is_idle: bool
    fetched: list[Delivery]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How the messages in flight differ from those the session knows."""

    #: Qualified keys of those that are not in flight in it: Redis was emptied, or the session had expired.
    forgotten: set[bytes]
    #: Those it does not know: the push or the reply that carried them was lost, or is on its way.
    lost: list[Delivery]


class SessionClient:
    """The requests of one session, one at a time. Each raises redis.RedisError."""

    def __init__(
        self, client: redis.Redis, namespace: str, name: str, *, tag: str, timeout_ms: int, bounds: Bounds
    ) -> None:
        self.id = f"{name}/{tag}-{secrets.token_hex(4)}"
        self._client = client
        self._connection = scripts.Connection(client.connection_pool)
        self._namespace = namespace
        self._timeout_ms = timeout_ms
        self._bounds = bounds
        #: Redis has confirmed the subscription.
        self._is_confirmed = False
        #: The subscription may be dead, or with a server that is master no more: it is to be made anew.
        self._is_doubted = False
        #: The number of sessions that poll, this one included; until when no lower one is believed.
        self._sessions = 1
        self._believed_until = 0.0
        #: Redis's clock less this process's monotonic one.
        self._offset_ms = int((time.time() - time.monotonic()) * 1000)

    def now_ms(self) -> int:
        """Return the time by Redis's clock, as of the last poll."""
        return int(time.monotonic() * 1000) + self._offset_ms

    def sessions(self) -> int:
        """Return the number of sessions that poll, as of the last poll: those of all workers."""
        return self._sessions

    def poll(
        self,
        figures: Figures,
        fairness: Iterable[bytes | int],
        settlements: Iterable[Settlement],
        *,
        oldest_at: float | None,
    ) -> PollResult:
        """Report settlements and fetch messages.

        Args:
            fairness: What `Fairness.arguments` says.
            oldest_at: When its oldest message was delivered, by the monotonic clock; None without one.
        """
        was_subscribed = self.is_subscribed()
        now_ms, in_flight, due_ms, is_idle, sessions, subscriptions, *fetched = self._run(
            scripts.POLL,
            self._timeout_ms,
            -1 if oldest_at is None else int((time.monotonic() - oldest_at) * 1000),
            self._bounds.dead_letters,
            self._bounds.dead_letter_bytes,
            figures.free,
            figures.known,
            figures.credit,
            len(figures.queues),
            *figures.queues,
            *fairness,
            *itertools.chain.from_iterable(settlement.arguments() for settlement in settlements),
        )
        self._offset_ms = now_ms - int(time.monotonic() * 1000)
        # One millisecond more than Redis says: its clock is read in whole milliseconds.
        due_seconds = math.inf if due_ms < 0 else (due_ms + 1) / 1000
        self._believe(sessions)
        if was_subscribed and not subscriptions:
            # It was made at another server, which is master no more; this request was the first to reach the new one.
            self.resubscribe()
        return PollResult(
            in_flight=in_flight, due_seconds=due_seconds, is_idle=bool(is_idle), fetched=_deliveries(fetched)
        )

    def _believe(self, sessions: int) -> None:
        now = time.monotonic()
        if sessions >= self._sessions or now >= self._believed_until:
            self._sessions, self._believed_until = sessions, now + _FEWER_SECONDS

    def ack(self, figures: Figures, settlements: Iterable[Settlement]) -> bool:
        """Acknowledge messages and publish the credit. Return whether a message waits, for which to poll."""
        parts: list[str | bytes] = []
        for each in settlements:
            parts += (each.delivery.queue, each.delivery.message_key)
        return bool(self._run(scripts.ACK, figures.known, figures.credit, len(figures.queues), *figures.queues, *parts))

    def redeliver(self, known: Iterable[bytes]) -> Difference:
        """Compare the messages in flight with those that are known here."""
        forgotten, lost = self._run(scripts.REDELIVER, *known)
        return Difference(forgotten=set(forgotten), lost=_deliveries(lost))

    def deregister(self, queues: Iterable[str]) -> None:
        """End the session: Redis requeues what it still has in flight."""
        scripts.DEREGISTER.run(self._client, self._namespace, self.id, *queues)

    def close(self) -> None:
        """Free the connection."""
        self._connection.close()

    def is_subscribed(self) -> bool:
        """Return whether what is pushed to the session arrives, as far as is known."""
        return self._is_confirmed and not self._is_doubted

    def resubscribe(self) -> None:
        """End the subscription, within a second, so that the next to listen makes a new one."""
        self._is_doubted = True

    def listen(self, closed: threading.Event, wake: Callable[[], None]) -> Generator[Delivery | None]:
        """Subscribe; yield each message that is pushed to the session, and None after a second without.

        It ends when `closed` is set, and when the subscription is to be made anew, as also one that is not confirmed.

        Args:
            wake: Called at each wake-up. The first one is the confirmation of the subscription: earlier ones were
                published to no subscriber.
        """
        self._is_doubted = False
        made = subscription.Subscription(self._client.connection_pool, f"{self._namespace}:wake:{self.id}")
        try:
            while not (closed.is_set() or self._is_doubted):
                published = made.read()
                if published is None and not self._is_confirmed:
                    return
                self._is_confirmed = True
                pushed = None if published is None else _pushed(published)
                if pushed is None and published is not None:
                    wake()
                else:
                    yield pushed
        finally:
            self._is_confirmed = False
            made.close()

    def _run(self, script: scripts.Script, *arguments: str | bytes | int) -> Any:
        try:
            return self._connection.run(script, self._namespace, self.id, *arguments)
        except redis.RedisError:
            # This connection is made anew, and may then lead to another server.
            self.resubscribe()
            raise


def _pushed(data: bytes | int) -> Delivery | None:
    """Return the message that enqueue.lua has published; None for a wake-up."""
    if not isinstance(data, bytes) or b"/" not in data:
        return None
    queue, length, rest = data.split(b"/", 2)
    end_of_key = int(length)
    return Delivery(queue.decode(), rest[:end_of_key], rest[end_of_key:])


def _deliveries(parts: Iterable[Any]) -> list[Delivery]:
    rest = iter(parts)
    return [Delivery(queue.decode(), key, body) for queue, key, body in zip(rest, rest, rest, strict=True)]
