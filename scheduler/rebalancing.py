"""Which listener is to hold which socket: rendezvous hashing within a capacity, with the least moves. Pure.

Each listener gets its share, in proportion to its capacity. Whoever holds no more than that keeps all; what is beyond
it, and what nobody holds, goes where the hash says first among those with room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial


def place(held: Mapping[str, str | None], capacities: Mapping[str, int]) -> dict[str, str | None]:
    """Who is to hold each key.

    Args:
        held: Key → who holds it now; None, or a name that is not in `capacities`, for one that needs a place.
        capacities: Listener → most keys it may hold.

    Returns:
        Key → listener; None for a key that finds no room anywhere.
    """
    having: dict[str, list[str]] = {listener: [] for listener in capacities}
    homeless: list[str] = []
    for key, listener in held.items():
        having.get(listener or "", homeless).append(key)
    room = _shares(len(held), capacities, {listener: len(own) for listener, own in having.items()})
    placed: dict[str, str | None] = {}
    for listener, own in having.items():
        share = room[listener]
        if len(own) > share:
            own.sort(key=partial(_weight, listener), reverse=True)
        placed |= dict.fromkeys(own[:share], listener)
        homeless += own[share:]
        room[listener] -= len(own[:share])
    for key in sorted(homeless):
        chosen = max((name for name, left in room.items() if left), key=partial(_weight, key=key), default=None)
        if chosen is not None:
            room[chosen] -= 1
        placed[key] = chosen
    return placed


def _shares(number: int, capacities: Mapping[str, int], having: Mapping[str, int]) -> dict[str, int]:
    """How many keys each is to hold: its proportion, rounded down or up so that the fewest keys move."""
    total = sum(capacities.values())
    number = min(number, total)
    parts = {listener: divmod(number * capacity, total or 1) for listener, capacity in capacities.items()}
    shares = {listener: whole for listener, (whole, _) in parts.items()}
    # Rounded up are those who would otherwise have to give one away, then those with the largest remainder.
    first = sorted(
        shares,
        key=lambda listener: (
            parts[listener][1] == 0,
            having[listener] <= shares[listener],
            -parts[listener][1],
            listener,
        ),
    )
    for listener in first[: number - sum(shares.values())]:
        shares[listener] += 1
    return shares


def _weight(listener: str, key: str) -> bytes:
    """The rendezvous hash: of all listeners, the one with the highest weight is a key's first choice."""
    return hashlib.sha256(f"{listener}\n{key}".encode()).digest()
