"""The status to write for an event socket: what changed, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from scheduler import actions, socket_status
from shared.assignments import SocketState
from tests.support.sample_sockets import event_socket, report

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
LIVE = {"l1": 100}
SOCKET = event_socket(status=replace(event_socket().status, since=NOW, last_event_at=NOW))
OPEN = report(since_ms=NOW_MS, last_event_ms=NOW_MS)


def test_an_unchanged_report_is_not_written() -> None:
    assert socket_status.changed_status(SOCKET, OPEN, LIVE) is None


@pytest.mark.parametrize(("seconds", "is_written"), [(10, False), (11, True)])
def test_the_time_of_the_last_event_is_written_every_ten_seconds(seconds: int, is_written: bool) -> None:
    later = replace(OPEN, last_event_ms=NOW_MS + seconds * 1000)
    status = socket_status.changed_status(SOCKET, later, LIVE)
    assert (status is not None) == is_written
    assert status is None or status.last_event_at == NOW + timedelta(seconds=seconds)


def test_the_first_event_is_written() -> None:
    quiet = replace(SOCKET, status=replace(SOCKET.status, last_event_at=None))
    status = socket_status.changed_status(quiet, OPEN, LIVE)
    assert status is not None
    assert status.last_event_at == NOW


def test_an_error_is_written_and_the_past_one_kept() -> None:
    failed = replace(OPEN, state=SocketState.CONNECTING, error="401", last_error="refused", last_error_ms=NOW_MS)
    status = socket_status.changed_status(SOCKET, failed, LIVE)
    assert status is not None
    assert (status.state, status.error, status.past_error, status.past_error_at) == (
        "connecting",
        "401",
        "refused",
        NOW,
    )
    recovered = socket_status.changed_status(replace(SOCKET, status=status), OPEN, LIVE)
    assert recovered is not None
    assert (recovered.error, recovered.past_error, recovered.past_error_at) == ("", "refused", NOW)


def test_a_replaced_socket_names_the_competing_client_unless_its_successor_replaced_it() -> None:
    replaced = replace(OPEN, state=SocketState.REPLACED)
    status = socket_status.changed_status(SOCKET, replaced, LIVE)
    assert status is not None
    assert status.error == actions.PREEMPTED
    status = socket_status.changed_status(replace(SOCKET, superseded=True), replaced, LIVE)
    assert status is not None
    assert status.error == ""


def test_a_socket_of_a_lost_listener_is_unassigned_and_the_rest_stays() -> None:
    status = socket_status.changed_status(SOCKET, None, {})
    assert status == replace(SOCKET.status, state="unassigned")
    assert socket_status.changed_status(replace(SOCKET, status=status), None, {}) is None


def test_a_listener_that_has_not_reported_yet_changes_nothing() -> None:
    assert socket_status.changed_status(SOCKET, None, LIVE) is None


def test_a_parked_socket_keeps_the_reason() -> None:
    assert socket_status.changed_status(replace(SOCKET, parked=True), None, {}) is None
