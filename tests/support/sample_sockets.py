"""Event sockets and reports for the tests of the scheduler's pure modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scheduler.socket_rows import EventSocket, SocketStatus
from shared.assignments import Report, SocketState
from shared.call.ids import ConnectionVersion

_STATUS = SocketStatus(
    state="connected", since=None, last_event_at=None, reconnects=0, error="", past_error="", past_error_at=None
)
_SOCKET = EventSocket(
    connection=ConnectionVersion(1, 1), organization_id=101, endpoint="http://pbx", app="a", ari_user="a",
    sealed_password="x", ca_bundle=None, listener_id="l1", epoch=4, previous_listener_id=None, previous_epoch=None,
    status=_STATUS, accepted_at=None, superseded=False, preempted=False, reclaims=0, parked=False, suspension=None,
    asked=False, quarantine_over=False, may_reclaim=False,
    hand_off_overdue=False, stable=False, same_app_instance=True, successor_connected=True, has_calls=False,
    drain_overdue=False,
)  # fmt: skip
_REPORT = Report(connection_id=1, version=1, epoch=4, socket_id="s", state=SocketState.CONNECTED, since_ms=1000)


def event_socket(connection_id: int = 1, **changes: Any) -> EventSocket:
    """A socket that listener l1 has open under epoch 4, and that nothing is wrong with."""
    return replace(_SOCKET, connection=ConnectionVersion(connection_id, 1), **changes)


def report(state: SocketState = SocketState.CONNECTED, **changes: Any) -> Report:
    """A report on connection version 1:1 under epoch 4."""
    return replace(_REPORT, state=state, **changes)
