"""The messages that wait for Redis: bounded in number and bytes, over all and per connection, and fair to connections.

An event that does not fit is dropped, and its connection is resynced once there is room again. So is one whose
connection has too many waiting in Redis.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace

from shared import messages
from shared.broker import redis_broker
from shared.call.ids import ConnectionVersion

#: Bounds in bytes are the bounds in number times this; a usual event takes half of it.
_BYTES_EACH = 2048
_BATCH_BYTES = 2**20
#: A connection that overflows all the time is not resynced more often than this.
_RESYNC_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EncodedMessage:
    """One message in the form the broker stores: encoded when it is buffered, so that its size is known."""

    connection: ConnectionVersion
    queue: str
    #: Its connection and id: the broker stores a message that is pushed twice once.
    message_key: str
    body: bytes
    #: The tag of the worker it should go to; empty for any.
    affinity: str = ""
    #: It counts against the bounds of its connection, and may be refused.
    is_bounded: bool = False
    #: Of one connection and name, one waits: a further one takes its place if it supersedes it. Empty for none.
    unique: str = ""
    supersedes: bool = False

    def pushed(self, at_ms: int) -> EncodedMessage:
        """Return the message with the moment at which it is pushed, by Redis's clock."""
        return replace(self, body=messages.pushed(self.body, at_ms))


def encode_message(connection: ConnectionVersion, message: messages.Message) -> EncodedMessage:
    """Encode a message for the broker."""
    message.options[messages.PUSHED] = messages.NOT_PUSHED
    return EncodedMessage(
        connection,
        message.queue_name,
        redis_broker.message_key(message),
        message.encode(),
        redis_broker.affinity(message),
        redis_broker.is_bounded(message),
        *redis_broker.unique(message),
    )


def encode_resync(connection: ConnectionVersion, reason: str, *, full: bool) -> EncodedMessage:
    """Encode a request to resync the connection."""
    message = messages.of_resync(connection=connection, reason=reason, full=full)
    return encode_message(connection, message)


@dataclass(slots=True)
class _Amount:
    number: int = 0
    size: int = 0

    def add(self, message: EncodedMessage) -> None:
        self.number += 1
        self.size += len(message.body)

    def subtract(self, message: EncodedMessage) -> None:
        self.number -= 1
        self.size -= len(message.body)


class Buffer:
    """First in, first out per connection; round robin over connections.

    Args:
        capacity: Most events buffered over all connections, including those being pushed.
        share: Most events buffered of one connection.
    """

    def __init__(self, *, capacity: int, share: int) -> None:
        self._capacity = capacity
        self._share = share
        self._waiting: dict[ConnectionVersion, deque[EncodedMessage]] = {}
        #: The connections with waiting events, the next one first.
        self._rotation: deque[ConnectionVersion] = deque()
        self._total = _Amount()
        self._amounts: dict[ConnectionVersion, _Amount] = {}
        #: At most one per connection; not ordered with its events, they go to another queue.
        self._resyncs: dict[ConnectionVersion, EncodedMessage] = {}
        self._pushing_resyncs = 0
        #: The connections that lost events and wait for a resync.
        self._lost: set[ConnectionVersion] = set()
        self._resynced: dict[ConnectionVersion, float] = {}
        self._filled = asyncio.Event()

    @property
    def size(self) -> int:
        """How many messages wait or are being pushed."""
        return self._total.number + len(self._resyncs) + self._pushing_resyncs

    def put(self, message: EncodedMessage) -> bool:
        """Buffer an event; return False when it had to be dropped."""
        connection = message.connection
        amount = self._amounts.get(connection)
        fits_share = amount is None or _fits(amount, message, self._share)
        if not (fits_share and _fits(self._total, message, self._capacity)):
            # A resync that still waits to be pushed will find it.
            if connection not in self._resyncs:
                self._lost.add(connection)
            return False
        if amount is None:
            amount = self._amounts[connection] = _Amount()
        self._total.add(message)
        amount.add(message)
        queue = self._waiting.get(connection)
        if queue is None:
            self._waiting[connection] = deque((message,))
            self._rotation.append(connection)
        else:
            queue.append(message)
        self._filled.set()
        return True

    def lose(self, connection: ConnectionVersion) -> None:
        """Note that an event of the connection was taken out of the buffer and refused."""
        self._lost.add(connection)

    def request_resync(self, connection: ConnectionVersion, reason: str) -> None:
        """Buffer a full resync of the connection. It makes up for every event lost before it is pushed."""
        self._resyncs[connection] = encode_resync(connection, reason, full=True)
        self._lost.discard(connection)
        self._filled.set()

    def recover(self, now: float) -> None:
        """Request resyncs of the connections that lost events and have room again; `now` is monotonic."""
        if self._lost and not _half_empty(self._total, self._capacity):
            return
        for connection in list(self._lost):
            amount = self._amounts.get(connection)
            if amount is not None and not _half_empty(amount, self._share):
                continue
            if now - self._resynced.get(connection, -_RESYNC_PAUSE_SECONDS) >= _RESYNC_PAUSE_SECONDS:
                self._resynced[connection] = now
                self.request_resync(connection, "events lost")

    def forget(self, connection: ConnectionVersion) -> None:
        """Stop resyncing a connection that is no longer assigned. Its waiting events are still pushed.

        The listener that takes the connection over resyncs it, and so finds what was lost here.
        """
        self._lost.discard(connection)
        self._resynced.pop(connection, None)

    async def next_batch(self, limit: int) -> list[EncodedMessage]:
        """Wait for messages and remove up to `limit` of them. They count in `size` until `done`."""
        while not (self._resyncs or self._rotation):
            self._filled.clear()
            await self._filled.wait()
        batch: list[EncodedMessage] = []
        while self._resyncs and len(batch) < limit:
            batch.append(self._resyncs.pop(next(iter(self._resyncs))))
        self._pushing_resyncs = len(batch)
        size = 0
        while self._rotation and len(batch) < limit and size < _BATCH_BYTES:
            message = self._next_event()
            size += len(message.body)
            batch.append(message)
        return batch

    def _next_event(self) -> EncodedMessage:
        connection = self._rotation.popleft()
        queue = self._waiting[connection]
        message = queue.popleft()
        if queue:
            self._rotation.append(connection)
        else:
            del self._waiting[connection]
        return message

    def done(self, batch: list[EncodedMessage]) -> None:
        """Free the room of the batch that `next_batch` returned: it has been pushed."""
        for message in batch[self._pushing_resyncs :]:
            self._total.subtract(message)
            amount = self._amounts[message.connection]
            amount.subtract(message)
            if not amount.number:
                del self._amounts[message.connection]
        self._pushing_resyncs = 0


def _fits(amount: _Amount, message: EncodedMessage, bound: int) -> bool:
    size = len(message.body)
    return amount.number < bound and amount.size + size <= max(bound * _BYTES_EACH, size)


def _half_empty(amount: _Amount, bound: int) -> bool:
    return amount.number <= bound // 2 and amount.size <= bound * _BYTES_EACH // 2
