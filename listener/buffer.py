"""What waits for Redis: bounded over all and per connection, in number and in bytes, and fair between connections.

What does not fit is dropped, and its connection is resynced once there is room again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from listener import entries

#: Bounds in bytes are the bounds in number times this; a usual event takes half of it.
_BYTES_EACH = 2048
_BATCH_BYTES = 2**20
#: A connection that floods us is not resynced more often than this.
_RESYNC_PAUSE_SECONDS = 5.0


@dataclass(slots=True)
class _Amount:
    number: int = 0
    size: int = 0

    def add(self, entry: entries.Entry, sign: int) -> None:
        self.number += sign
        self.size += sign * len(entry.body)


class Buffer:
    """First in, first out per connection; connections take turns.

    Args:
        capacity: Most events held over all connections, those being pushed included.
        share: Most events held of one connection.
    """

    def __init__(self, *, capacity: int, share: int) -> None:
        self._capacity = capacity
        self._share = share
        self._waiting: dict[entries.Connection, deque[entries.Entry]] = {}
        self._turns: deque[entries.Connection] = deque()
        self._held = _Amount()
        self._held_of: dict[entries.Connection, _Amount] = {}
        #: At most one a connection; in no order with its events, they go to another queue.
        self._resyncs: dict[entries.Connection, entries.Entry] = {}
        self._pushing_resyncs = 0
        self._lost: set[entries.Connection] = set()
        self._resynced: dict[entries.Connection, float] = {}
        self._filled = asyncio.Event()

    @property
    def held(self) -> int:
        """How many messages wait or are being pushed."""
        return self._held.number + len(self._resyncs) + self._pushing_resyncs

    def put(self, entry: entries.Entry) -> bool:
        """Takes an event in; False when it had to be dropped."""
        connection = entry.connection
        of = self._held_of.get(connection)
        if not (_fits(self._held, entry, self._capacity) and (of is None or _fits(of, entry, self._share))):
            # A resync still waiting to be pushed will find it.
            if connection not in self._resyncs:
                self._lost.add(connection)
            return False
        if of is None:
            of = self._held_of[connection] = _Amount()
        self._held.add(entry, 1)
        of.add(entry, 1)
        queue = self._waiting.get(connection)
        if queue is None:
            self._waiting[connection] = deque((entry,))
            self._turns.append(connection)
        else:
            queue.append(entry)
        self._filled.set()
        return True

    def ask_resync(self, connection: entries.Connection, reason: str) -> None:
        """Takes in a full resync of the connection, which makes up for all that was lost of it until it is pushed."""
        self._resyncs[connection] = entries.of_resync(connection, reason, full=True)
        self._lost.discard(connection)
        self._filled.set()

    def recover(self, now: float) -> None:
        """Asks for resyncs of the connections that lost events and have room again; `now` by our monotonic clock."""
        if self._lost and not _half_empty(self._held, self._capacity):
            return
        for connection in list(self._lost):
            of = self._held_of.get(connection)
            if of is not None and not _half_empty(of, self._share):
                continue
            if now - self._resynced.get(connection, -_RESYNC_PAUSE_SECONDS) >= _RESYNC_PAUSE_SECONDS:
                self._resynced[connection] = now
                self.ask_resync(connection, "events were lost")

    def forget(self, connection: entries.Connection) -> None:
        """The connection is no longer ours: what waits is still pushed, what was lost is another's to find."""
        self._lost.discard(connection)
        self._resynced.pop(connection, None)

    async def take(self, most: int) -> list[entries.Entry]:
        """Waits for messages and takes up to `most` out. They count as held until `done`."""
        while not (self._resyncs or self._turns):
            self._filled.clear()
            await self._filled.wait()
        batch: list[entries.Entry] = []
        while self._resyncs and len(batch) < most:
            batch.append(self._resyncs.pop(next(iter(self._resyncs))))
        self._pushing_resyncs = len(batch)
        size = 0
        while self._turns and len(batch) < most and size < _BATCH_BYTES:
            entry = self._next()
            size += len(entry.body)
            batch.append(entry)
        return batch

    def _next(self) -> entries.Entry:
        connection = self._turns.popleft()
        queue = self._waiting[connection]
        entry = queue.popleft()
        if queue:
            self._turns.append(connection)
        else:
            del self._waiting[connection]
        return entry

    def done(self, batch: list[entries.Entry]) -> None:
        """A batch that `take` gave has been pushed."""
        for entry in batch[self._pushing_resyncs :]:
            self._held.add(entry, -1)
            of = self._held_of[entry.connection]
            of.add(entry, -1)
            if not of.number:
                del self._held_of[entry.connection]
        self._pushing_resyncs = 0


def _fits(held: _Amount, entry: entries.Entry, bound: int) -> bool:
    return held.number < bound and held.size + len(entry.body) <= max(bound * _BYTES_EACH, len(entry.body))


def _half_empty(held: _Amount, bound: int) -> bool:
    return held.number <= bound // 2 and held.size <= bound * _BYTES_EACH // 2
