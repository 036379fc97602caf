"""Identity: which call a channel belongs to, and which channels and bridges are ours.

Every id we create on an Asterisk derives from a call and an attempt, so that whoever holds the call row can remove
everything made for it, and whoever finds a leftover can find its call.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID, uuid5

#: Names the requests to originate among all that uuid5 can name.
_REQUESTS = UUID("6a0c7d52-6f5e-4a0b-9d0b-3f1f0c2f7f66")
_ORIGINATED = re.compile(r"[0-9a-f]{32}-o", re.ASCII)
_OWN = re.compile(r"([0-9a-f]{32})-([mb])([1-9][0-9]{0,2})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ConnectionVersion:
    """One version of a connection: what a call pins and an event socket belongs to. `str()` gives `7:2`."""

    connection_id: int
    number: int

    def __str__(self) -> str:
        return f"{self.connection_id}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> ConnectionVersion:
        """Read `7:2` back. Raises ValueError for anything else."""
        connection_id, _, number = text.partition(":")
        return cls(int(connection_id), int(number))


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
    """The channel or bridge id of one attempt. A media leg's is used by one creating request, ever."""
    return f"{prefix}{call.hex}-{kind}{attempt}"


def media_id(prefix: str, call: UUID, attempt: int) -> str:
    """The channel id of an attempt's media leg."""
    return own_id(prefix, call, Kind.MEDIA, attempt)


def bridge_id(prefix: str, call: UUID, attempt: int) -> str:
    """The id of an attempt's bridge."""
    return own_id(prefix, call, Kind.BRIDGE, attempt)


def originated_id(prefix: str, connection_id: int, request_id: str) -> str:
    """The channel id of a leg that we originate: the same for the same request, so that asking twice is answered 409.

    A list is hashed and not a joined string: request ids are chosen by others.
    """
    name = uuid5(_REQUESTS, json.dumps([connection_id, request_id]))
    return f"{prefix}{name.hex}-o"


def is_originated(prefix: str, name: str) -> bool:
    """Whether a channel id is one of a leg that we originate."""
    return name.startswith(prefix) and _ORIGINATED.fullmatch(name, len(prefix)) is not None


def parse(prefix: str, name: str) -> OwnId | None:
    """Reads the id of a media leg or bridge of ours back; None for everything that is not exactly of that form."""
    if not name.startswith(prefix):
        return None
    match = _OWN.fullmatch(name, len(prefix))
    if match is None:
        return None
    return OwnId(call_id=UUID(match[1]), kind=Kind(match[2]), attempt=int(match[3]))
