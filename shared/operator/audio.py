"""Whether the parties of a call sent audio, by what Asterisk told of it (`workers/talk_detection.py`). Pure.

Silence that is sent counts as audio: a telephone sends it, an agent need not. That a party sent none is said only of a
leg whose function TALK_DETECT was set, in a call that no event can have been missed of and whose legs stayed the same.
"""

from __future__ import annotations

from shared.call.states import Direction
from shared.operator.call_queries import TimelineRow
from shared.operator.stories import CallStory
from shared.storage.timeline import EVENTS_MISSED, HEARD, TALK_DETECTION

#: Asterisk has no RTP statistics of a media leg over a websocket.
NOT_MEASURABLE = "Whether caller and agent sent audio is not measurable here: no TALK_DETECT is set on their legs."
#: The function was set, and what Asterisk told may have been missed.
NOT_KNOWN = (
    "Whether caller and agent sent audio is not known: Asterisk told of neither (is func_talkdetect.so loaded?), events"
    " were missed, or a leg was replaced."
)
#: A leg that has changed is another one than the function was set on.
_MOVED = ("Transferred", "LegReplaced")


def told(story: CallStory) -> str:
    """Return what is known of the audio, in a sentence; an empty text for a call that was never connected."""
    if story.call.connected_at is None:
        return ""
    told_of = [f"from the {_named(story, row)} {row.detail}" for row in _heard(story)]
    none = [f"of none from the {name(story, party)}" for party in silent(story)]
    if not told_of and not none:
        return NOT_KNOWN if evidence(story) else NOT_MEASURABLE
    return f"Asterisk told {' and '.join([*(f'of audio {each}' for each in told_of), *none])}."


def silent(story: CallStory) -> tuple[str, ...]:
    """Return the parties of which Asterisk would have told audio, and told none.

    That it told of the other one proves that it can: without its module it takes the function, and tells nothing.
    """
    if story.named(*_MOVED) or any(note.name == EVENTS_MISSED for note in _notes_since_connected(story)):
        return ()
    heard = {row.name for row in _heard(story)}
    if not heard:
        return ()
    return tuple(party for party in HEARD if party in _listened_to(story) and HEARD[party] not in heard)


def evidence(story: CallStory) -> tuple[TimelineRow, ...]:
    """Return the rows that tell on which legs the function was set."""
    return story.named(TALK_DETECTION)


def name(story: CallStory, party: str) -> str:
    """Return what a party is called in a sentence about this call."""
    return "far end" if party == "caller" and story.call.direction == Direction.OUTBOUND else party


def _heard(story: CallStory) -> tuple[TimelineRow, ...]:
    return story.named(*HEARD.values())


def _named(story: CallStory, row: TimelineRow) -> str:
    return next(name(story, party) for party, note in HEARD.items() if note == row.name)


def _listened_to(story: CallStory) -> frozenset[str]:
    return frozenset(party for row in evidence(story)[-1:] for party in HEARD if party in row.detail)


def _notes_since_connected(story: CallStory) -> tuple[TimelineRow, ...]:
    since = story.call.connected_at
    return tuple(note for note in story.notes if since is not None and note.at >= since)
