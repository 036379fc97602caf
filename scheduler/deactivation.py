"""Deactivates configurations whose event socket cannot be opened, as the platform's own manager does.

An *inactive* configuration is the platform's: its owner is shown the reason, mends what is wrong, and reactivates it
there. A *parked* socket is another thing: ours, left to a competing client.

What is counted is kept in memory: an hour of failures that no scheduler has seen is none. Nothing is seen while the
listeners are not heard of, and no error of ours counts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlsplit

import structlog

from shared import socket_errors
from shared.call.ids import ConnectionVersion
from shared.socket_errors import Fault
from shared.storage import database
from shared.storage.timeline import TimelineEntry

log = structlog.stdlib.get_logger(__name__)

#: At least this often.
LOOK_SECONDS = 5.0
#: A socket that was open for this long has not failed without a break (`listener.backoff`). Nor has one that was not
#: looked at for this long.
_STABLE_SECONDS = 30.0

#: The sockets of current versions that have a listener, and fail.
_FAILING = """
SELECT c.connection_id, v.version, c.source_id, c.organization_id, v.endpoint, v.last_error AS error
FROM ari.connections c JOIN ari.connection_versions v USING (connection_id, version)
WHERE c.state = 'active' AND v.retired_at IS NULL AND v.socket_state = 'connecting' AND v.last_error <> ''
"""
_OPEN = """
SELECT DISTINCT endpoint FROM ari.connection_versions WHERE retired_at IS NULL AND socket_state = 'connected'
"""


class Configurations(Protocol):
    """The platform's configurations."""

    def deactivate(self, *, source_id: int, organization_id: int, reason: str) -> bool:
        """Deactivate a configuration; return False if that cannot be, or not yet, because calls are being set up."""


class Timeline(Protocol):
    """The timeline (`postgres_calls.PostgresCalls`)."""

    def append_timeline(self, timeline: list[TimelineEntry], *, connection_id: int) -> None:
        """Write entries about a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Socket:
    connection_id: int
    version: int
    source_id: int
    organization_id: int
    endpoint: str
    error: str

    @property
    def connection(self) -> ConnectionVersion:
        return ConnectionVersion(self.connection_id, self.version)

    @property
    def fault(self) -> Fault:
        return socket_errors.judge(self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failing:
    """A socket that fails. Times are of the monotonic clock."""

    since: float
    seen_at: float
    #: Since when each look has found a lasting answer; None if the last one did not.
    lasting_since: float | None


class Deactivation:
    """Counts for how long sockets fail.

    Args:
        hears_listeners: Returns whether the statuses of sockets are recent.
        lasting_seconds: A configuration whose Asterisk has answered 401, 403 or 404 for so long is deactivated. By then
            it has been asked five times (`listener.backoff`).
        failing_seconds: One whose socket has failed for so long, whatever the error, if it is not ours; 0 for never.
    """

    def __init__(
        self,
        db: database.Database,
        configurations: Configurations,
        timeline: Timeline,
        hears_listeners: Callable[[], bool],
        *,
        lasting_seconds: float,
        failing_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._configurations = configurations
        self._timeline = timeline
        self._hears_listeners = hears_listeners
        self._lasting_seconds = lasting_seconds
        self._failing_seconds = failing_seconds
        self._monotonic = monotonic
        self._failing: dict[ConnectionVersion, _Failing] = {}

    def look(self) -> None:
        """Look at the sockets once. Raises DatabaseUnavailable, LeadershipLost."""
        if not self._hears_listeners():
            return
        with self._db.connection() as connection:
            failing = [_Socket(**row) for row in connection.execute(_FAILING).fetchall()]
            is_any_silent = any(socket.fault is Fault.SILENT for socket in failing)
            rows = connection.execute(_OPEN).fetchall() if is_any_silent else []
        open_hosts = {_host(row["endpoint"]) for row in rows}
        now = self._monotonic()
        counted = {
            connection: each for connection, each in self._failing.items() if now - each.seen_at < _STABLE_SECONDS
        }
        for socket in failing:
            before = counted.pop(socket.connection, None)
            if _is_theirs(socket, open_hosts):
                counted[socket.connection] = _counted(before, socket.fault, now)
        self._failing = counted
        for socket in failing:
            if self._is_due(counted.get(socket.connection), now):
                self._deactivate(socket)

    def _is_due(self, counted: _Failing | None, now: float) -> bool:
        if counted is None:
            return False
        if counted.lasting_since is not None and now - counted.lasting_since >= self._lasting_seconds:
            return True
        return 0 < self._failing_seconds <= now - counted.since

    def _deactivate(self, socket: _Socket) -> None:
        reason = f"{_code(socket.error)}: {socket.error}"
        done = self._configurations.deactivate(
            source_id=socket.source_id, organization_id=socket.organization_id, reason=reason
        )
        if not done:
            return
        # Reactivated, it starts anew.
        del self._failing[socket.connection]
        log.warning("configuration deactivated", connection=str(socket.connection), source=socket.source_id,
                    organization=socket.organization_id, reason=reason)  # fmt: skip
        entry = TimelineEntry(kind="note", name="Deactivated", detail=reason)
        self._timeline.append_timeline([entry], connection_id=socket.connection_id)


def _is_theirs(socket: _Socket, open_hosts: set[str | None]) -> bool:
    """Return whether it is the fault of the other side. If no other host is heard, silence may be our network's."""
    if socket.fault is Fault.SILENT:
        return bool(open_hosts - {_host(socket.endpoint)})
    return socket.fault is not Fault.OURS


def _counted(before: _Failing | None, fault: Fault, now: float) -> _Failing:
    if before is None:
        before = _Failing(since=now, seen_at=now, lasting_since=None)
    since = now if before.lasting_since is None else before.lasting_since
    return replace(before, seen_at=now, lasting_since=since if fault is Fault.LASTING else None)


def _host(endpoint: str) -> str | None:
    return urlsplit(endpoint).hostname


def _code(error: str) -> str:
    """Return the platform's code of an error: `ari-401`, `ari-timeout`, `ari-connection`."""
    status = re.search(r"\((40[134])\)$|^Asterisk answered HTTP (\d{3})", error)
    if status is not None:
        return f"ari-{status[1] or status[2]}"
    return "ari-timeout" if error.startswith(socket_errors.NO_ANSWER) else "ari-connection"
