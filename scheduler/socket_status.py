"""The status to write for an event socket, from what its listener reports. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from scheduler import actions
from scheduler.socket_rows import EventSocket, SocketStatus
from shared.assignments import Report, SocketState

#: The time of the last event is written this often at most, which is enough for an operator.
_LAST_EVENT_SECONDS = 10.0


def changed_status(socket: EventSocket, report: Report | None, live: Mapping[str, int]) -> SocketStatus | None:
    """Return the status to write; None while the written one is good enough.

    Args:
        socket: As read from Postgres.
        report: The assigned listener's report under the current epoch, if any.
        live: The listeners that are alive.
    """
    if socket.parked or (report is None and socket.listener_id in live):
        return None
    written = socket.status
    current = replace(written, state="unassigned") if report is None else _reported(socket, report)
    shown = replace(current, last_event_at=written.last_event_at, past_error_at=written.past_error_at)
    if shown == written and not _is_worth_a_write(written.last_event_at, current.last_event_at):
        return None
    return current


def _reported(socket: EventSocket, report: Report) -> SocketStatus:
    preempted = report.state is SocketState.REPLACED and not socket.superseded
    past_error, past_error_at = socket.status.past_error, socket.status.past_error_at
    if report.last_error:
        past_error, past_error_at = report.last_error, _moment(report.last_error_ms)
    return SocketStatus(
        state=str(report.state),
        since=_moment(report.since_ms),
        last_event_at=_moment(report.last_event_ms),
        reconnects=report.reconnects,
        error=actions.PREEMPTED if preempted else report.error,
        past_error=past_error,
        past_error_at=past_error_at,
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def _is_worth_a_write(written: datetime | None, current: datetime | None) -> bool:
    if current is None or written is None:
        return current is not written
    return (current - written).total_seconds() > _LAST_EVENT_SECONDS
