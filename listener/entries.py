"""A broker message ready to be pushed: encoded when it is buffered, so that its size is known."""

from __future__ import annotations

from dataclasses import dataclass

from shared import messages
from shared.broker import redis_broker

#: (connection id, version): whose event it is.
Connection = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in the form the broker takes it in."""

    connection: Connection
    queue: str
    #: Its connection and id: pushed twice, it is there once.
    reference: str
    body: bytes


def of_message(connection: Connection, message: messages.Message) -> Entry:
    """The message as an entry."""
    return Entry(connection, message.queue_name, redis_broker.message_key(message), message.encode())


def of_resync(connection: Connection, reason: str, *, full: bool) -> Entry:
    """A request to resync the connection, as an entry."""
    connection_id, version = connection
    message = messages.of_resync(connection_id=connection_id, connection_version=version, reason=reason, full=full)
    return of_message(connection, message)
