"""Which call a channel's entry into Stasis belongs to: a duplicate event, a late one, or a new call.

Stamps are one Asterisk's own clock, compared only with each other.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from shared.call.calls import Call
from shared.call.states import State


class Entry(StrEnum):
    """What a StasisStart is, given the newest call of its channel."""

    #: No call of this channel yet, or the one there was is over: a new call.
    NEW = "new"
    #: The known call.
    KNOWN = "known"
    #: New; the StasisEnd of the known call was missed.
    MISSED_STASIS_END = "missed-stasis-end"


def judge(last: Call | None, stamp: str) -> Entry:
    """Return what a StasisStart with this stamp is.

    Args:
        last: The newest call of the channel (same id, same creationtime), or None.
        stamp: The event's timestamp; empty when a resync found the leg in Stasis and there was no event.
    """
    if last is None:
        return Entry.NEW
    over = last.caller_left or last.state is State.ENDED
    if not stamp:
        return Entry.NEW if over else Entry.KNOWN
    if last.entered_stamp is not None and not later(stamp, last.entered_stamp):
        return Entry.KNOWN
    # A channel may leave Stasis and enter it again within the same millisecond, the resolution of stamps.
    if last.left_stamp is not None and later(last.left_stamp, stamp):
        return Entry.KNOWN
    if over:
        return Entry.NEW
    # A resync adopted the leg, without a stamp: this is its late event.
    return Entry.KNOWN if last.entered_stamp is None else Entry.MISSED_STASIS_END


def later(stamp: str, other: str) -> bool:
    """True if one stamp is after the other; unreadable stamps are compared as text."""
    try:
        return datetime.fromisoformat(stamp) > datetime.fromisoformat(other)
    except (TypeError, ValueError):
        return stamp > other
