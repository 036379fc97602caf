"""Identity: which call a channel belongs to, and which channels and bridges are ours.

Every id we create on an Asterisk derives from a call and an attempt, so that whoever holds the call row can remove
everything made for it, and whoever finds a leftover can find its call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Kind(StrEnum):
    """What of ours an id names."""

    #: The external media leg: the channel to the voice agent.
    MEDIA = "m"
    #: The mixing bridge that joins the caller with the agent.
    BRIDGE = "b"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnId:
    """What one of our ids says."""

    call_id: UUID
    kind: Kind
    attempt: int


def own_id(prefix: str, call: UUID, kind: Kind, attempt: int) -> str:
    """The channel or bridge id of one attempt. Used by one creating request, ever."""
    return f"{prefix}{call.hex}-{kind}{attempt}"


def media_id(prefix: str, call: UUID, attempt: int) -> str:
    """The channel id of an attempt's media leg."""
    return own_id(prefix, call, Kind.MEDIA, attempt)


def bridge_id(prefix: str, call: UUID, attempt: int) -> str:
    """The id of an attempt's bridge."""
    return own_id(prefix, call, Kind.BRIDGE, attempt)


_OWN = re.compile(r"([0-9a-f]{32})-([mb])([1-9][0-9]{0,2})", re.ASCII)


def parse(prefix: str, name: str) -> OwnId | None:
    """Reads one of our ids back; None for everything that is not exactly of our form."""
    if not name.startswith(prefix):
        return None
    match = _OWN.fullmatch(name, len(prefix))
    if match is None:
        return None
    return OwnId(call_id=UUID(match[1]), kind=Kind(match[2]), attempt=int(match[3]))
