"""The message that this thread works on: what a log line, the timeline of a call and a trace tell of it.

Set where a message begins (`workers.message_context`), read by whatever is done for it. No message: nothing is told.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(slots=True, kw_only=True)
class CurrentMessage:
    """A message in work; its moments are of the monotonic clock of this process."""

    actor: str
    queue: str
    message_id: str
    #: When a listener read its event; None for one that is of no event, or of unknown age.
    received: float | None = None
    #: When a listener pushed it; None for one that is of no event, or when unknown.
    pushed: float | None = None
    #: When it was due: it waited for a worker from then on. Of a command, and of a message that failed before, that is
    #: when it was to be tried. None when unknown.
    due: float | None = None
    begun: float
    #: How often it has failed before.
    tries: int = 0
    #: Of its event: the type, and the id of the leg.
    about: str = ""
    #: The calls whose timelines tell of it already.
    told: set[UUID] = field(default_factory=set)

    @property
    def came(self) -> float:
        """The first moment that is known of it."""
        return next(moment for moment in (self.received, self.pushed, self.due, self.begun) if moment is not None)


class _Here(threading.local):
    message: CurrentMessage | None = None


_HERE = _Here()


def current() -> CurrentMessage | None:
    """Return the message that this thread works on, or None."""
    return _HERE.message


def begin(message: CurrentMessage) -> None:
    """Have this thread work on a message from now on."""
    _HERE.message = message


def end() -> None:
    """The message is done."""
    _HERE.message = None


def note_told(call_id: UUID) -> None:
    """The timeline of a call tells of the message that this thread works on."""
    if _HERE.message is not None:
        _HERE.message.told.add(call_id)
