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
    #: The call we know.
    KNOWN = "known"
    #: New, and the call we know must have left Stasis without our hearing of it.
    MISSED_STASIS_END = "missed-stasis-end"


def judge(last: Call | None, stamp: str) -> Entry:
    """What a StasisStart with this stamp is.

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
    # From Stasis straight into Stasis may take less than the millisecond that stamps tell apart.
    if last.left_stamp is not None and later(last.left_stamp, stamp):
        return Entry.KNOWN
    if over:
        return Entry.NEW
    # Adopted by a resync, without a stamp: this is the event that was late.
    return Entry.KNOWN if last.entered_stamp is None else Entry.MISSED_STASIS_END


def later(stamp: str, other: str) -> bool:
    """Whether one stamp is after the other; stamps that cannot be read are compared as text."""
    try:
        return datetime.fromisoformat(stamp) > datetime.fromisoformat(other)
    except (TypeError, ValueError):
        return stamp > other
