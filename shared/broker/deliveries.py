"""A message in a worker's hands, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import dramatiq
import dramatiq.broker
import dramatiq.errors

#: The actor of a message that could not be read: there is none of this name.
UNREADABLE = "(unreadable)"


class Verdict(StrEnum):
    """What becomes of a message."""

    #: It is removed.
    DONE = "done"
    #: It is enqueued again, perhaps with a delay.
    AGAIN = "again"
    #: Nobody began it: it waits again, before all others.
    BACK = "back"
    #: It failed for good: to the dead letters.
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """A message's end in these hands, to be told to Redis."""

    delivery: Delivery
    verdict: Verdict
    body: bytes
    #: AGAIN: the delay in ms; DEAD: why.
    detail: str = ""

    def arguments(self) -> tuple[str | bytes, ...]:
        """As the script takes it."""
        return (self.verdict, self.delivery.queue, self.delivery.reference, self.body, self.detail)


class Delivery(dramatiq.broker.MessageProxy):
    """A message in hand.

    Attributes:
        exception: Why it failed, or why it cannot be read.
        again: The delay in ms and the body with which it is enqueued again once it is acknowledged.
    """

    def __init__(self, queue: str, reference: bytes, body: bytes) -> None:
        self.queue = queue
        self.reference = reference
        self.body = body
        self.exception: BaseException | None = None
        self.again: tuple[int, bytes] | None = None
        self.is_settled = False
        super().__init__(self._read())

    @property
    def name(self) -> bytes:
        """Its name among all that a member holds."""
        return self.queue.encode() + b"/" + self.reference

    @property
    def group(self) -> bytes:
        """Whose it is; empty for nobody's."""
        return self.reference.rpartition(b"/")[0]

    def stuff_exception(self, exception: BaseException) -> None:
        """Keeps the first cause: that an unreadable message names no actor is no news."""
        super().stuff_exception(exception)
        if self.exception is None:
            self.exception = exception

    def clear_exception(self) -> None:
        """Once it is settled."""
        super().clear_exception()
        self.exception = None

    def _read(self) -> dramatiq.Message[Any]:
        try:
            message = dramatiq.Message[Any].decode(self.body)
            _check(message, self.queue)
        except dramatiq.errors.DecodeError as exc:
            self.exception = exc
            name = self.reference.decode(errors="replace")
            return dramatiq.Message(self.queue, UNREADABLE, (), {}, {}, message_id=name)
        # Delays are Redis's to keep, not a worker's.
        message.options.pop("eta", None)
        return message


def _check(message: dramatiq.Message[Any], queue: str) -> None:
    """Dramatiq takes what it decodes for well-formed, and a thread of its own would die of it."""
    kinds = (
        isinstance(message.actor_name, str),
        isinstance(message.kwargs, dict),
        isinstance(message.options, dict),
        isinstance(message.message_id, str),
    )
    if message.queue_name != queue or not all(kinds):
        raise dramatiq.errors.DecodeError("not a message of this queue", message, None)
