"""A message delivered to a worker, and its settlement."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import dramatiq
import dramatiq.broker
import dramatiq.errors

#: Stands for the actor of a message that cannot be decoded: no actor has this name.
UNREADABLE = "(unreadable)"


class Disposition(StrEnum):
    """What happens to a delivered message (AMQP's term)."""

    #: Processed: deleted.
    ACK = "ack"
    #: To be processed again: enqueued, usually with a delay.
    RETRY = "retry"
    #: Not begun: put back at the front of its group.
    REQUEUE = "requeue"
    #: Failed permanently, or unreadable: moved to the dead letters.
    DEAD_LETTER = "dead-letter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The disposition of a delivery, to be reported to Redis."""

    delivery: Delivery
    disposition: Disposition
    body: bytes
    #: RETRY: the delay in ms; DEAD_LETTER: the reason.
    detail: str = ""

    def arguments(self) -> tuple[str | bytes, ...]:
        """Return the arguments of `poll.lua`."""
        return (self.disposition, self.delivery.queue, self.delivery.message_key, self.body, self.detail)


class Delivery(dramatiq.broker.MessageProxy):
    """A message in flight.

    Attributes:
        qualified_key: The message key with its queue: unique among all messages of a session.
        exception: The failure of its actor, or of decoding it.
        at: When it was delivered, by the monotonic clock.
        retry: The delay in ms and the body with which it is enqueued again once it is acknowledged.
    """

    def __init__(self, queue: str, message_key: bytes, body: bytes) -> None:
        self.queue = queue
        self.message_key = message_key
        self.qualified_key = queue.encode() + b"/" + message_key
        self.body = body
        self.at = time.monotonic()
        self.exception: BaseException | None = None
        self.retry: tuple[int, bytes] | None = None
        self.is_settled = False
        super().__init__(self._decoded())

    @property
    def group(self) -> bytes:
        """The group it belongs to; empty for none."""
        return self.message_key.rpartition(b"/")[0]

    def stuff_exception(self, exception: BaseException) -> None:
        """Keep the first exception: for an unreadable message, the missing actor would hide the decoding error."""
        super().stuff_exception(exception)
        if self.exception is None:
            self.exception = exception

    def clear_exception(self) -> None:
        """Drop the exception; Dramatiq calls it after the settlement."""
        super().clear_exception()
        self.exception = None

    def _decoded(self) -> dramatiq.Message[Any]:
        try:
            message = dramatiq.Message[Any].decode(self.body)
            _check(message, self.queue)
        except dramatiq.errors.DecodeError as exc:
            self.exception = exc
            message_id = self.message_key.decode(errors="replace")
            return dramatiq.Message(self.queue, UNREADABLE, (), {}, {}, message_id=message_id)
        # Redis keeps delayed messages. With this option a worker's consumer thread would keep the message back.
        message.options.pop("eta", None)
        return message


def _check(message: dramatiq.Message[Any], queue: str) -> None:
    """Raise DecodeError unless the fields have their types: a Dramatiq thread would die of a malformed message."""
    kinds = (
        isinstance(message.actor_name, str),
        isinstance(message.kwargs, dict),
        isinstance(message.options, dict),
        isinstance(message.message_id, str),
    )
    if message.queue_name != queue or not all(kinds):
        raise dramatiq.errors.DecodeError("not a message of this queue", message, None)
