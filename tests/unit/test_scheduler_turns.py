"""Which of several event sockets of one app instance may be opened."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from scheduler import turns
from scheduler.socket_rows import EventSocket
from shared.assignments import SocketState
from shared.call.ids import ConnectionVersion
from tests.support.sample_sockets import event_socket, report

EARLY, LATE = (datetime(2026, 5, day, tzinfo=UTC) for day in (1, 2))


def socket(
    connection_id: int, version: int = 1, *, state: str = "connected", error: str = "", **changes: Any
) -> EventSocket:
    """Return a socket of the app instance that all samples have."""
    one = event_socket(connection_id, **changes)
    return replace(
        one, connection=ConnectionVersion(connection_id, version), status=replace(one.status, state=state, error=error)
    )


@pytest.mark.parametrize(
    ("sockets", "waiting"),
    [
        pytest.param([socket(1)], [], id="one"),
        pytest.param([socket(1), socket(2, endpoint="http://other")], [], id="two Asterisks"),
        pytest.param([socket(1), socket(2, app="b")], [], id="two apps"),
        pytest.param([socket(1, 1, superseded=True), socket(1, 2, state="unassigned")], ["1:1"], id="a successor"),
        pytest.param([socket(1, 1, superseded=True), socket(1, 2, state="connecting", error="401")], [], id="it fails"),
        pytest.param(
            [socket(1, 1, superseded=True), socket(1, 2, state="replaced", error="another ARI client")],
            ["1:1"],
            id="a competing client has its app",
        ),
        pytest.param(
            [socket(1, 1, superseded=True), socket(1, 2, superseded=True), socket(1, 3)],
            ["1:1", "1:2"],
            id="two before",
        ),
        pytest.param(
            [socket(1, 1, superseded=True), socket(1, 2, superseded=True)], ["1:1"], id="removed: the newest goes first"
        ),
        pytest.param([socket(1, superseded=True), socket(2)], ["1:1"], id="removed, and another's now"),
        pytest.param([socket(1), socket(2)], ["2:1"], id="both open: the first"),
        pytest.param([socket(1, state="unassigned"), socket(2, state="unassigned")], [], id="none accepted: all try"),
        pytest.param(
            [socket(1, state="connecting", accepted_at=EARLY), socket(2, state="unassigned")],
            ["2:1"],
            id="it was accepted",
        ),
        pytest.param([socket(1, state="connecting", error="401"), socket(2)], [], id="a wrong guess keeps none out"),
        pytest.param([socket(1), socket(2, accepted_at=LATE)], ["1:1"], id="accepted"),
        pytest.param([socket(1, accepted_at=LATE), socket(2, accepted_at=EARLY)], ["1:1"], id="accepted first"),
    ],
)
def test_one_socket_of_an_app_instance_goes_first(sockets: list[EventSocket], waiting: list[str]) -> None:
    assert sorted(map(str, turns.waiting(sockets))) == waiting
    assert turns.waiting(sockets) == turns.waiting(sockets[::-1])


def test_several_sockets_of_an_app_instance_are_contested() -> None:
    assert turns.contested([socket(1), socket(2), socket(3, app="b")]) == {
        ConnectionVersion(1, 1),
        ConnectionVersion(2, 1),
    }


@pytest.mark.parametrize(
    ("after", "is_other"),
    [
        (socket(1), False),
        (socket(1, state="replaced"), True),
        (socket(1, state="connecting"), True),
        (socket(1, state="connecting", error="401"), True),
    ],
)
def test_what_becomes_of_a_socket_may_be_another_one_s_turn(after: EventSocket, *, is_other: bool) -> None:
    assert turns.is_other_turn(socket(1), after) is is_other


@pytest.mark.parametrize(
    ("other", "state", "since_ms", "is_ours"),
    [
        pytest.param(socket(1, 2), SocketState.CONNECTED, 11_000, True, id="opened with it"),
        pytest.param(socket(1, 2), SocketState.CONNECTED, 9_000, True, id="reported before it"),
        pytest.param(socket(1, 2), SocketState.CONNECTED, 1_000, False, id="open for long"),
        pytest.param(socket(1, 2), SocketState.CONNECTING, 10_000, False, id="not open"),
        pytest.param(socket(2), SocketState.CONNECTED, 10_000, True, id="of another connection"),
        pytest.param(socket(2, organization_id=5), SocketState.CONNECTED, 10_000, True, id="of another organization"),
        pytest.param(
            socket(2, endpoint="https://pbx"),
            SocketState.CONNECTED,
            10_000,
            True,
            id="another way to the same Asterisk",
        ),
        pytest.param(
            socket(2, endpoint="http://other", organization_id=5), SocketState.CONNECTED, 10_000, False, id="elsewhere"
        ),
        pytest.param(socket(2, app="b"), SocketState.CONNECTED, 10_000, False, id="of another app"),
    ],
)
def test_a_socket_of_ours_that_opened_just_then_is_no_competing_client(
    other: EventSocket, state: SocketState, since_ms: int, *, is_ours: bool
) -> None:
    replaced = report(SocketState.REPLACED, since_ms=10_000)
    reports = {other.connection: report(state, since_ms=since_ms)}
    assert turns.is_replaced_by_ours(socket(1), replaced, [other], reports) is is_ours
    assert not turns.is_replaced_by_ours(socket(1), report(), [other], reports), "it was not replaced"
    assert not turns.is_replaced_by_ours(socket(1), replaced, [other], {other.connection: None})
