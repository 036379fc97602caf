"""Pushes the buffered messages to Redis, in order: each batch holds all that arrived in one pass of the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from listener import backoff
from listener.buffer import Buffer, EncodedMessage
from shared import errors
from shared.process import metrics

_log = structlog.stdlib.get_logger(__name__)

_BATCH = 500
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_REFUSED_LOG_PAUSE_SECONDS = 5.0


class MessageStore(Protocol):
    """Where messages are pushed (`redis_store.RedisStore`)."""

    async def push(self, batch: Sequence[EncodedMessage]) -> list[EncodedMessage]:
        """Enqueue the batch; safe to repeat. Return the messages refused: their connections have too many waiting.

        Raises:
            QueueUnavailable: Not all of it may have been enqueued.
        """


class Publisher:
    """Pushes until cancelled; repeats a batch until Redis has confirmed it.

    Args:
        now_ms: Returns Redis's time; None while it is not known.
    """

    def __init__(
        self,
        store: MessageStore,
        buffer: Buffer,
        jitter: Callable[[], float],
        now_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._store = store
        self._buffer = buffer
        self._jitter = jitter
        self._now_ms = now_ms
        #: Kept here, not in `run`: a task that crashes loses none.
        self._batch: list[EncodedMessage] = []
        #: Connection → how many of its events were refused since that was logged.
        self._refused: Counter[str] = Counter()
        self._logged_at = float("-inf")

    async def run(self) -> None:
        """Push one batch after the other, for ever."""
        while True:
            if not self._batch:
                self._batch = await self._buffer.next_batch(_BATCH)
            await self._push()
            self._buffer.done(self._batch)
            self._batch = []

    async def _push(self) -> None:
        failures = 0
        while True:
            try:
                at_ms = self._now_ms() or 0
                refused = await self._store.push([message.pushed(at_ms) for message in self._batch])
            except errors.QueueUnavailable as exc:
                if not failures:
                    _log.warning("push failing, events wait", reason=str(exc), waiting=self._buffer.size)
                failures += 1
                await asyncio.sleep(_pause_seconds(failures, self._jitter()))
            else:
                if failures:
                    _log.info("push recovered", attempts=failures, waiting=self._buffer.size)
                self._lose(refused)
                return

    def _lose(self, refused: Sequence[EncodedMessage]) -> None:
        """Have the connections resynced whose events were refused: what these told is found so."""
        for message in refused:
            self._buffer.lose(message.connection)
            metrics.EVENTS_DROPPED.add("refused")
        self._refused.update(str(message.connection) for message in refused)
        if self._refused and time.monotonic() - self._logged_at >= _REFUSED_LOG_PAUSE_SECONDS:
            self._logged_at = time.monotonic()
            _log.warning("events refused, connections are resynced instead", events=dict(self._refused))
            self._refused.clear()


def _pause_seconds(failures: int, jitter: float) -> float:
    # At least half of the ceiling: when Redis is back, its listeners do not all retry at once.
    longest = backoff.delay_seconds(failures, 1.0, first=_FIRST_PAUSE_SECONDS, slowest=_LONGEST_PAUSE_SECONDS)
    return longest * (1 + jitter) / 2
