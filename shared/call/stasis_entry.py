"""Which call a channel's entry into Stasis belongs to: a duplicate event, a late one, or a new call.

Stamps are compared for equality alone: equal ones prove that two events are the same. Which of two others is later they
do not tell, for the clock of an Asterisk may be set back or forth in between. Where it matters, Asterisk is asked.
"""

from __future__ import annotations

from enum import StrEnum

from shared.call.calls import Call
from shared.call.states import State


class Entry(StrEnum):
    """What a StasisStart is, given the newest call of its channel."""

    #: No call of this channel yet, or the one there was is over: a new call, if the leg is in Stasis now.
    NEW = "new"
    #: The known call. A leg that came back while its call was being set up is still served by it.
    KNOWN = "known"
    #: New, if the leg is no more in the bridge of the known call: the StasisEnd of that call was missed.
    MISSED_STASIS_END = "missed-stasis-end"


def judge(last: Call | None, stamp: str) -> Entry:
    """Return what a StasisStart with this stamp is.

    Args:
        last: The newest call of the channel (same id, same creationtime), or None.
        stamp: The event's timestamp; empty when a resync found the leg in Stasis and there was no event.
    """
    if last is None:
        return Entry.NEW
    if stamp and stamp == last.entered_stamp:
        return Entry.KNOWN
    if last.caller_left or last.state is State.ENDED:
        return Entry.NEW
    if last.state is not State.CONNECTED or not stamp or last.entered_stamp is None:
        # Without a stamp it was found by a resync, now or before: in the latter case this is its late event.
        return Entry.KNOWN
    return Entry.MISSED_STASIS_END
