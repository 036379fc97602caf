"""Pushes the buffered messages to Redis, in order: each batch holds all that arrived in one pass of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from listener import backoff
from listener.buffer import Buffer, EncodedMessage
from shared import errors

_log = structlog.stdlib.get_logger(__name__)

_BATCH = 500
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


class MessageStore(Protocol):
    """Where messages are pushed (`redis_store.RedisStore`)."""

    async def push(self, batch: Sequence[EncodedMessage]) -> None:
        """Enqueue the batch; safe to repeat.

        Raises:
            QueueUnavailable: Not all of it may have been enqueued.
        """


class Publisher:
    """Pushes until cancelled; repeats a batch until Redis has confirmed it."""

    def __init__(self, store: MessageStore, buffer: Buffer, jitter: Callable[[], float]) -> None:
        self._store = store
        self._buffer = buffer
        self._jitter = jitter
        #: Kept here, not in `run`: a task that crashes loses none.
        self._batch: list[EncodedMessage] = []

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
                await self._store.push(self._batch)
            except errors.QueueUnavailable as exc:
                if not failures:
                    _log.warning("push failing, events wait", reason=str(exc), waiting=self._buffer.size)
                failures += 1
                await asyncio.sleep(_pause_seconds(failures, self._jitter()))
            else:
                if failures:
                    _log.info("push recovered", attempts=failures, waiting=self._buffer.size)
                return


def _pause_seconds(failures: int, jitter: float) -> float:
    # At least half of the ceiling: when Redis is back, its listeners do not all retry at once.
    longest = backoff.delay_seconds(failures, 1.0, first=_FIRST_PAUSE_SECONDS, slowest=_LONGEST_PAUSE_SECONDS)
    return longest * (1 + jitter) / 2
