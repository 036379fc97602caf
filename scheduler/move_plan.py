"""Which event sockets move to which listener in one tick. Pure.

Some moves are made at once: away from a lost listener, back to the previous listener after a failed hand-off, and a
reclaim. Hand-offs, which only even out the load, are made a few at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scheduler import rebalancing
from scheduler.actions import Action, ObservedSocket
from scheduler.socket_rows import EventSocket, Move

#: Most hand-offs under way at once.
_HAND_OFFS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MovePlan:
    """The moves of one tick."""

    moves: Sequence[Move]
    #: More hand-offs are due, once those under way have ended.
    has_deferred: bool
    #: How many sockets no listener has room for.
    without_room: int


def plan(
    observed: Sequence[ObservedSocket],
    live: Mapping[str, int],
    *,
    cooling_down: Collection[str],
    in_grace_period: bool,
) -> MovePlan:
    """Plan the moves of one tick.

    Args:
        observed: Every socket that is wanted.
        live: Listener → capacity, of the listeners that are alive; at least one.
        cooling_down: Listeners that get no hand-offs for now.
        in_grace_period: A listener that is not alive may come back: its sockets stay, and no hand-off begins.
    """
    eligible = {str(each.socket.connection): each for each in observed if _may_move(each.socket, live, in_grace_period)}
    targets = rebalancing.rebalance({key: each.socket.listener_id for key, each in eligible.items()}, live)
    urgent: list[Move] = []
    hand_offs: list[Move] = []
    for key, target in targets.items():
        each = eligible[key]
        socket, owner, previous = each.socket, each.socket.listener_id, each.socket.previous_listener_id
        if each.action is Action.REVERT and previous is not None and previous in live:
            urgent.append(Move(socket=socket, listener=previous))
        elif owner is None or owner not in live:
            # The loss of a listener does not shorten the time for which a competing client keeps the app.
            if target is not None and (socket.may_reclaim or not socket.preempted):
                urgent.append(_failover(socket, target, live))
        elif each.action in {Action.RECLAIM, Action.REOPEN}:
            urgent.append(Move(socket=socket, listener=owner, is_reclaim=each.action is Action.RECLAIM))
        elif target is not None and target != owner and target not in cooling_down and _may_be_handed_off(socket):
            hand_offs.append(_hand_off(each, target))
    under_way = sum(each.socket.previous_listener_id is not None for each in observed)
    started = [] if in_grace_period else hand_offs[: max(0, _HAND_OFFS - under_way)]
    return MovePlan(
        moves=[*urgent, *started],
        has_deferred=len(hand_offs) > len(started),
        without_room=sum(target is None for target in targets.values()),
    )


def _may_move(socket: EventSocket, live: Mapping[str, int], in_grace_period: bool) -> bool:
    if socket.parked or socket.asked or socket.waits:
        return False
    return socket.listener_id in live or socket.listener_id is None or not in_grace_period


def _may_be_handed_off(socket: EventSocket) -> bool:
    return socket.previous_listener_id is None and not socket.preempted


def _hand_off(each: ObservedSocket, target: str) -> Move:
    """Move a socket to another listener. If it is open, its listener keeps it open until the new one has opened it."""
    socket = each.socket
    if not each.is_connected:
        return Move(socket=socket, listener=target)
    return Move(socket=socket, listener=target, previous=socket.listener_id, previous_epoch=socket.epoch)


def _failover(socket: EventSocket, target: str, live: Mapping[str, int]) -> Move:
    """Move a socket away from a lost listener. During a hand-off the previous listener still has it open."""
    if socket.previous_listener_id not in live or socket.previous_listener_id == target:
        return Move(socket=socket, listener=target, is_reclaim=socket.preempted)
    previous, epoch = socket.previous_listener_id, socket.previous_epoch
    return Move(socket=socket, listener=target, previous=previous, previous_epoch=epoch)
