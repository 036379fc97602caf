"""A broker message ready to be pushed: encoded when it is buffered, so that its size is known."""

from __future__ import annotations

from dataclasses import dataclass

from shared import messages

#: (connection id, version): whose event it is.
Connection = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in the form Dramatiq's Redis broker keeps it in."""

    connection: Connection
    queue: str
    id: str
    body: bytes


def of_message(connection: Connection, message: messages.Message) -> Entry:
    """The message as an entry."""
    # Dramatiq keeps messages by an id of its own, because a retry pushes one again. This is the first push: the
    # message's id is as unique. A batch pushed twice overwrites itself.
    options = {"redis_message_id": message.message_id}
    return Entry(connection, message.queue_name, message.message_id, message.copy(options=options).encode())


def of_resync(connection: Connection, reason: str, *, full: bool) -> Entry:
    """A request to resync the connection, as an entry."""
    connection_id, version = connection
    message = messages.of_resync(connection_id=connection_id, connection_version=version, reason=reason, full=full)
    return of_message(connection, message)
