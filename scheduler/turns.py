"""Which of the event sockets of one app instance may be opened. Pure.

Asterisk gives an app's events to its newest socket, so of several sockets of one app instance (a superseded version and
its successor, two configurations that name the same app) one goes first. The others wait: what they have open stays
open until it is replaced, and is not opened again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from scheduler.socket_rows import EventSocket
from shared.assignments import AppInstance, Report, SocketState
from shared.call.ids import ConnectionVersion

#: A socket of ours that was opened so shortly before or after another one was replaced has replaced it, in ms: reports
#: come with heartbeats of different listeners.
_TOGETHER_MS = 5000

_NEVER = datetime.max.replace(tzinfo=UTC)


def waiting(sockets: Iterable[EventSocket]) -> frozenset[ConnectionVersion]:
    """Return the sockets that wait: another one of their app instance goes before them, and does not fail.

    Of current ones none waits until the Asterisk has accepted one: a wrong guess must not keep the owner out.
    """
    found: set[ConnectionVersion] = set()
    for instance in _contested_instances(sockets):
        before: list[EventSocket] = []
        for socket in sorted(instance, key=_precedence):
            if any(socket.superseded or other.is_open or other.accepted_at for other in before):
                found.add(socket.connection)
            if not socket.is_failing:
                before.append(socket)
    return frozenset(found)


def contested(sockets: Iterable[EventSocket]) -> frozenset[ConnectionVersion]:
    """Return the sockets that are not the only one of their app instance."""
    return frozenset(socket.connection for several in _contested_instances(sockets) for socket in several)


def is_other_turn(before: EventSocket, after: EventSocket) -> bool:
    """True if by what has become of a socket another one of its app instance may have its turn."""
    return (before.is_open, before.is_failing) != (after.is_open, after.is_failing)


def is_replaced_by_ours(
    socket: EventSocket,
    report: Report,
    giving_way: Iterable[EventSocket],
    reports: Mapping[ConnectionVersion, Report | None],
) -> bool:
    """True if no competing client has replaced a socket, but one of ours that gives way to it.

    Ours may name the same Asterisk in another way: by another address, or with and without TLS.

    Args:
        report: On the socket.
        giving_way: The superseded sockets, and those that wait.
        reports: On these.
    """
    if report.state is not SocketState.REPLACED:
        return False
    return any(
        other.connection != socket.connection
        and other.app == socket.app
        and (other.endpoint == socket.endpoint or other.organization_id == socket.organization_id)
        and _has_opened_at(reports[other.connection], report.since_ms)
        for other in giving_way
    )


def _has_opened_at(report: Report | None, moment_ms: int) -> bool:
    is_open = report is not None and report.state is SocketState.CONNECTED
    return is_open and report is not None and abs(report.since_ms - moment_ms) <= _TOGETHER_MS


def _contested_instances(sockets: Iterable[EventSocket]) -> Iterator[list[EventSocket]]:
    found: defaultdict[AppInstance, list[EventSocket]] = defaultdict(list)
    for socket in sockets:
        found[AppInstance(endpoint=socket.endpoint, app=socket.app)].append(socket)
    return (several for several in found.values() if len(several) > 1)


def _precedence(socket: EventSocket) -> tuple[bool, datetime, int, int]:
    """Current before superseded, then the first that its Asterisk accepted, then the newest version."""
    connection = socket.connection
    return socket.superseded, socket.accepted_at or _NEVER, connection.connection_id, -connection.number
