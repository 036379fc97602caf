"""From the sockets we hold and the assignments we read to what has to be done. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.assignments import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What makes the sockets we hold those we were assigned."""

    #: New, or newer than what we hold under the same key.
    to_open: tuple[Assignment, ...] = ()
    #: Keys no longer assigned.
    to_close: tuple[str, ...] = ()
    #: Keys whose socket stays while it is open, and is not opened again.
    to_yield: tuple[str, ...] = ()
    #: New, but more than we may hold.
    beyond_capacity: tuple[Assignment, ...] = ()


def changes(
    held: Mapping[str, Assignment], read: Mapping[str, Assignment | None], *, complete: bool, capacity: int
) -> Changes:
    """Compares.

    Args:
        held: By key, what we hold or try to.
        read: By key, what Redis says; None for what could not be read, which changes nothing.
        complete: What is missing from `read` was taken from us. False when Redis may have been emptied since we last
            read: then nothing is closed, and nothing that is missing is opened again: it may be another's by now.
        capacity: Most sockets; a newer assignment of a key we hold needs no more room.
    """
    missing = tuple(key for key in held if key not in read)
    to_close = missing if complete else ()
    room = capacity - (len(held) - len(to_close))
    newer, new = [], []
    to_yield = [key for key in missing if not (complete or held[key].draining)]
    for key, assignment in read.items():
        if assignment is None:
            continue
        if assignment.draining:
            if key in held and not held[key].draining and assignment.epoch >= held[key].epoch:
                to_yield.append(key)
        elif key not in held:
            new.append(assignment)
        elif _is_newer(assignment, held[key]):
            newer.append(assignment)
    return Changes(
        to_open=(*newer, *new[: max(0, room)]),
        to_close=to_close,
        to_yield=tuple(to_yield),
        beyond_capacity=tuple(new[max(0, room) :]),
    )


def _is_newer(assignment: Assignment, held: Assignment) -> bool:
    if assignment.epoch != held.epoch:
        return assignment.epoch > held.epoch
    # One that was to yield and is not any more is as good as new.
    return assignment.fingerprint != held.fingerprint or held.draining
