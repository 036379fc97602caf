"""Entries into Stasis: a duplicate, a late event, a re-entry, a leg adopted without an event."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from shared.call import stasis_entry
from shared.call.calls import Call
from shared.call.stasis_entry import Entry
from shared.call.states import Direction, Outcome, State

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
S1, S2, S3 = (f"2026-05-01T12:00:0{number}.000+0000" for number in (1, 2, 3))

LIVE = Call(
    call_id=UUID(int=1),
    connection_id=7,
    connection_version=1,
    organization_id=3,
    channel_id="1.1",
    channel_created="2026-05-01T12:00:00.000+0000",
    entry=1,
    direction=Direction.INBOUND,
    state=State.CONNECTED,
    received_at=NOW,
    state_since=NOW,
    deadline_at=NOW,
    entered_stamp=S1,
)
LEFT = replace(LIVE, state=State.ENDING, caller_left=True, left_stamp=S2)
ENDED = replace(LEFT, state=State.ENDED)
#: Hung up by the product: ended without its StasisEnd having been read.
ENDED_UNSTAMPED = replace(LIVE, state=State.ENDED)
ADOPTED = replace(LIVE, entered_stamp=None)
ABANDONED = replace(ENDED, entered_stamp=None, outcome=Outcome.ABANDONED)


@pytest.mark.parametrize(
    ("last", "stamp", "entry"),
    [
        # The first of its channel.
        (None, S1, Entry.NEW),
        (None, "", Entry.NEW),
        # A duplicate of the event that made the call, in any state.
        (LIVE, S1, Entry.KNOWN),
        (LEFT, S1, Entry.KNOWN),
        (ENDED, S1, Entry.KNOWN),
        (ENDED_UNSTAMPED, S1, Entry.KNOWN),
        # The clock was set back in between: the same.
        (replace(LIVE, entered_stamp=S2), S1, Entry.MISSED_STASIS_END),
        (replace(ENDED, entered_stamp=S2, left_stamp=S3), S1, Entry.NEW),
        # In a call without an agent both are served alike.
        (replace(LIVE, state=State.PREPARED, entered_stamp=S2), S1, Entry.KNOWN),
        (replace(LIVE, state=State.PREPARED, entered_stamp=S2), S3, Entry.KNOWN),
        # The channel came back after its call had left: never ignored.
        (LEFT, S3, Entry.NEW),
        (ENDED, S3, Entry.NEW),
        (ENDED_UNSTAMPED, S3, Entry.NEW),
        # It came back, and its StasisEnd was missed; or the event is late. Where the leg is tells.
        (LIVE, S2, Entry.MISSED_STASIS_END),
        # Adopted by a resync, then the event arrives late.
        (ADOPTED, S1, Entry.KNOWN),
        (replace(ADOPTED, state=State.RECEIVED), S3, Entry.KNOWN),
        # Adopted, left, came back.
        (replace(ADOPTED, state=State.ENDED, caller_left=True, left_stamp=S2), S3, Entry.NEW),
        # Its end was read before its start, or it came back: where the leg is tells.
        (ABANDONED, S1, Entry.NEW),
        (ABANDONED, S3, Entry.NEW),
        # A resync sees the leg in Stasis.
        (LIVE, "", Entry.KNOWN),
        (ADOPTED, "", Entry.KNOWN),
        (LEFT, "", Entry.NEW),
        (ENDED, "", Entry.NEW),
        (ENDED_UNSTAMPED, "", Entry.NEW),
    ],
)
def test_what_a_start_is(last: Call | None, stamp: str, entry: Entry) -> None:
    assert stasis_entry.judge(last, stamp) is entry
