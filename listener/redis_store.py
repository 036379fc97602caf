"""Redis as the listener uses it: heartbeats, assignments, reports, pushes. No other listener module imports redis.

Every operation is bounded in time and tried once: the caller decides whether to repeat it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from listener.buffer import EncodedMessage
from shared import assignments, errors, keys
from shared.broker import redis_clients, scripts
from shared.broker.bounds import Bounds
from shared.process import logs

_CLOSE_SECONDS = 2.0
_OPERATION_SECONDS = 6.0
_REPORTS_SECONDS = 3600
_ASSIGNMENTS_SECONDS = 3600
_ENQUEUED_AT_ONCE = 100
#: How long a subscription is waited at before it is looked whether it is to be made anew.
_WAKEUP_SECONDS = 1.0
#: A subscription that so many heartbeats in a row do not find is made anew.
_MISSED_SUBSCRIPTIONS = 2

#: Atomic, by Redis's clock: KEYS listeners, revision, capacities, reports; ARGV listener id, capacity, channel of its
#: wake-ups → [time in ms, newly added, revision, whether there are reports, subscriptions to the channel].
_BEAT = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local added = redis.call('ZADD', KEYS[1], now_ms, ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
local subscriptions = redis.call('PUBSUB', 'NUMSUB', ARGV[3])[2]
return {now_ms, added, redis.call('GET', KEYS[2]), redis.call('EXISTS', KEYS[4]), subscriptions}
"""

#: As _BEAT, of a listener that is known: a lost one learns from _BEAT that it is. KEYS listeners, suspects; ARGV
#: listener id, connection key or nothing.
_BEAT_IF_KNOWN = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'XX', time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
if ARGV[2] ~= '' then
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
else
    redis.call('HDEL', KEYS[2], ARGV[1])
end
"""

#: KEYS listeners, capacities; ARGV listener id, time-out of a heartbeat in ms → how many other listeners are alive.
_DEREGISTER = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZCOUNT', KEYS[1], now_ms - ARGV[2], '+inf')
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """What Redis answered to a heartbeat; `asked` and `answered` are the monotonic clock before and after it."""

    redis_ms: int
    #: True if Redis did not know this listener: at its first heartbeat, after Redis was emptied, or after the scheduler
    #: counted it as lost.
    unknown: bool
    #: Of the assignments; None when there are none.
    revision: int | None
    #: False if Redis had no report of this listener before this heartbeat: they expire when it cannot renew them.
    had_reports: bool
    asked: float
    answered: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentSnapshot:
    """The assignments in Redis and their revision, read atomically."""

    revision: int | None
    #: By key; None for one that cannot be read.
    assignments: dict[str, assignments.Assignment | None]


def client(url: str) -> redis.asyncio.Redis:
    """Return a client whose commands are bounded in time and not retried; it connects when first used.

    Raises:
        InvalidSettings: The URL is unusable.
    """
    try:
        return redis_clients.async_client(url)
    except ValueError:
        # Not chained: its text may show the URL.
        raise errors.InvalidSettings("  REDIS_URL: is not a usable URL") from None


class ThreadStore:
    """Redis as the thread of `HeartbeatThread` uses it.

    Args:
        url: Of Redis.
        seconds: Bounds each heartbeat: the next one is not to wait for it.
    """

    def __init__(self, url: str, listener_id: str, *, seconds: float) -> None:
        self._redis = redis_clients.client(url, seconds=seconds)
        self._listener_id = listener_id

    def beat(self, suspect: str) -> None:
        """Send one heartbeat of a listener that Redis knows.

        Args:
            suspect: The connection key of the socket that holds the event loop up; empty for none.

        Raises:
            QueueUnavailable: Redis failed or did not answer in time.
        """
        try:
            self._redis.eval(_BEAT_IF_KNOWN, 2, keys.LISTENERS, keys.SUSPECTS, self._listener_id, suspect)
        except (RedisError, OSError) as exc:
            raise _unavailable(exc) from exc


class RedisStore:
    """The part of one listener in Redis.

    Args:
        redis_client: From `client`, or a fake of it. `close` closes it.
        capacity: Most sockets the scheduler may assign to this listener.
        timeout_seconds: After this long without a heartbeat another listener counts as lost.
        bounds: What the waiting messages of one connection may take up.

    Raises (every operation):
        QueueUnavailable: Redis failed or did not answer in time; whether the operation took effect is unknown.
    """

    def __init__(
        self,
        redis_client: redis.asyncio.Redis,
        listener_id: str,
        *,
        capacity: int,
        timeout_seconds: float,
        bounds: Bounds,
    ) -> None:
        self._redis = redis_client
        self._scripts = scripts.AsyncConnection(redis_client.connection_pool)
        self._listener_id = listener_id
        self._capacity = capacity
        self._timeout_ms = int(timeout_seconds * 1000)
        self._bounds = bounds
        #: How many heartbeats in a row have found no subscription to the wake-ups.
        self._without_subscription = 0

    async def beat(self, reports: Iterable[assignments.Report], deleted: Iterable[str]) -> HeartbeatReply:
        """Send one heartbeat, with the reports that changed and the keys whose reports are to be deleted."""
        reports_key = keys.reports(self._listener_id)
        revision_key = keys.revision(self._listener_id)
        changed: dict[Any, Any] = {report.key: assignments.encode(report) for report in reports}
        pipe = self._redis.pipeline(transaction=False)
        touched = (keys.LISTENERS, revision_key, keys.CAPACITIES, reports_key)
        pipe.eval(_BEAT, len(touched), *touched, self._listener_id, self._capacity, keys.wakeups(self._listener_id))
        if changed:
            pipe.hset(reports_key, mapping=changed)
        if removed := [key for key in deleted if key not in changed]:
            pipe.hdel(reports_key, *removed)
        if changed or removed:
            pipe.incr(keys.REPORTS_REVISION)
        pipe.expire(reports_key, _REPORTS_SECONDS)
        pipe.expire(revision_key, _ASSIGNMENTS_SECONDS)
        pipe.expire(keys.assignments(self._listener_id), _ASSIGNMENTS_SECONDS)
        asked = time.monotonic()
        async with self._guarded():
            (redis_ms, added, revision, had_reports, subscriptions), *_rest = await pipe.execute()
        self._doubt_subscription(subscriptions)
        return HeartbeatReply(
            redis_ms=int(redis_ms),
            unknown=bool(added),
            revision=_revision(revision),
            had_reports=bool(had_reports),
            asked=asked,
            answered=time.monotonic(),
        )

    async def read_assignments(self) -> AssignmentSnapshot:
        """Read this listener's assignments."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.get(keys.revision(self._listener_id))
        pipe.hgetall(keys.assignments(self._listener_id))
        async with self._guarded():
            revision, fields = await pipe.execute()
        return AssignmentSnapshot(
            revision=_revision(revision),
            assignments={key.decode("utf-8", "replace"): _assignment(key, value) for key, value in fields.items()},
        )

    async def wakeups(self) -> AsyncIterator[None]:
        """Subscribe, and yield whenever the scheduler has changed the assignments; once when the subscription begins.

        It ends when heartbeats do not find the subscription: after a fail-over it may be one to the old server.
        """
        self._without_subscription = 0
        try:
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(keys.wakeups(self._listener_id))
                while self._without_subscription < _MISSED_SUBSCRIPTIONS:
                    if await subscription.get_message(timeout=_WAKEUP_SECONDS) is not None:
                        yield
        except (RedisError, OSError) as exc:
            raise _unavailable(exc) from exc

    def _doubt_subscription(self, subscriptions: int) -> None:
        self._without_subscription = 0 if subscriptions else self._without_subscription + 1

    async def push(self, batch: Sequence[EncodedMessage]) -> list[EncodedMessage]:
        """Enqueue messages in order. Idempotent: messages already enqueued by an earlier try are skipped.

        Returns:
            Those refused: their connections have as much in the queues as they may.
        """
        refused: list[EncodedMessage] = []
        async with self._guarded():
            # Not all at once: while a script runs, Redis does nothing else.
            for at in range(0, len(batch), _ENQUEUED_AT_ONCE):
                part = batch[at : at + _ENQUEUED_AT_ONCE]
                # The positions of those refused, from 1.
                refused += [part[position - 1] for position in await self._enqueue(part)]
        return refused

    async def _enqueue(self, part: Sequence[EncodedMessage]) -> list[int]:
        arguments: list[str | bytes | int] = [self._bounds.group_messages, self._bounds.group_bytes]
        for message in part:
            arguments += (
                message.queue,
                message.message_key,
                message.body,
                0,
                message.affinity,
                int(message.is_bounded),
                message.unique,
                int(message.supersedes),
            )
        positions: list[int] = await self._scripts.run(scripts.ENQUEUE, keys.NAMESPACE, *arguments)
        return positions

    async def deregister(self) -> int:
        """Announce that no heartbeat will follow; return how many other listeners are alive."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.eval(_DEREGISTER, 2, keys.LISTENERS, keys.CAPACITIES, self._listener_id, self._timeout_ms)
        async with self._guarded():
            (others,) = await pipe.execute()
        return int(others)

    async def remove_reports(self) -> None:
        """Delete all reports: no socket is open any more."""
        async with self._guarded():
            await self._redis.delete(keys.reports(self._listener_id))

    async def close(self) -> None:
        """Close the connections to Redis."""
        async with asyncio.timeout(_CLOSE_SECONDS):
            await self._scripts.close()
            await self._redis.aclose()

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_OPERATION_SECONDS):
                yield
        except (RedisError, OSError) as exc:
            raise _unavailable(exc) from exc


def _unavailable(exc: Exception) -> errors.QueueUnavailable:
    return errors.QueueUnavailable(logs.redact(str(exc)) or type(exc).__name__)


def _revision(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _assignment(key: bytes, value: bytes) -> assignments.Assignment | None:
    try:
        assignment = assignments.decode_assignment(value)
    except errors.InvalidMessage:
        return None
    return assignment if assignment.key.encode() == key else None
