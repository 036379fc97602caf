"""Of a party it is said that it sent no audio only where Asterisk would have told."""

from __future__ import annotations

from typing import Any

import pytest

from shared.operator import audio, verdict
from shared.operator.call_queries import TimelineRow
from shared.operator.stories import CallStory
from tests.support.call_stories import ARRIVED, ASKED, ended, joined, note, row, story

HUNG_UP = ended(12, "CallerLeft", "hangup_cause=16, → completed: caller hung up")
SET = note(0.06, "TalkDetectionSet", "agent, caller")
AGENT, CALLER = note(0.5, "AgentHeard", "after 0.450 s"), note(0.1, "CallerHeard", "after 0.050 s")


def told(*rows: TimelineRow, end: tuple[TimelineRow, ...] = HUNG_UP, **more: Any) -> CallStory:
    come = {"outcome": "completed", "reason": "caller hung up"} if end else {}
    return story(*ARRIVED, *ASKED, *joined(0.05), *rows, *end, **{**come, **more})


@pytest.mark.parametrize(
    ("seen", "rule", "says", "sound"),
    [
        (told(SET, AGENT, CALLER), "completed", "caller hung up",
         "Asterisk told of audio from the caller after 0.050 s and of audio from the agent after 0.450 s."),
        (told(SET, CALLER), "agent-mute", "for 11.9 s: the agent sent no audio.",
         "Asterisk told of audio from the caller after 0.050 s and of none from the agent."),
        (told(SET, AGENT), "caller-mute", ": the caller sent no audio.", "of none from the caller."),
        (told(SET, AGENT, direction="outbound"), "caller-mute", ": the far end sent no audio.", "from the far end."),
        # Without its module Asterisk takes the function, and tells nothing.
        (told(SET), "completed", "", audio.NOT_KNOWN),
        # The function was not set, or on one leg only.
        (told(), "completed", "", audio.NOT_MEASURABLE),
        (told(note(0.06, "TalkDetectionSet", "caller"), CALLER), "completed", "", "from the caller after 0.050 s."),
        # Too short, or not over.
        (told(SET, CALLER, end=ended(2, "CallerLeft", "→ completed: caller hung up")), "completed", "", "of none"),
        (told(SET, CALLER, end=()), "connected", "", "of none from the agent"),
    ],
)  # fmt: skip
def test_what_is_said_of_the_audio(seen: CallStory, rule: str, says: str, sound: str) -> None:
    found = verdict.of(seen)
    assert found.rule == rule
    assert says in found.sentence
    assert sound in found.audio


@pytest.mark.parametrize(
    "seen",
    [
        told(SET, AGENT, row(5, "Transferred")),
        told(SET, AGENT, row(5, "LegReplaced")),
        told(SET, AGENT, notes=(note(5, "EventsMissed", "connected"),)),
    ],
    ids=["transferred", "replaced", "events missed"],
)
def test_nothing_is_said_of_legs_that_changed_and_where_events_were_missed(seen: CallStory) -> None:
    found = verdict.of(seen)
    assert "mute" not in found.rule
    assert found.audio == "Asterisk told of audio from the agent after 0.450 s."


def test_what_was_missed_before_the_call_was_connected_is_no_matter() -> None:
    assert verdict.of(told(SET, CALLER, notes=(note(-5, "EventsMissed", "connected"),))).rule == "agent-mute"


def test_the_evidence_is_that_the_function_was_set() -> None:
    names = [each.name for each in verdict.of(told(SET, CALLER)).evidence]
    assert names == ["Joined", "TalkDetectionSet"]
