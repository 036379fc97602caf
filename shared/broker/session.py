"""A worker's place among all that serve the queues: what it holds, its heartbeat, its wake-ups.

One thread (the hand) exchanges with Redis: what became of messages, for as many new ones as there are idle threads.
Another (the ear) only waits to be woken. Whatever fails is tried again by the next exchange; nothing is forgotten
before Redis has answered.
"""

from __future__ import annotations

import itertools
import queue as queues
import random
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import dramatiq
import dramatiq.errors
import dramatiq.logging
import redis

from shared.broker import fairness, scripts
from shared.broker.deliveries import Delivery, Settlement, Verdict

#: How long an idle member waits at most before it looks by itself; also its heartbeat.
LOOK_SECONDS = 1.0
#: A member silent for longer is dead, and what it holds is others'. A member that stalls for 3 s has been silent for 4.
TIMEOUT_MS = 4500
#: The bounds of the pause after a request that failed.
_PAUSES_SECONDS = (0.05, 0.5)
#: How long a settlement waits for company, as long as nobody waits for its place.
_LINGER_SECONDS = 0.005
#: Most settlements in one exchange.
_BATCH = 200
#: How long a member that leaves tries to say so.
_LEAVE_SECONDS = 3.0

Describe = Callable[[BaseException], str]


def describe(exception: BaseException) -> str:
    """An exception with its traceback."""
    return "".join(traceback.format_exception(exception))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    #: Of so many messages as it was asked for.
    room: int
    held: int
    due_seconds: float | None
    taken: list[Delivery]


class Member:
    """Holds at most `capacity` messages of the queues it serves; those who come first in `order` are served first."""

    def __init__(
        self,
        client: redis.Redis,
        namespace: str,
        name: str,
        *,
        capacity: int,
        order: Iterable[str],
        describe: Describe,
    ) -> None:
        self.id = f"{name}/{uuid.uuid4().hex[:12]}"
        self._client = client
        self._namespace = namespace
        self._capacity = capacity
        self._order = order
        self._describe = describe
        self._log = dramatiq.logging.get_logger(__name__, type(self))
        self._lock = threading.Lock()
        #: Something is to be told to Redis, or to be taken from it.
        self._bell = threading.Event()
        #: It is not to wait.
        self._urgent = threading.Event()
        self._may_linger = False
        self._closed = threading.Event()
        self._drains = False
        #: Of each queue served: what its consumer has not come for yet.
        self._inboxes: dict[str, queues.SimpleQueue[Delivery]] = {}
        #: All that Redis may believe to be in our hands.
        self._held: dict[bytes, Delivery] = {}
        self._in_work = 0
        self._shares = fairness.Shares(capacity)
        self._outbox: list[Settlement] = []
        self._failures = 0
        #: Redis's clock less our monotonic one.
        self._offset_ms = int((time.time() - time.monotonic()) * 1000)
        self._hand = threading.Thread(target=self._exchange_on, name="broker hand", daemon=True)
        self._ear = threading.Thread(target=self._listen, name="broker ear", daemon=True)

    def start(self) -> None:
        """Begins to take messages, once a queue is served."""
        self._hand.start()
        self._ear.start()

    # ── for the consumers, in any thread ─────────────────────────────────────────────────────────────────────────────

    def serve(self, queue: str) -> queues.SimpleQueue[Delivery]:
        """Takes messages of this queue as well; they come by the inbox given."""
        with self._lock:
            inbox = self._inboxes.setdefault(queue, queues.SimpleQueue())
        self._ring()
        return inbox

    def unserve(self, queue: str) -> bool:
        """Takes no more of this queue, and gives back what waits for its consumer; whether others are served still."""
        with self._lock:
            inbox = self._inboxes.pop(queue, None)
            is_served = bool(self._inboxes)
        if inbox is not None:
            self._empty(inbox)
        return is_served

    def settle(self, delivery: Delivery, verdict: Verdict) -> None:
        """Makes room at once; Redis is told by the next exchange that succeeds."""
        if verdict is Verdict.DONE and delivery.again is not None:
            delay_ms, body = delivery.again
            settlement = Settlement(delivery=delivery, verdict=Verdict.AGAIN, body=body, detail=str(delay_ms))
        elif verdict is Verdict.DEAD:
            reason = self._describe(delivery.exception) if delivery.exception is not None else "rejected"
            settlement = Settlement(delivery=delivery, verdict=verdict, body=delivery.body, detail=reason)
        else:
            settlement = Settlement(delivery=delivery, verdict=verdict, body=delivery.body)
        with self._lock:
            if delivery.is_settled:
                return
            delivery.is_settled = True
            self._in_work -= 1
            self._shares.settled(delivery.name, time.monotonic())
            self._outbox.append(settlement)
        self._bell.set()

    def holding(self, name: bytes) -> Delivery | None:
        """The message of this name, if it is in our hands and not settled."""
        with self._lock:
            delivery = self._held.get(name)
        return None if delivery is None or delivery.is_settled else delivery

    def now_ms(self) -> int:
        """The time by Redis's clock, as the last exchange had it."""
        return int(time.monotonic() * 1000) + self._offset_ms

    def drain(self) -> None:
        """Takes nothing more, and gives back at once what nobody has begun. Heartbeats go on."""
        with self._lock:
            self._drains = True
            inboxes = list(self._inboxes.values())
        for inbox in inboxes:
            self._empty(inbox)

    def leave(self) -> None:
        """Says what is settled, gives back the rest; tries for a few seconds, then others take it for dead."""
        self.drain()
        ends_at = time.monotonic() + _LEAVE_SECONDS
        while self._outbox and time.monotonic() < ends_at and self._hand.is_alive():
            self._ring()
            time.sleep(0.01)
        self._closed.set()
        self._ring()
        self._hand.join(LOOK_SECONDS)
        try:
            scripts.LEAVE.run(self._client, self._namespace, self.id, *self._order)
        except redis.RedisError as exc:
            self._log.warning("left without a word, others take over what was held: %s", type(exc).__name__)
        self._ear.join(LOOK_SECONDS * 2)

    def _empty(self, inbox: queues.SimpleQueue[Delivery]) -> None:
        while True:
            try:
                self.settle(inbox.get_nowait(), Verdict.BACK)
            except queues.Empty:
                return

    # ── the ear ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        channel = f"{self._namespace}:wake:{self.id}"
        while not self._closed.is_set():
            try:
                with self._client.pubsub() as subscription:  # type: ignore[no-untyped-call]  # redis-py's
                    subscription.subscribe(channel)
                    while not self._closed.is_set():
                        # The first one says that we are subscribed: what came before it was told to nobody.
                        if subscription.get_message(timeout=LOOK_SECONDS) is not None:
                            self._ring()
            except Exception as exc:  # noqa: BLE001 - without this thread every message would wait for the next look
                if not isinstance(exc, redis.RedisError):
                    self._log.critical("cannot listen, which is a mistake in the broker", exc_info=True)
                self._closed.wait(_PAUSES_SECONDS[1] * random.uniform(0.5, 1))  # noqa: S311 - no secret

    # ── the hand ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _exchange_on(self) -> None:
        while not self._closed.is_set():
            self._bell.clear()
            self._urgent.clear()
            try:
                seconds = self._turn()
            except redis.RedisError as exc:
                self._pause(exc)
                continue
            except Exception:  # noqa: BLE001 - without this thread the worker would hold its messages for ever
                self._log.critical("an exchange failed, which is a mistake in the broker", exc_info=True)
                seconds = LOOK_SECONDS
            if self._bell.wait(seconds) and self._may_linger:
                self._urgent.wait(_LINGER_SECONDS)

    def _ring(self) -> None:
        self._urgent.set()
        self._bell.set()

    def _turn(self) -> float:
        """One exchange; gives how long to wait for the next, in seconds, unless something happens."""
        answer = self._exchange()
        for delivery in answer.taken:
            self._deliver(delivery)
        with self._lock:
            # Whoever may be waiting for a place is not to wait for Redis to hear of it.
            self._may_linger = answer.room > len(answer.taken) and not self._shares.is_full(time.monotonic())
        if answer.held > len(self._held):
            self._recall()
        if self._failures:
            self._log.warning("Redis answers again, after %d failures", self._failures)
            self._failures = 0
        if answer.due_seconds is None:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, answer.due_seconds)

    def _exchange(self) -> _Answer:
        with self._lock:
            settled = self._outbox[:_BATCH]
            # A copy: a queue may be declared meanwhile.
            served = [queue for queue in list(self._order) if queue in self._inboxes]
            room = 0 if self._drains else max(0, self._capacity - self._in_work)
            held_by = list(self._shares.arguments(time.monotonic()))
        arguments = itertools.chain.from_iterable(settlement.arguments() for settlement in settled)
        now_ms, held, due_ms, *taken = scripts.EXCHANGE.run(
            self._client,
            self._namespace,
            self.id,
            TIMEOUT_MS,
            room,
            len(served),
            *served,
            *held_by,
            *arguments,
        )
        self._offset_ms = now_ms - int(time.monotonic() * 1000)
        with self._lock:
            del self._outbox[: len(settled)]
            for settlement in settled:
                delivery = settlement.delivery
                if self._held.get(delivery.name) is delivery:
                    del self._held[delivery.name]
            if self._outbox:
                self._bell.set()
        # A millisecond more than Redis says, whose clock we read in whole ones.
        due_seconds = None if due_ms < 0 else (due_ms + 1) / 1000
        return _Answer(room=room, held=held, due_seconds=due_seconds, taken=_deliveries(taken))

    def _deliver(self, delivery: Delivery) -> None:
        with self._lock:
            self._held[delivery.name] = delivery
            self._in_work += 1
            self._shares.taken(delivery.name, delivery.group, time.monotonic())
            inbox = None if self._drains else self._inboxes.get(delivery.queue)
            if inbox is not None:
                inbox.put(delivery)
        if inbox is None:
            self.settle(delivery, Verdict.BACK)

    def _recall(self) -> None:
        """Finds what was given to us by an answer that we never got."""
        # Before Redis is asked: what is settled meanwhile is not lost.
        with self._lock:
            known = list(self._held)
        found = _deliveries(scripts.RECALL.run(self._client, self._namespace, self.id, *known))
        for delivery in found:
            self._deliver(delivery)
        if found:
            self._log.warning("%d messages came by an answer that was lost", len(found))

    def _pause(self, exc: redis.RedisError) -> None:
        if not self._failures:
            self._log.error("Redis does not answer, what is settled is told later: %s: %s", type(exc).__name__, exc)
        self._failures += 1
        shortest, longest = _PAUSES_SECONDS
        self._closed.wait(min(longest, shortest * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1))  # noqa: S311


def _deliveries(parts: Iterable[Any]) -> list[Delivery]:
    rest = iter(parts)
    return [Delivery(queue.decode(), reference, body) for queue, reference, body in zip(rest, rest, rest, strict=True)]
