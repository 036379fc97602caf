"""The listener's dialogue with the scheduler through Redis: alive, this is what I hold; what am I to hold?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

import structlog

from listener import assignment_changes
from listener.assignment_lease import Standing
from listener.buffer import Buffer
from listener.clocks import RedisClock
from listener.redis_store import Answer, Assigned
from listener.socket_pool import Holdings
from shared import errors
from shared.assignments import Report

_log = structlog.stdlib.get_logger(__name__)

#: News is told at once, but not more often than this.
_LEAST_PAUSE_SECONDS = 0.1


class Store(Protocol):
    """Redis (`store.Store`). Each raises QueueUnavailable."""

    async def beat(self, reports: Iterable[Report], gone: Iterable[str]) -> Answer:
        """One heartbeat."""

    async def read(self) -> Assigned:
        """Our assignments."""


class Heartbeats:
    """Beats until cancelled."""

    def __init__(
        self,
        store: Store,
        *,
        holdings: Holdings,
        buffer: Buffer,
        clock: RedisClock,
        standing: Standing,
        interval_seconds: float,
        capacity: int,
    ) -> None:
        self._store = store
        self._holdings = holdings
        self._buffer = buffer
        self._clock = clock
        self._standing = standing
        self._interval_seconds = interval_seconds
        self._capacity = capacity
        #: The revision of the assignments we have applied.
        self._applied: int | None = None
        #: Redis was emptied, or we were taken for dead, since we last read: what is missing was not taken from us.
        self._doubtful = False
        self._away_since: float | None = None
        self._unassigned = False

    async def run(self) -> None:
        """Beats at every interval, sooner when there is news."""
        while True:
            self._holdings.news.clear()
            try:
                await self._beat()
            except errors.QueueUnavailable as exc:
                self._lost_sight(exc)
            await asyncio.sleep(min(_LEAST_PAUSE_SECONDS, self._interval_seconds))
            await self._pause()

    async def _pause(self) -> None:
        left_seconds = max(0.0, self._interval_seconds - _LEAST_PAUSE_SECONDS)
        try:
            async with asyncio.timeout(left_seconds):
                # Cut off, there is nobody to tell.
                await (self._holdings.news.wait() if self._away_since is None else asyncio.sleep(left_seconds))
        except TimeoutError:
            return

    async def _beat(self) -> None:
        reports, gone = self._holdings.unsent(time.monotonic())
        answer = await self._store.beat(reports, gone)
        self._holdings.sent(reports, gone)
        self._clock.adjust(answer.redis_ms, asked=answer.asked, answered=answer.answered)
        if answer.unknown and self._applied is not None:
            self._doubtful = True
            _log.warning("Redis did not know us: it was emptied, or we were taken for dead; reporting all we hold")
            self._holdings.send_all()
        if answer.revision is None:
            self._note_unassigned()
        elif answer.revision != self._applied or self._doubtful or self._away_since is not None:
            await self._read()
        else:
            self._standing.confirm(answer.asked)
        self._note_back()
        self._buffer.recover(time.monotonic())

    async def _read(self) -> None:
        asked = time.monotonic()
        assigned = await self._store.read()
        if assigned.revision is None:
            self._note_unassigned()
            return
        if unreadable := [key for key, value in assigned.assignments.items() if value is None]:
            _log.error("unreadable assignments", keys=unreadable[:10], number=len(unreadable))
        changes = assignment_changes.changes(
            self._holdings.held,
            assigned.assignments,
            # A lower revision tells the same.
            complete=not self._doubtful and (self._applied is None or assigned.revision >= self._applied),
            capacity=self._capacity,
        )
        self._applied = assigned.revision
        self._doubtful = self._unassigned = False
        self._holdings.apply(changes)
        self._standing.confirm(asked)

    def _note_unassigned(self) -> None:
        self._standing.revoke()
        self._doubtful = True
        if not self._unassigned:
            self._unassigned = True
            _log.info("no assignments for us: keeping what we hold, opening nothing", sockets=len(self._holdings.held))

    def _lost_sight(self, exc: errors.QueueUnavailable) -> None:
        self._standing.revoke()
        if self._away_since is None:
            self._away_since = time.monotonic()
            _log.error("Redis is away: keeping the open sockets, opening none", reason=str(exc))

    def _note_back(self) -> None:
        if self._away_since is not None:
            seconds = round(time.monotonic() - self._away_since, 1)
            self._away_since = None
            _log.info("Redis is back", after_seconds=seconds, waiting=self._buffer.held)
