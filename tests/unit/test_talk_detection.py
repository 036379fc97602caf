"""TALK_DETECT on the legs of a connected call, and the note of the first audio of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors
from shared.asterisk import events
from shared.asterisk.events import EventType
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.process import metrics
from shared.storage.timeline import TimelineEntry
from tests.support import leg_scenes
from tests.support.calls import CALLS, CONNECTED, JOINING, NOW, seconds
from tests.support.rounds import GONE, LOOK_AT_APP, Rounds
from workers.bridge import Join
from workers.talk_detection import TalkDetection

NAMING = Naming("aip-")
MEDIA_ID = NAMING.media_id(CONNECTED)
CALLER_SET, MEDIA_SET = f"POST /channels/{CONNECTED.channel_id}/variable", f"POST /channels/{MEDIA_ID}/variable"
AWAY = errors.AsteriskUnreachable("no answer in time")


def app(*, with_talking: bool) -> dict[str, object]:
    allowed = [{"type": kind} for kind in events.wanted(with_talking=with_talking)]
    return {"channel_ids": [], "events_allowed": allowed}


LETS_THROUGH = {LOOK_AT_APP: [app(with_talking=True)]}


class Scene:
    """The function on the legs of a call, and the notes."""

    def __init__(self, answers: Mapping[str, Sequence[object]] | None = None) -> None:
        self.rounds = Rounds({**LETS_THROUGH, **(answers or {})})
        self.notes: dict[str, str] = {}
        self.failure: errors.PipelineError | None = None
        store = SimpleNamespace(now=lambda: NOW, append_timeline=self._append, append_once=self._append_once)
        writer = SimpleNamespace(store=store, clock=time)
        self.detection = TalkDetection(writer=cast(Any, writer), asterisks=self.rounds.asterisks, naming=NAMING)

    def _append(self, timeline: Sequence[TimelineEntry], *, call: Call) -> None:
        if self.failure is not None:
            raise self.failure
        self.notes |= {entry.name: entry.detail for entry in timeline if entry.kind == "note"}

    def _append_once(self, entry: TimelineEntry, *, call: Call) -> bool:
        is_new = entry.name not in self.notes
        self._append([entry] * is_new, call=call)
        return is_new


def observed(party: str) -> float:
    samples = [sample for family in metrics.FIRST_AUDIO.family.collect() for sample in family.samples]
    return sum(each.value for each in samples if each.name.endswith("_count") and each.labels == {"party": party})


def test_both_legs_get_the_function_at_the_same_time_and_the_filter_is_looked_at_once() -> None:
    scene = Scene()
    scene.detection.begin(CONNECTED)
    scene.detection.begin(CONNECTED)
    assert scene.rounds.rounds == [[LOOK_AT_APP], [CALLER_SET, MEDIA_SET], [CALLER_SET, MEDIA_SET]]
    assert [request.query for request in scene.rounds.requests[1:3]] == [
        {"variable": "TALK_DETECT(set)", "value": "86400000"}
    ] * 2
    assert scene.notes == {"TalkDetectionSet": "agent, caller"}


@pytest.mark.parametrize(
    ("answers", "notes"),
    [
        ({CALLER_SET: [GONE]}, {"TalkDetectionSet": "agent"}),
        ({MEDIA_SET: [AWAY]}, {"TalkDetectionSet": "caller"}),
        ({MEDIA_SET: [AWAY], CALLER_SET: [AWAY]}, {}),
        ({LOOK_AT_APP: [AWAY]}, {}),
        # An event that the filter drops would be missed.
        ({LOOK_AT_APP: [app(with_talking=False)]}, {}),
        ({LOOK_AT_APP: [GONE]}, {}),
        # Asterisk was started just now.
        ({LOOK_AT_APP: [{"channel_ids": []}]}, {"TalkDetectionSet": "agent, caller"}),
    ],
)
def test_it_is_noted_on_whose_legs_the_function_is_set_and_a_failure_changes_nothing_else(
    answers: dict[str, list[object]], notes: dict[str, str]
) -> None:
    scene = Scene(answers)
    scene.detection.begin(CONNECTED)
    assert scene.notes == notes


def test_a_note_that_cannot_be_written_is_no_matter_and_a_transferred_call_has_no_agent() -> None:
    scene = Scene()
    scene.failure = errors.DatabaseUnavailable("away")
    scene.detection.begin(CONNECTED)
    scene.rounds.rounds.clear()
    scene.detection.begin(replace(CONNECTED, destination_id="2.1"))
    assert scene.rounds.rounds == []


@pytest.mark.parametrize("call", CALLS.values(), ids=lambda call: str(call.state))
def test_nothing_is_asked_before_a_call_is_connected_and_nothing_where_it_is_off(call: Call) -> None:
    runs = SimpleNamespace(note_media=lambda _call, *, media_id, bridge_id: None)
    for is_on in (True, False):
        scene = Scene()
        begin = scene.detection.begin if is_on else None
        Join(
            asterisks=scene.rounds.asterisks,
            naming=NAMING,
            runs=cast(Any, runs),
            store=cast(Any, None),
            detect_talking=begin,
        ).recorded(call)
        assert bool(scene.rounds.rounds) == (is_on and call.state == "connected")


def test_the_first_audio_of_each_party_is_noted_once_and_observed() -> None:
    scene, before = Scene(), (observed("agent"), observed("caller"))
    call = replace(CONNECTED, connected_at=NOW - seconds(10))
    for age_ms in (9_500, 1_000):
        scene.detection.heard(call, MEDIA_ID, age_ms=age_ms)
    # Redis's clock is ahead.
    scene.detection.heard(call, CONNECTED.channel_id, age_ms=11_000)
    assert scene.notes == {"AgentHeard": "after 0.500 s", "CallerHeard": "after 0.000 s"}
    assert (observed("agent"), observed("caller")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("call", "leg_id"),
    [(JOINING, MEDIA_ID), (CONNECTED, "2.1"), (replace(CONNECTED, destination_id="2.1"), CONNECTED.channel_id)],
)
def test_audio_of_any_other_leg_is_no_matter(call: Call, leg_id: str) -> None:
    scene = Scene()
    scene.detection.heard(call, leg_id, age_ms=0)
    assert scene.notes == {}


@pytest.mark.parametrize("leg_id", [MEDIA_ID, CONNECTED.channel_id])
def test_an_event_finds_its_call_where_that_is_on(leg_id: str) -> None:
    heard = leg_scenes.event(EventType.CHANNEL_TALKING_STARTED, leg_id)
    legs, scene = leg_scenes.Scene(CONNECTED), Scene()
    legs.events.party_heard(connection=leg_scenes.HERE, at_ms=1, event=heard)
    assert scene.notes == {}
    on = replace(legs.events, talk_detection=scene.detection)
    on.party_heard(connection=leg_scenes.HERE, at_ms=1, event=heard)
    assert list(scene.notes) == ["AgentHeard" if leg_id == MEDIA_ID else "CallerHeard"]
    scene.notes.clear()
    on.party_heard(connection=leg_scenes.ELSEWHERE, at_ms=1, event=heard)
    assert scene.notes == {}, "an Asterisk of another tenant"
    assert legs.reported == []
