"""Which listener gets which key: rendezvous hashing within capacities, with the fewest moves. Pure.

Each listener gets a share in proportion to its capacity. A listener with no more than its share keeps all its keys.
Keys above a share, and unassigned keys, go to the listener with room that the hash ranks first.

Rendezvous hashing: https://en.wikipedia.org/wiki/Rendezvous_hashing
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial


def rebalance(assigned: Mapping[str, str | None], capacities: Mapping[str, int]) -> dict[str, str | None]:
    """Assign every key to a listener.

    Args:
        assigned: Key → the listener that has it now. None, or a listener missing from `capacities`: unassigned.
        capacities: Listener → most keys it may have.

    Returns:
        Key → listener; None for a key that no listener has room for.
    """
    owned: dict[str, list[str]] = {listener: [] for listener in capacities}
    unassigned: list[str] = []
    for key, listener in assigned.items():
        owned.get(listener or "", unassigned).append(key)
    room = _shares(len(assigned), capacities, {listener: len(own) for listener, own in owned.items()})
    balanced: dict[str, str | None] = {}
    for listener, own in owned.items():
        share = room[listener]
        if len(own) > share:
            own.sort(key=partial(_weight, listener), reverse=True)
        balanced |= dict.fromkeys(own[:share], listener)
        unassigned += own[share:]
        room[listener] -= len(own[:share])
    for key in sorted(unassigned):
        chosen = max((name for name, left in room.items() if left), key=partial(_weight, key=key), default=None)
        if chosen is not None:
            room[chosen] -= 1
        balanced[key] = chosen
    return balanced


def _shares(number: int, capacities: Mapping[str, int], owned: Mapping[str, int]) -> dict[str, int]:
    """Return each listener's share of `number` keys: its proportion, rounded so that the fewest keys move."""
    total = sum(capacities.values())
    number = min(number, total)
    parts = {listener: divmod(number * capacity, total or 1) for listener, capacity in capacities.items()}
    shares = {listener: whole for listener, (whole, _) in parts.items()}
    # Round up first the listeners that would otherwise have to give a key away, then those with the largest remainder.
    first = sorted(
        shares,
        key=lambda listener: (
            parts[listener][1] == 0,
            owned[listener] <= shares[listener],
            -parts[listener][1],
            listener,
        ),
    )
    for listener in first[: number - sum(shares.values())]:
        shares[listener] += 1
    return shares


def _weight(listener: str, key: str) -> bytes:
    """Return the rendezvous weight. A key's first choice is the listener with the highest one."""
    return hashlib.sha256(f"{listener}\n{key}".encode()).digest()
