"""The assignment protocol: what the scheduler tells a listener to hold, and what the listener reports back.

An assignment is one socket for one version of a connection. A higher epoch of the same key is newer; a listener opens
a socket only on an assignment it has just read, and drops one only when it is gone from, or newer in, what it read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from shared import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One event socket to hold."""

    connection_id: int
    version: int
    organization_id: int
    epoch: int
    #: http(s)://host[:port][/prefix], canonical.
    endpoint: str
    #: The Stasis app whose events to receive.
    app: str
    #: The ARI user.
    user: str
    #: The ARI password, sealed.
    sealed_password: str
    #: Changes when anything the socket needs changes.
    fingerprint: str
    #: Certificates in PEM, whom alone to trust; None: the system's authorities. Public, so not sealed.
    ca_bundle: str | None = None
    #: Another listener is opening it under a higher epoch: what is open stays until then, nothing is opened any more.
    draining: bool = False

    @property
    def key(self) -> str:
        """The field of the assignments and reports hashes."""
        return connection_key(self.connection_id, self.version)


class SocketState(StrEnum):
    """What a listener says of one of its sockets."""

    #: Being opened, or waiting to be tried again.
    CONNECTING = "connecting"
    #: Open, events flow.
    CONNECTED = "connected"
    #: Another socket took the app over, or is to: closed, not opened again under this epoch.
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One socket as its listener sees it. Times are Redis's, in ms."""

    connection_id: int
    version: int
    epoch: int
    socket_id: str
    state: SocketState
    since_ms: int
    last_event_ms: int | None = None
    reconnects: int = 0
    #: What is wrong now, in plain words, without secrets; empty when all is well.
    error: str = ""
    #: What was last wrong, and since when: it stays when all is well again.
    last_error: str = ""
    last_error_ms: int | None = None
    #: Events refused as unreadable, and events that could not be buffered.
    unreadable: int = 0
    dropped: int = 0

    @property
    def key(self) -> str:
        """The field of the reports hash."""
        return connection_key(self.connection_id, self.version)


#: Fields that the first release did not have.
_LATER = ("ca_bundle", "draining", "last_error", "last_error_ms")


def connection_key(connection_id: int, version: int) -> str:
    """Names one version of a connection."""
    return f"{connection_id}:{version}"


def encode(value: Assignment | Report) -> str:
    """As JSON. What an older release does not know is left out where it says nothing: it reads no other fields."""
    fields = asdict(value)
    for name in _LATER:
        if not fields.get(name, True):
            del fields[name]
    return json.dumps(fields, separators=(",", ":"))


def decode_assignment(text: str | bytes) -> Assignment:
    """Raises InvalidMessage when it is not one."""
    try:
        return Assignment(**_fields(text))
    except TypeError as exc:
        raise errors.InvalidMessage("not an assignment") from exc


def decode_report(text: str | bytes) -> Report:
    """Raises InvalidMessage when it is not one."""
    fields = _fields(text)
    try:
        return Report(**{**fields, "state": SocketState(fields["state"])})
    except (KeyError, TypeError, ValueError) as exc:
        raise errors.InvalidMessage("not a report") from exc


def _fields(text: str | bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as exc:
        raise errors.InvalidMessage("not JSON") from exc
    if not isinstance(fields, dict):
        raise errors.InvalidMessage("not an object")
    return fields
