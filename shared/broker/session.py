"""A worker's session with the broker.

The threads that process what is pushed to the session take turns at its subscription (leader and followers): the one
that reads a message processes it, and no other is woken on its way. The poll thread settles finished messages and
fetches those that wait. A request that failed is repeated by the next poll: the session forgets nothing before Redis
has replied.
"""

from __future__ import annotations

import queue as queues
import random
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable

import dramatiq
import dramatiq.errors
import dramatiq.logging
import redis

from shared.broker.bounds import Bounds
from shared.broker.deliveries import Delivery, Disposition, Settlement
from shared.broker.fairness import Fairness
from shared.broker.session_client import Figures, SessionClient

#: Longest pause between two polls of an idle session. Each poll is a heartbeat as well.
POLL_SECONDS = 1.0
#: A session that has not polled for longer expires, and its messages are requeued. A process that stalls for 3 s may
#: not have polled for 4.
TIMEOUT_MS = 4500
#: The bounds of the pause after a request that failed.
_PAUSES_SECONDS = (0.05, 0.5)
#: A message in flight that the session has not got may still be on its way. After this it is lost.
_LOST_SECONDS = 0.1
#: After this many losses in a row, with nothing that arrives between them, the subscription counts as dead.
_LOSSES = 2
#: How long a redelivered message is remembered, for the case that it was on its way all the same.
_REMEMBERED_SECONDS = 10.0
#: Batching window for settlements, skipped while a message may be waiting for the capacity they free.
_LINGER_SECONDS = 0.005
#: Most settlements in one poll.
_BATCH = 200
#: How long a closing session tries to report its settlements.
_CLOSE_SECONDS = 3.0

Describe = Callable[[BaseException], str]


def describe(exception: BaseException) -> str:
    """Return an exception's text with its traceback."""
    return "".join(traceback.format_exception(exception))


class WorkerSession:
    """Keeps at most `capacity` messages in flight, of the queues it serves; those first in `order` are served first."""

    def __init__(
        self,
        client: redis.Redis,
        namespace: str,
        name: str,
        *,
        tag: str,
        capacity: int,
        order: Iterable[str],
        describe: Describe,
        bounds: Bounds,
    ) -> None:
        self._requests = SessionClient(client, namespace, name, tag=tag, timeout_ms=TIMEOUT_MS, bounds=bounds)
        self._capacity = capacity
        self._order = order
        self._describe = describe
        self._log = dramatiq.logging.get_logger(__name__, type(self))
        self._lock = threading.Lock()
        #: Locked during a request that settles: Redis is to learn the session's figures in their order.
        self._requesting = threading.Lock()
        #: Set when there is something to report to Redis or to fetch from it.
        self._wakeup = threading.Event()
        #: Set when a poll is due at once.
        self._urgent = threading.Event()
        #: When the next poll is due.
        self._poll_at = 0.0
        #: The last poll left the session idle and no message waiting. Each one since then is pushed, or announced by a
        #: wake-up.
        self._is_idle = False
        self._closed = threading.Event()
        self._is_draining = False
        #: Of each queue served: the deliveries its consumer has not fetched yet.
        self._inboxes: dict[str, queues.SimpleQueue[Delivery]] = {}
        #: Every delivery that Redis may believe to be in flight here, settled ones included.
        self._in_flight: dict[bytes, Delivery] = {}
        #: How many of them are not settled.
        self._in_work = 0
        #: Which of them Redis is known to have forgotten. They do not count when its number is compared with this one.
        self._forgotten: set[bytes] = set()
        #: It counts as alive from the one moment to the other, as its polls were answered in time.
        self._lives_since = self._lives_until = 0.0
        self._fairness = Fairness(capacity)
        self._outbox: list[Settlement] = []
        #: Messages in flight that the session has not got → since when.
        self._missing: dict[bytes, float] = {}
        #: Redelivered messages → until when they are remembered.
        self._redelivered: dict[bytes, float] = {}
        #: How often in a row messages were lost, with nothing that arrived between.
        self._losses = 0
        self._failures = 0
        self._poll_thread = threading.Thread(target=self._poll_until_closed, name="broker poll", daemon=True)
        #: Locked by the thread whose turn it is to listen.
        self._listening = threading.Lock()
        self._pushed = self._listen()

    def start(self) -> None:
        """Start the poll thread; messages are fetched once a queue is served."""
        self._poll_thread.start()

    # ── for the consumers, in any thread ─────────────────────────────────────────────────────────────────────────────

    def serve(self, queue: str) -> queues.SimpleQueue[Delivery]:
        """Start to fetch messages of this queue. Return the inbox they are put into."""
        with self._lock:
            inbox = self._inboxes.setdefault(queue, queues.SimpleQueue())
        self._poll_now()
        return inbox

    def receive(self, seconds: float, wanted: Callable[[], bool]) -> Delivery | None:
        """Wait for a message that is pushed to the session, and return it for this thread to process; None without one.

        Args:
            seconds: How long it waits for its turn to listen, and then about a second.
            wanted: Asked when it is this thread's turn: a thread that is to stop does not begin to listen.
        """
        if not self._listening.acquire(timeout=seconds):
            return None
        try:
            return next(self._pushed, None) if wanted() else None
        finally:
            self._listening.release()

    def unserve(self, queue: str) -> bool:
        """Stop fetching messages of this queue and requeue its inbox. Return whether other queues are still served."""
        with self._lock:
            inbox = self._inboxes.pop(queue, None)
            serves_any = bool(self._inboxes)
        if inbox is not None:
            self._requeue_all(inbox)
        return serves_any

    def settle(self, delivery: Delivery, disposition: Disposition) -> None:
        """Free the capacity at once; the next successful poll reports the settlement to Redis."""
        if disposition is Disposition.ACK and delivery.retry is not None:
            delay_ms, body = delivery.retry
            settlement = Settlement(delivery=delivery, disposition=Disposition.RETRY, body=body, detail=str(delay_ms))
        elif disposition is Disposition.DEAD_LETTER:
            reason = self._describe(delivery.exception) if delivery.exception is not None else "rejected"
            settlement = Settlement(delivery=delivery, disposition=disposition, body=delivery.body, detail=reason)
        else:
            settlement = Settlement(delivery=delivery, disposition=disposition, body=delivery.body)
        with self._lock:
            if delivery.is_settled:
                return
            delivery.is_settled = True
            self._in_work -= 1
            self._fairness.settled(delivery.qualified_key, time.monotonic())
            self._outbox.append(settlement)
        if not self._acknowledge_here():
            self._wakeup.set()

    def in_flight(self, qualified_key: bytes) -> Delivery | None:
        """Return the delivery of this key, if it is in flight here and not settled."""
        with self._lock:
            delivery = self._in_flight.get(qualified_key)
        return None if delivery is None or delivery.is_settled else delivery

    def lives_since(self, moment: float) -> bool:
        """Return whether the session counts as alive, and has without a break since this moment, by `time.monotonic`.

        It counts as dead, for all it knows, when no poll was answered for the time-out: others may have its messages.
        """
        return self._lives_since <= moment and time.monotonic() < self._lives_until

    def now_ms(self) -> int:
        """Return the time by Redis's clock, as of the last poll."""
        return self._requests.now_ms()

    def sessions(self) -> int:
        """Return the number of sessions of all workers, as of the last poll."""
        return self._requests.sessions()

    def drain(self) -> None:
        """Fetch no more messages and requeue at once those no actor has begun. Heartbeats continue."""
        with self._lock:
            self._is_draining = True
            inboxes = list(self._inboxes.values())
        for inbox in inboxes:
            self._requeue_all(inbox)
        # Redis is to know soon that the session has no credit.
        self._poll_now()

    def close(self) -> None:
        """Report the settlements, requeue the rest and end. Without a reply from Redis the session expires later."""
        self.drain()
        ends_at = time.monotonic() + _CLOSE_SECONDS
        while self._outbox and time.monotonic() < ends_at and self._poll_thread.is_alive():
            self._poll_now()
            time.sleep(0.01)
        self._closed.set()
        self._poll_now()
        self._poll_thread.join(POLL_SECONDS)
        try:
            self._requests.deregister(self._order)
        except redis.RedisError as exc:
            self._log.warning(
                "session not deregistered, its messages are requeued after the time-out: reason=%s", type(exc).__name__
            )
        if self._listening.acquire(timeout=POLL_SECONDS * 2):
            self._pushed.close()
            self._listening.release()
        # A thread that still waits for a reply keeps the connection: the client's end closes it.
        if self._requesting.acquire(blocking=False):
            self._requests.close()
            self._requesting.release()

    def _requeue_all(self, inbox: queues.SimpleQueue[Delivery]) -> None:
        while True:
            try:
                self.settle(inbox.get_nowait(), Disposition.REQUEUE)
            except queues.Empty:
                return

    def _acknowledge_here(self) -> bool:
        """Report in this thread, to spare another one's wake-up. Return False if that is left to the poll thread.

        At most one thread waits for Redis here: the others leave theirs to the poll thread, which reports all of them.
        """
        if self._closed.is_set() or not self._requesting.acquire(blocking=False):
            return False
        try:
            return self._acknowledge()
        except redis.RedisError:
            self._poll_next()
            return False
        finally:
            self._requesting.release()

    def _poll_now(self) -> None:
        self._urgent.set()
        self._wakeup.set()

    # ── the subscription ─────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> Generator[Delivery | None]:
        """Yield each message that is pushed and to be processed; None about once a second, when there is none."""
        while not self._closed.is_set():
            try:
                for pushed in self._requests.listen(self._closed, self._poll_now):
                    yield pushed if pushed is not None and self._receive(pushed) else None
            except Exception as exc:  # noqa: BLE001 - without it every message would wait for the next poll
                if not isinstance(exc, redis.RedisError):
                    self._log.critical("subscription failing, a bug in the broker", exc_info=True)
                self._closed.wait(_PAUSES_SECONDS[1] * random.uniform(0.5, 1))  # noqa: S311 - no secret
                yield None

    def _receive(self, pushed: Delivery) -> bool:
        """Take a message that was pushed. Return False if it is not to be processed."""
        self._losses = 0
        with self._lock:
            until = self._redelivered.pop(pushed.qualified_key, 0.0)
        if until >= time.monotonic() or not self._accept(pushed, waits=False):
            return False
        if self._in_work >= self._capacity:
            # Full: no longer idle, and not to be woken instead of a session that has free capacity.
            self._poll_now()
        return True

    # ── the poll thread ──────────────────────────────────────────────────────────────────────────────────────────────

    def _poll_until_closed(self) -> None:
        while not self._closed.is_set():
            self._wakeup.clear()
            try:
                with self._requesting:
                    seconds = self._report()
            except redis.RedisError as exc:
                self._poll_next()
                self._pause(exc)
                continue
            except Exception:  # noqa: BLE001 - without this thread the worker would keep its messages for ever
                self._log.critical("poll thread failing, a bug in the broker", exc_info=True)
                seconds = POLL_SECONDS
            if self._wakeup.wait(seconds) and self._is_idle:
                self._urgent.wait(_LINGER_SECONDS)

    def _report(self) -> float:
        """Report the settlements, by a poll if one is due or needed. Return the seconds until the next poll."""
        if self._urgent.is_set():
            self._urgent.clear()
            self._poll_at = 0.0
        if time.monotonic() >= self._poll_at or not self._acknowledge():
            self._poll_at = time.monotonic() + self._poll()
        return max(0.0, self._poll_at - time.monotonic())

    def _poll_next(self) -> None:
        """Make the next request a poll of the poll thread: no other thread is to wait for a Redis that is away."""
        self._poll_at = 0.0
        self._is_idle = False

    def _acknowledge(self) -> bool:
        """Report the settlements by the short request. Return whether that was enough, or a poll is needed."""
        with self._lock:
            settlements = self._outbox[:_BATCH]
            if not settlements:
                return True
            # Capacity that a waiting message may need is reported by the poll that fetches it.
            if not self._is_idle or any(each.disposition is not Disposition.ACK for each in settlements):
                return False
            figures = self._figures(settlements)
        is_waiting = self._requests.ack(figures, settlements)
        self._confirm(settlements)
        if is_waiting:
            self._poll_next()
        return not is_waiting

    def _poll(self) -> float:
        """Poll. Return the seconds until the next poll, if nothing wakes the thread before."""
        with self._lock:
            settlements = self._outbox[:_BATCH]
            figures = self._figures(settlements)
            fairness = list(self._fairness.arguments(time.monotonic()))
            oldest_at = min((each.at for each in self._in_flight.values() if not each.is_settled), default=None)
        asked = time.monotonic()
        result = self._requests.poll(figures, fairness, settlements, oldest_at=oldest_at)
        if asked > self._lives_until:
            self._lives_since = asked
        self._lives_until = asked + TIMEOUT_MS / 1000
        self._confirm(settlements)
        for delivery in result.fetched:
            self._accept(delivery, waits=True)
        self._is_idle = result.is_idle
        if result.in_flight != len(self._in_flight) - len(self._forgotten):
            self._redeliver()
        else:
            self._missing = {}
        if self._failures:
            self._log.warning("poll recovered: failures=%d", self._failures)
            self._failures = 0
        return min(POLL_SECONDS, result.due_seconds, _LOST_SECONDS if self._missing else POLL_SECONDS)

    def _figures(self, settlements: list[Settlement]) -> Figures:
        """Return what the session tells Redis about itself, as it is when these settlements are reported."""
        free = 0 if self._is_draining else max(0, self._capacity - self._in_work)
        reported = {
            key for each in settlements if self._in_flight.get(key := each.delivery.qualified_key) is each.delivery
        }
        return Figures(
            # A copy: a queue may be declared meanwhile.
            queues=[queue for queue in list(self._order) if queue in self._inboxes],
            free=free,
            known=len(self._in_flight) - len(reported | self._forgotten),
            # What is pushed without a subscription is lost.
            credit=self._fairness.credit(free, time.monotonic()) if self._requests.is_subscribed() else 0,
        )

    def _confirm(self, settlements: list[Settlement]) -> None:
        """Forget what Redis now knows to be settled."""
        with self._lock:
            del self._outbox[: len(settlements)]
            for settlement in settlements:
                delivery = settlement.delivery
                if self._in_flight.get(delivery.qualified_key) is delivery:
                    del self._in_flight[delivery.qualified_key]
                    self._forgotten.discard(delivery.qualified_key)
            if self._outbox:
                self._wakeup.set()

    def _accept(self, delivery: Delivery, *, waits: bool) -> bool:
        """Take a message into work. Return False if it is not to be processed.

        It is here already, as a pushed one may be redelivered as well; or it is served no more, and requeued.

        Args:
            waits: It waits in its inbox for a thread.
        """
        with self._lock:
            if delivery.qualified_key in self._in_flight:
                self._forgotten.discard(delivery.qualified_key)
                return False
            self._in_flight[delivery.qualified_key] = delivery
            self._in_work += 1
            self._fairness.delivered(delivery.qualified_key, delivery.group, time.monotonic())
            inbox = None if self._is_draining else self._inboxes.get(delivery.queue)
            if inbox is not None and waits:
                inbox.put(delivery)
        if inbox is None:
            self.settle(delivery, Disposition.REQUEUE)
        return inbox is not None

    def _redeliver(self) -> None:
        """Look for messages in flight that never arrived, and deliver those that were missing before."""
        # Read before Redis is asked: a message that is settled meanwhile still counts as known.
        with self._lock:
            known = list(self._in_flight)
        difference = self._requests.redeliver(known)
        with self._lock:
            self._forgotten = difference.forgotten
        now = time.monotonic()
        missing = {each.qualified_key: self._missing.get(each.qualified_key, now) for each in difference.lost}
        lost = [each for each in difference.lost if now - missing[each.qualified_key] >= _LOST_SECONDS]
        delivered = [each.qualified_key for each in lost if self._accept(each, waits=True)]
        self._missing = {key: since for key, since in missing.items() if now - since < _LOST_SECONDS}
        with self._lock:
            self._redelivered = {key: until for key, until in self._redelivered.items() if until > now}
            self._redelivered.update(dict.fromkeys(delivered, now + _REMEMBERED_SECONDS))
        if delivered:
            self._log.warning("messages lost on their way redelivered: count=%d", len(delivered))
            self._losses += 1
            if self._losses >= _LOSSES:
                # Redis believes in it, but its connection may be half open.
                self._losses = 0
                self._requests.resubscribe()
                self._poll_now()

    def _pause(self, exc: redis.RedisError) -> None:
        if not self._failures:
            self._log.error("poll failing, settlements are kept: reason=%s: %s", type(exc).__name__, exc)
        self._failures += 1
        shortest, longest = _PAUSES_SECONDS
        self._closed.wait(min(longest, shortest * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1))  # noqa: S311
