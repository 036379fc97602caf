"""What the core orders, in the imperative. Each becomes one broker message; `steps.py` names its actor and queue."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Self
from uuid import UUID

from shared.call.calls import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """An order about one call."""

    call_id: UUID
    #: It is delivered this much later.
    pause: timedelta = timedelta()

    @classmethod
    def of(cls, call: Call) -> Self:
        """Return the command for a call as it is now."""
        return cls(call_id=call.call_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptCommand(Command):
    """An order about one attempt of a call."""

    attempt: int

    @classmethod
    def of(cls, call: Call) -> Self:
        return cls(call_id=call.call_id, attempt=call.attempt)


class DecideAdmission(Command):
    """Check tenant, route, quota and slots."""

    __slots__ = ()


class CreateRun(Command):
    """Create the workflow run, exactly one."""

    __slots__ = ()


class OriginateLeg(Command):
    """Originate the leg to the far end, under its derived channel id."""

    __slots__ = ()


class StartMedia(AttemptCommand):
    """Begin the next attempt: ask for the media leg and the bridge, in parallel."""

    __slots__ = ()

    @classmethod
    def of(cls, call: Call, *, pause: timedelta = timedelta()) -> Self:
        return cls(call_id=call.call_id, attempt=call.attempt + 1, pause=pause)


class CheckMedia(AttemptCommand):
    """Ask Asterisk whether the attempt's media leg is ready: its StasisStart is overdue."""

    __slots__ = ()


class JoinLegs(AttemptCommand):
    """Answer the caller and put every leg into the bridge, in parallel; verify."""

    __slots__ = ()


class TearDown(Command):
    """End the run; remove the legs and the bridge of every attempt; verify."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAttempt(AttemptCommand):
    """Remove the media leg and the bridge of an attempt that does not count: it is over, or not in the call's row."""

    nonce: str = ""
