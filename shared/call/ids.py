"""Identity: connection versions, and the ids of the channels and bridges that the product creates.

Every id created on an Asterisk derives from a call and an attempt, with the attempt's nonce. So the call's row is
enough to remove everything created for it, and the id of an orphan is enough to find its call. The nonce is drawn when
the attempt begins, and stored with it: a database that has lost its last commits may begin the same attempt of a call
once more, and must not ask for a media leg under the id of a live one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID, uuid5

#: The uuid5 namespace of requests to originate.
_REQUESTS = UUID("6a0c7d52-6f5e-4a0b-9d0b-3f1f0c2f7f66")
#: The prefix of every installation before prefixes were drawn. v0.1.0-rc1 reads no other, and no nonce: an installation
#: that keeps it may have such processes beside it.
SHARED_PREFIX = "aip-"
#: Of an installation: `aip-`, or one that was drawn or set.
PREFIX = r"[a-z][a-z0-9-]{0,14}-"
_ORIGINATED = re.compile(rf"{PREFIX}[0-9a-f]{{32}}-o", re.ASCII)
_OWN = re.compile(rf"({PREFIX})([0-9a-f]{{32}})(?:-([0-9a-f]{{8}}))?-([mb])([1-9][0-9]{{0,2}})", re.ASCII)


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
    """What an id names."""

    #: The external media leg: the channel to the voice agent.
    MEDIA = "m"
    #: The mixing bridge that joins the caller with the agent.
    BRIDGE = "b"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnId:
    """What one of the product's ids says."""

    #: Of the installation that made it: not necessarily this one.
    prefix: str
    call_id: UUID
    kind: Kind
    attempt: int
    #: Drawn for the attempt; empty in an id without one.
    nonce: str = ""


def has_nonces(prefix: str) -> bool:
    """True if a nonce is drawn for the attempts of a call with this prefix, which is empty if v0.1.0-rc1 wrote it."""
    return prefix not in ("", SHARED_PREFIX)


def own_id(prefix: str, call: UUID, kind: Kind, attempt: int, nonce: str = "") -> str:
    """Return the channel or bridge id of one attempt. A media leg's id is used by one creating request, ever.

    The nonce is not at the end: a request for an id that a live channel's id begins with crashes Asterisk, too.
    """
    drawn = f"-{nonce}" if nonce else ""
    return f"{prefix}{call.hex}{drawn}-{kind}{attempt}"


def media_id(prefix: str, call: UUID, attempt: int, nonce: str = "") -> str:
    """Return the channel id of an attempt's media leg."""
    return own_id(prefix, call, Kind.MEDIA, attempt, nonce)


def bridge_id(prefix: str, call: UUID, attempt: int, nonce: str = "") -> str:
    """Return the id of an attempt's bridge."""
    return own_id(prefix, call, Kind.BRIDGE, attempt, nonce)


def originated_id(prefix: str, connection_id: int, request_id: str) -> str:
    """Return the channel id of an originated leg: the same for the same request, so that a repeat is answered 409.

    A list is hashed and not a joined string: request ids come from outside.
    """
    name = uuid5(_REQUESTS, json.dumps([connection_id, request_id]))
    return f"{prefix}{name.hex}-o"


def is_originated(name: str) -> bool:
    """True for a channel id like those of the legs that the product originates, of whatever installation."""
    return _ORIGINATED.fullmatch(name) is not None


def parse(name: str) -> OwnId | None:
    """Read the id of a media leg or bridge back, of whatever installation; None for everything else."""
    match = _OWN.fullmatch(name)
    if match is None:
        return None
    return OwnId(
        prefix=match[1], call_id=UUID(match[2]), nonce=match[3] or "", kind=Kind(match[4]), attempt=int(match[5])
    )
