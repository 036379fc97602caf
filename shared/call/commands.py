"""What the core orders, in the imperative. Each becomes one broker message for one step's queue."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideAdmission:
    """Check tenant, route, quota and concurrency."""

    call_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRun:
    """Create the workflow run, exactly one."""

    call_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginateLeg:
    """Originate the leg to the far end, under its derived channel id."""

    call_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class StartMedia:
    """Begin this attempt: ask for the media leg and the bridge, side by side."""

    call_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckMedia:
    """Ask Asterisk whether this attempt's media leg is ready: its StasisStart did not reach us in time."""

    call_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinLegs:
    """Answer the caller and put both legs into the bridge, side by side; verify."""

    call_id: UUID
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TearDown:
    """End the run; remove both legs and the bridge of every attempt; verify."""

    call_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAttempt:
    """Remove the media leg and the bridge of an attempt that no longer counts."""

    call_id: UUID
    attempt: int


Command = DecideAdmission | CreateRun | OriginateLeg | StartMedia | CheckMedia | JoinLegs | TearDown | RemoveAttempt
