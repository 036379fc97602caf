"""Takes what waits in the buffer to Redis: all that gathered in a turn of the event loop in one batch, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from listener import backoff
from listener.buffer import Buffer
from listener.entries import Entry
from shared import errors

_log = structlog.stdlib.get_logger(__name__)

_BATCH = 500
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


class Store(Protocol):
    """Redis (`store.Store`)."""

    async def push(self, batch: Sequence[Entry]) -> None:
        """Raises QueueUnavailable when it may not have been all; to repeat it is harmless."""


class Pushes:
    """Pushes until cancelled; a batch is repeated until it is known to have arrived."""

    def __init__(self, store: Store, buffer: Buffer, jitter: Callable[[], float]) -> None:
        self._store = store
        self._buffer = buffer
        self._chance = jitter
        #: Kept here, not in `run`: a task that dies loses none.
        self._batch: list[Entry] = []

    async def run(self) -> None:
        """For ever."""
        while True:
            if not self._batch:
                self._batch = await self._buffer.take(_BATCH)
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
                    _log.warning("events cannot be pushed, they wait", reason=str(exc), waiting=self._buffer.held)
                failures += 1
                await asyncio.sleep(_pause_seconds(failures, self._chance()))
            else:
                if failures:
                    _log.info("events are pushed again", attempts=failures, waiting=self._buffer.held)
                return


def _pause_seconds(failures: int, jitter: float) -> float:
    # Half of it certain: many listeners come back to one Redis, none of them hammers it.
    longest = backoff.delay_seconds(failures, 1.0, first=_FIRST_PAUSE_SECONDS, slowest=_LONGEST_PAUSE_SECONDS)
    return longest * (1 + jitter) / 2
