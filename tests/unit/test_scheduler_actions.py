"""The next action for an event socket: one table of rows and reports."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler import actions
from scheduler.actions import Action
from shared.assignments import Report, SocketState
from tests.support.sample_sockets import event_socket, report

OPEN = report(SocketState.CONNECTED)
OPENING = report(SocketState.CONNECTING)
REPLACED = report(SocketState.REPLACED)
HANDED_OFF = {"previous_listener_id": "l0", "previous_epoch": 3}
OTHER_APP = {"superseded": True, "same_app_instance": False}


@pytest.mark.parametrize(
    ("row", "current", "previous", "action"),
    [
        ({}, OPEN, None, Action.KEEP),
        ({}, OPENING, None, Action.KEEP),
        ({}, None, None, Action.KEEP),
        # A hand-off ends when the new listener has the socket, or the previous one has lost it.
        (HANDED_OFF, None, OPEN, Action.KEEP),
        (HANDED_OFF, OPENING, OPEN, Action.KEEP),
        (HANDED_OFF, OPEN, OPEN, Action.RELEASE_PREVIOUS),
        (HANDED_OFF, OPENING, OPENING, Action.RELEASE_PREVIOUS),
        (HANDED_OFF, None, None, Action.RELEASE_PREVIOUS),
        (HANDED_OFF | {"hand_off_overdue": True}, OPENING, OPEN, Action.REVERT),
        (HANDED_OFF | {"hand_off_overdue": True}, OPEN, OPEN, Action.RELEASE_PREVIOUS),
        # A superseded version of the same app instance waits for its successor, another for its calls.
        ({"superseded": True}, OPEN, None, Action.RETIRE),
        ({"superseded": True, "successor_connected": False}, OPEN, None, Action.KEEP),
        ({"superseded": True, "successor_connected": False}, REPLACED, None, Action.KEEP),
        (HANDED_OFF | {"superseded": True, "successor_connected": False}, OPEN, OPEN, Action.RELEASE_PREVIOUS),
        (OTHER_APP, OPEN, None, Action.RETIRE),
        (OTHER_APP | {"has_calls": True}, OPEN, None, Action.KEEP),
        (OTHER_APP | {"has_calls": True, "drain_overdue": True}, OPEN, None, Action.RETIRE),
        # A quarantine ends by itself, unless the version is no longer wanted.
        ({"parked": True}, None, None, Action.KEEP),
        ({"parked": True, "quarantine_over": True}, None, None, Action.END_QUARANTINE),
        ({"parked": True, "quarantine_over": True, "superseded": True}, None, None, Action.RETIRE),
        # A competing client: noticed, given its time, reclaimed once, then left alone.
        ({}, REPLACED, None, Action.MARK_PREEMPTED),
        ({"preempted": True}, REPLACED, None, Action.KEEP),
        ({"preempted": True, "may_reclaim": True}, REPLACED, None, Action.RECLAIM),
        ({"reclaims": 1}, REPLACED, None, Action.PARK),
        ({"reclaims": 1, "preempted": True, "may_reclaim": True}, REPLACED, None, Action.PARK),
        ({"reclaims": 1}, OPEN, None, Action.KEEP),
        ({"reclaims": 1, "stable": True}, OPENING, None, Action.KEEP),
        ({"reclaims": 1, "stable": True}, OPEN, None, Action.CLEAR_RECLAIMS),
    ],
)
def test_the_next_action(row: dict[str, Any], current: Report | None, previous: Report | None, action: Action) -> None:
    assert actions.next_action(event_socket(**row), current, previous) is action


@pytest.mark.parametrize(
    ("current", "previous", "action"),
    [
        (None, None, Action.KEEP),
        (OPENING, None, Action.KEEP),
        (OPENING, OPENING, Action.RELEASE_PREVIOUS),
        (OPEN, None, Action.RELEASE_PREVIOUS),
    ],
)
def test_a_report_that_may_be_on_its_way_ends_no_hand_off(
    current: Report | None, previous: Report | None, action: Action
) -> None:
    row: dict[str, Any] = HANDED_OFF
    assert actions.next_action(event_socket(**row), current, previous, may_be_incomplete=True) is action


@pytest.mark.parametrize(
    ("row", "action"),
    [
        ({}, Action.REOPEN),
        ({"preempted": True}, Action.REOPEN),
        ({"reclaims": 1}, Action.REOPEN),
        # It gives way itself, so it does not take the app back.
        ({"waits": True}, Action.KEEP),
        ({"superseded": True, "successor_connected": False}, Action.KEEP),
    ],
)
def test_a_socket_that_another_one_of_ours_has_replaced_is_opened_again(row: dict[str, Any], action: Action) -> None:
    assert actions.next_action(event_socket(**row), REPLACED, None, replaced_by_ours=True) is action


def test_a_socket_that_waits_is_not_taken_for_preempted() -> None:
    assert actions.next_action(event_socket(waits=True), REPLACED, None) is Action.KEEP


def test_a_parked_socket_says_how_to_unpark_it() -> None:
    assert actions.parked_reason(event_socket()).endswith("arictl connection unpark --organization 101")
