"""The moves of one tick: away from lost listeners at once, to even out the load a few at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from scheduler import move_plan
from scheduler.actions import Action, ObservedSocket
from scheduler.move_plan import MovePlan
from tests.support.sample_sockets import event_socket, report

LIVE = {"l1": 100, "l2": 100}


def observed(connection_id: int = 1, action: Action = Action.KEEP, **changes: Any) -> ObservedSocket:
    """An open socket of listener l1."""
    return ObservedSocket(socket=event_socket(connection_id, **changes), report=report(), action=action)


def planned(
    sockets: Iterable[ObservedSocket],
    live: dict[str, int] = LIVE,
    *,
    cooling_down: Collection[str] = (),
    in_grace_period: bool = False,
) -> MovePlan:
    return move_plan.plan(list(sockets), live, cooling_down=cooling_down, in_grace_period=in_grace_period)


def moves(plan: MovePlan) -> list[tuple[str, str | None, int | None, bool]]:
    return [(move.listener, move.previous, move.previous_epoch, move.is_reclaim) for move in plan.moves]


def test_hand_offs_are_made_a_few_at_a_time_while_the_listener_keeps_the_socket_open() -> None:
    plan = planned(observed(number) for number in range(60))
    assert moves(plan) == [("l2", "l1", 4, False)] * 20
    assert plan.has_deferred
    under_way = [observed(number, previous_listener_id="l2", previous_epoch=3) for number in range(15)]
    plan = planned([*under_way, *(observed(number) for number in range(15, 60))])
    assert (len(plan.moves), plan.has_deferred) == (5, True)


def test_a_socket_that_is_not_open_moves_without_a_hand_off() -> None:
    sockets = [ObservedSocket(socket=event_socket(number), report=None, action=Action.KEEP) for number in (1, 2)]
    assert moves(planned(sockets)) == [("l2", None, None, False)]


def test_a_listener_that_cools_down_gets_no_hand_off() -> None:
    plan = planned([observed(1), observed(2)], cooling_down={"l2"})
    assert (moves(plan), plan.has_deferred) == ([], False)


def test_a_preempted_socket_is_not_handed_off() -> None:
    assert moves(planned([observed(1, preempted=True), observed(2, preempted=True)])) == []


def test_in_a_grace_period_a_lost_listener_keeps_its_sockets_and_no_hand_off_begins() -> None:
    sockets = [observed(1, listener_id="lost"), observed(2), observed(3), observed(4), observed(5, listener_id=None)]
    plan = planned(sockets, in_grace_period=True)
    assert [move.socket.connection.connection_id for move in plan.moves] == [5], "an unassigned socket does not wait"
    assert plan.has_deferred
    assert {move.socket.connection.connection_id for move in planned(sockets).moves} >= {1, 5}


def test_the_previous_listener_keeps_a_socket_whose_new_listener_is_lost() -> None:
    socket = observed(listener_id="lost", epoch=5, previous_listener_id="l1", previous_epoch=4)
    assert moves(planned([socket], {"l1": 0, "l2": 1})) == [("l2", "l1", 4, False)]
    assert moves(planned([socket], {"l1": 1})) == [("l1", None, None, False)]
    assert moves(planned([socket], {"l2": 1})) == [("l2", None, None, False)]


def test_a_failed_hand_off_goes_back_to_the_previous_listener_if_that_is_alive() -> None:
    socket = observed(action=Action.REVERT, previous_listener_id="l2", previous_epoch=3)
    assert moves(planned([socket])) == [("l2", None, None, False)]
    assert moves(planned([socket], {"l1": 100})) == []


def test_a_reclaim_stays_with_its_listener() -> None:
    assert moves(planned([observed(action=Action.RECLAIM, preempted=True)])) == [("l1", None, None, True)]


def test_a_competing_client_keeps_the_app_for_as_long_when_the_listener_is_lost() -> None:
    assert moves(planned([observed(listener_id="lost", preempted=True)])) == []
    ((_, _, _, is_reclaim),) = moves(planned([observed(listener_id="lost", preempted=True, may_reclaim=True)]))
    assert is_reclaim, "it counts as the one attempt"


def test_a_parked_socket_gets_no_listener() -> None:
    assert moves(planned([observed(parked=True, listener_id=None)])) == []


def test_sockets_without_room_are_counted() -> None:
    plan = planned([observed(number, listener_id=None) for number in range(5)], {"l1": 2})
    assert (len(plan.moves), plan.without_room) == (2, 3)


def test_a_socket_that_waits_goes_to_no_listener() -> None:
    assert planned([observed(waits=True, listener_id=None)]).moves == []
    assert planned([observed(waits=True, listener_id="lost")]).moves == []
    assert planned([observed(waits=True)], {"l2": 100}).moves == []


def test_a_socket_that_is_opened_again_stays_with_its_listener_and_counts_as_no_reclaim() -> None:
    assert moves(planned([observed(action=Action.REOPEN)])) == [("l1", None, None, False)]
