"""Heartbeat loop: reports liveness and socket states to the scheduler through Redis, and fetches the assignments.

The heartbeats of `heartbeat_thread` are beside it: they tell only that the listener is alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

import structlog

from listener import socket_pool
from listener.assignment_lease import AssignmentLease
from listener.buffer import Buffer
from listener.redis_store import AssignmentSnapshot, HeartbeatReply
from shared import errors
from shared.assignments import Report
from shared.process.redis_clock import RedisClock

_log = structlog.stdlib.get_logger(__name__)

#: A change is reported at once, but not more often than this.
_LEAST_PAUSE_SECONDS = 0.1
#: Between two tries to subscribe. Long before the scheduler takes this listener for one that is gone.
_SUBSCRIBE_PAUSE_SECONDS = 0.2


class HeartbeatStore(Protocol):
    """Where heartbeats go (`redis_store.RedisStore`). Each method raises QueueUnavailable."""

    async def beat(self, reports: Iterable[Report], deleted: Iterable[str]) -> HeartbeatReply:
        """Send one heartbeat."""

    def wakeups(self) -> AsyncIterator[None]:
        """Yield whenever the assignments have changed, until the subscription is to be made anew."""

    async def read_assignments(self) -> AssignmentSnapshot:
        """Return this listener's assignments."""


class Heartbeats:
    """Beats until cancelled."""

    def __init__(
        self,
        store: HeartbeatStore,
        *,
        pool: socket_pool.SocketPool,
        buffer: Buffer,
        clock: RedisClock,
        lease: AssignmentLease,
        interval_seconds: float,
        capacity: int,
    ) -> None:
        self._store = store
        self._pool = pool
        self._buffer = buffer
        self._clock = clock
        self._lease = lease
        self._interval_seconds = interval_seconds
        self._capacity = capacity
        #: The revision of the applied assignments.
        self._applied: int | None = None
        #: Redis was emptied, or counted this listener as lost, since the last read: a missing assignment was not
        #: necessarily revoked.
        self._may_be_incomplete = False
        self._unavailable_since: float | None = None
        #: Already logged that there are no assignments.
        self._unassigned = False

    async def run(self) -> None:
        """Beat at every interval, and sooner when the pool has changed."""
        while True:
            self._pool.changed.clear()
            await self.beat()
            await asyncio.sleep(min(_LEAST_PAUSE_SECONDS, self._interval_seconds))
            await self._pause()

    async def wake(self) -> None:
        """Beat sooner when the assignments have changed, for ever."""
        while True:
            try:
                async for _ in self._store.wakeups():
                    self._pool.changed.set()
            except errors.QueueUnavailable:
                # The heartbeats log it.
                await asyncio.sleep(_SUBSCRIBE_PAUSE_SECONDS)

    async def _pause(self) -> None:
        left_seconds = max(0.0, self._interval_seconds - _LEAST_PAUSE_SECONDS)
        try:
            async with asyncio.timeout(left_seconds):
                # Without Redis a change cannot be reported: wait for the whole interval.
                await (self._pool.changed.wait() if self._unavailable_since is None else asyncio.sleep(left_seconds))
        except TimeoutError:
            return

    async def beat(self) -> None:
        """Send one heartbeat and apply what Redis answers; without Redis, end the lease."""
        try:
            await self._beat()
        except errors.QueueUnavailable as exc:
            self._note_unavailable(exc)

    async def _beat(self) -> None:
        reports, deleted = self._pool.unsent(time.monotonic())
        were_reported = self._pool.is_any_reported
        reply = await self._store.beat(reports, deleted)
        self._pool.mark_sent(reports, deleted)
        self._clock.adjust(reply.redis_ms, asked=reply.asked, answered=reply.answered)
        if reply.unknown and self._applied is not None:
            # Redis was emptied, or the scheduler counted this listener as lost.
            self._may_be_incomplete = True
            _log.warning("listener unknown to redis, sending all reports")
            self._pool.resend_all()
        elif were_reported and not reply.had_reports:
            # Of a socket without a report, the scheduler does not know that it is open.
            _log.warning("reports expired in redis, sending all of them")
            self._pool.resend_all()
        if reply.revision is None:
            self._note_unassigned()
        elif reply.revision != self._applied or self._may_be_incomplete or self._unavailable_since is not None:
            await self._read_assignments()
        else:
            self._lease.renew(reply.asked)
        self._note_available()
        self._buffer.recover(time.monotonic())

    async def _read_assignments(self) -> None:
        asked = time.monotonic()
        snapshot = await self._store.read_assignments()
        if snapshot.revision is None:
            self._note_unassigned()
            return
        if unreadable := [key for key, value in snapshot.assignments.items() if value is None]:
            _log.error("unreadable assignments", number=len(unreadable), first_keys=unreadable[:10])
        changes = socket_pool.diff(
            self._pool.assigned,
            snapshot.assignments,
            # A revision that went down means the same: Redis was emptied.
            complete=not self._may_be_incomplete and (self._applied is None or snapshot.revision >= self._applied),
            capacity=self._capacity,
        )
        self._applied = snapshot.revision
        self._may_be_incomplete = self._unassigned = False
        self._pool.apply(changes)
        self._lease.renew(asked)

    def _note_unassigned(self) -> None:
        self._lease.revoke()
        self._may_be_incomplete = True
        if not self._unassigned:
            self._unassigned = True
            _log.info("no assignments in redis, keeping open sockets, opening none", sockets=len(self._pool.assigned))

    def _note_unavailable(self, exc: errors.QueueUnavailable) -> None:
        self._lease.revoke()
        if self._unavailable_since is None:
            self._unavailable_since = time.monotonic()
            _log.error("redis unavailable, keeping open sockets, opening none", reason=str(exc))

    def _note_available(self) -> None:
        if self._unavailable_since is not None:
            seconds = round(time.monotonic() - self._unavailable_since, 1)
            self._unavailable_since = None
            _log.info("redis available again", after_seconds=seconds, waiting=self._buffer.size)
