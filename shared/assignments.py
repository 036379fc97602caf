"""The assignment protocol: which event sockets the scheduler assigns to a listener, and what the listener reports.

An assignment is one event socket for one version of a connection. Of two assignments of the same connection version,
the one with the higher epoch is newer. A listener opens a socket only for an assignment that it has just read. It
closes a socket only when the assignment is missing from, or newer in, what it has just read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from shared import errors
from shared.call.ids import ConnectionVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class AppInstance:
    """A Stasis app on one Asterisk, which a single ARI client can have at a time: the owner of an event socket."""

    #: http(s)://host[:port][/prefix], canonical.
    endpoint: str
    app: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Socket:
    """Which event socket an assignment or a report is about."""

    connection_id: int
    version: int
    epoch: int

    @property
    def connection_version(self) -> ConnectionVersion:
        """The connection version that the socket belongs to."""
        return ConnectionVersion(self.connection_id, self.version)

    @property
    def key(self) -> str:
        """The field of the assignments and reports hashes, such as `7:2`."""
        return str(self.connection_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment(_Socket):
    """One event socket, assigned to a listener."""

    organization_id: int
    #: http(s)://host[:port][/prefix], canonical.
    endpoint: str
    #: The Stasis app whose events to receive.
    app: str
    #: The ARI user.
    user: str
    #: The ARI password, sealed.
    sealed_password: str
    #: Changes when anything that the socket needs changes.
    fingerprint: str
    #: The only certificates to trust, in PEM; None for the system's authorities. Public, so not sealed.
    ca_bundle: str | None = None
    #: Another listener opens the socket under a higher epoch: keep it open until then, but do not open it again.
    draining: bool = False


class SocketState(StrEnum):
    """The state of an event socket, as its listener reports it."""

    #: Being opened, or waiting to be tried again.
    CONNECTING = "connecting"
    #: Open, events flow.
    CONNECTED = "connected"
    #: Closed because another socket has the app, or is about to: not opened again under this epoch.
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(_Socket):
    """One event socket as its listener sees it. Times are Redis's, in ms."""

    socket_id: str
    state: SocketState
    since_ms: int
    last_event_ms: int | None = None
    reconnects: int = 0
    #: The current error, in plain words and without secrets; empty when there is none.
    error: str = ""
    #: The most recent error and its time, kept after the socket has recovered.
    last_error: str = ""
    last_error_ms: int | None = None
    #: How many events were refused as unreadable, and how many could not be buffered.
    unreadable: int = 0
    dropped: int = 0


def encode(value: Assignment | Report) -> str:
    """Encode an assignment or a report as JSON."""
    return json.dumps(asdict(value), separators=(",", ":"))


def decode_assignment(text: str | bytes) -> Assignment:
    """Read an assignment back. Raises InvalidMessage for anything else."""
    try:
        return Assignment(**_fields(text))
    except TypeError as exc:
        raise errors.InvalidMessage("not an assignment") from exc


def decode_report(text: str | bytes) -> Report:
    """Read a report back. Raises InvalidMessage for anything else."""
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
