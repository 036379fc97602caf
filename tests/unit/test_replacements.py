"""A call follows its leg: what is recorded, what its run is told, and who is in the bridge in place of a leg."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared import errors
from shared.asterisk import events
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import Direction, State
from tests.support import leg_scenes
from tests.support.calls import CALLS, CONNECTED, ENDED, ENDING, JOINING, LIMITS, PREPARED, advance
from tests.support.rounds import APP, GONE, Rounds, channel
from workers.replacements import Replacements

NAMING = Naming("aip-")
OLD, NEW = CONNECTED.channel_id, "1700000009.9"
MEDIA_ID, BRIDGE_ID = NAMING.media_id(CONNECTED), NAMING.bridge_id(CONNECTED)
LOOK_AT_BRIDGE = f"GET /bridges/{BRIDGE_ID}"
LOOK_AT_NEW = f"GET /channels/{NEW}"
LEG = events.parse_channel(channel(NEW))
AWAY = errors.AsteriskUnreachable("no answer in time")
REPLACED = facts.LegReplaced(replaced_id=OLD, channel_id=NEW, channel_name=LEG.name)


class Store:
    """Of calls, what is looked up: the newest of each channel."""

    def __init__(self, others: Mapping[str, Call]) -> None:
        self._others = others

    def of_channel(self, connection_id: int, channel_id: str) -> Call | None:
        assert connection_id == CONNECTED.connection_id
        return self._others.get(channel_id)


class Scene:
    """The part that follows legs, around one call."""

    def __init__(self, call: Call, answers: Mapping[str, Sequence[object]] | None = None) -> None:
        self.call = call
        self.asterisk = Rounds({LOOK_AT_NEW: [channel(NEW)], LOOK_AT_BRIDGE: [GONE], **(answers or {})})
        self.reported: list[facts.Fact] = []
        self.told: list[tuple[str, str, str]] = []
        self.is_written_meanwhile = False
        #: What another process does before a fact is stored.
        self.before_report: Callable[[], None] = lambda: None
        #: The newest calls that came with these channels.
        self.others: dict[str, Call] = {}
        self.replacements = Replacements(
            flow=cast(Any, self),
            writer=cast(
                Any,
                SimpleNamespace(limits=LIMITS, clock=SimpleNamespace(monotonic=lambda: 0.0), store=Store(self.others)),
            ),
            asterisks=self.asterisk.asterisks,
            runs=cast(Any, self),
            naming=NAMING,
        )

    def report(self, call: Call, fact: facts.Fact, *, retry_on_conflict: bool = True) -> Any:
        if self.is_written_meanwhile and not retry_on_conflict:
            return SimpleNamespace(call=call, applied=False)
        self.before_report()
        self.reported.append(fact)
        before, (self.call, _) = self.call, advance(self.call, fact)
        return SimpleNamespace(call=self.call, applied=self.call != before)

    def note_media(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        self.told.append((call.leg_id, media_id, bridge_id))

    def follow(self, replaced_id: str = OLD, *, retry_on_conflict: bool = True) -> bool:
        return self.replacements.follow(
            self.call, LEG, replaced_id=replaced_id, retry_on_conflict=retry_on_conflict
        ).applied


def test_a_connected_call_follows_and_its_run_is_told() -> None:
    scene = Scene(CONNECTED)
    assert scene.follow()
    assert (scene.call.state, scene.call.leg_id) == (State.CONNECTED, NEW)
    assert scene.told == [(NEW, MEDIA_ID, BRIDGE_ID)]
    # Told again: the worker may have died before it wrote the run.
    assert not scene.follow()
    assert (scene.reported, len(scene.told)) == ([REPLACED] * 2, 2)


def test_a_call_that_is_set_up_follows_and_its_run_is_told_once_it_is_connected() -> None:
    scene = Scene(PREPARED)
    assert scene.follow()
    assert (scene.call.leg_id, scene.told) == (NEW, [])


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        pytest.param(GONE, [facts.CallerGone(leg_id=NEW)], id="gone"),
        pytest.param(channel(NEW, app="other"), [facts.CallerLeft(leg_id=NEW, is_up=True)], id="elsewhere"),
        pytest.param(channel(NEW, created="another time"), [], id="it shows the creation time of the one before"),
        pytest.param(AWAY, [], id="not known"),
    ],
)
def test_a_channel_whose_end_may_have_been_told_before_is_looked_at(answer: object, ends: list[facts.Fact]) -> None:
    scene = Scene(CONNECTED, {LOOK_AT_NEW: [answer]})
    scene.follow()
    assert scene.reported == [REPLACED, *ends]


def test_a_channel_that_was_replaced_before_its_event_was_read_is_not_taken_for_gone() -> None:
    """Transferred twice: its place has the next one, in the bridge."""
    answers: dict[str, Sequence[object]] = {
        LOOK_AT_NEW: [GONE], LOOK_AT_BRIDGE: [bridge(MEDIA_ID, "newest")], "GET /channels/newest": [channel("newest")],
    }  # fmt: skip
    scene = Scene(CONNECTED, answers)
    scene.follow()
    assert (scene.call.state, scene.call.replacements) == (State.CONNECTED, (NEW, "newest"))
    assert [leg for leg, _, _ in scene.told] == [NEW, "newest"]


@pytest.mark.parametrize(
    ("other", "is_followed"),
    [
        (JOINING, False), (ENDED, True),
        # It was that call's, and has left it: what is left of that may not be removed yet.
        (replace(ENDING, caller_left=True), True), (replace(JOINING, replacements=("another",)), True),
    ],
)  # fmt: skip
def test_a_channel_that_has_a_call_of_its_own_is_not_followed(other: Call, *, is_followed: bool) -> None:
    """A resync has found it before its event was read: it has an agent."""
    scene = Scene(CONNECTED)
    scene.others[NEW] = replace(other, call_id=UUID(int=2), channel_id=NEW)
    scene.follow()
    assert (scene.call.state is State.CONNECTED) is is_followed
    assert scene.reported[0] == (REPLACED if is_followed else facts.CallerGone(leg_id=OLD))


@pytest.mark.parametrize("call", [PREPARED, CONNECTED], ids=lambda call: str(call.state))
def test_a_channel_that_got_a_call_of_its_own_in_the_same_moment_is_left_to_that(call: Call) -> None:
    """Its resync looked before this call followed, and wrote it after the first look for it."""
    scene, own = Scene(call), replace(JOINING, call_id=UUID(int=2), channel_id=NEW)
    scene.before_report = lambda: scene.others.update({NEW: own})
    scene.follow()
    assert scene.reported == [REPLACED, facts.CallerLeft(leg_id=NEW, is_up=True)]
    assert scene.call.state is State.ENDING


def test_a_channel_whose_end_was_told_first_ends_the_call_that_is_set_up() -> None:
    """It was moved on at once: its end was stored as a call that was over, and this call waits for it in vain."""
    scene = Scene(PREPARED, {LOOK_AT_NEW: [channel(NEW, app="other")]})
    scene.others[NEW] = replace(ENDED, call_id=UUID(int=2), channel_id=NEW)
    scene.follow()
    assert scene.reported == [REPLACED, facts.CallerLeft(leg_id=NEW, is_up=True)]


def test_a_call_that_is_over_is_not_looked_at() -> None:
    scene = Scene(ENDED)
    scene.follow()
    assert (scene.reported, scene.told, scene.asterisk.rounds) == ([REPLACED], [], [])


def test_a_party_that_takes_the_place_of_the_agent_is_the_destination() -> None:
    scene = Scene(CONNECTED)
    scene.follow(MEDIA_ID)
    assert (scene.call.state, scene.call.leg_id, scene.call.destination_id) == (State.CONNECTED, OLD, NEW)
    # The agent would hear silence.
    assert [f"DELETE /channels/{MEDIA_ID}"] in scene.asterisk.rounds
    gone = Scene(CONNECTED, {LOOK_AT_NEW: [GONE]})
    gone.follow(MEDIA_ID)
    assert gone.call.state is State.ENDING


@pytest.mark.parametrize(("is_written_meanwhile", "followed"), [(True, False), (False, True)])
def test_what_a_resync_finds_is_dropped_when_the_call_was_written_since(
    *, is_written_meanwhile: bool, followed: bool
) -> None:
    scene = Scene(CONNECTED)
    scene.is_written_meanwhile = is_written_meanwhile
    assert scene.follow(retry_on_conflict=False) is followed
    assert bool(scene.told) is followed


def bridge(*channels: str) -> dict[str, object]:
    return {"id": BRIDGE_ID, "channels": list(channels)}


@pytest.mark.parametrize(
    ("found", "leg", "expected"),
    [
        pytest.param(bridge(MEDIA_ID, NEW), channel(NEW), NEW, id="in its place"),
        pytest.param(bridge(MEDIA_ID), channel(NEW), None, id="nothing in its place"),
        pytest.param(bridge(MEDIA_ID, NEW, OLD), channel(NEW), None, id="beside it"),
        pytest.param(bridge(MEDIA_ID, NEW), channel(NEW, app="other"), None, id="in another app"),
        pytest.param(bridge(MEDIA_ID, NEW), GONE, None, id="gone meanwhile"),
        pytest.param(bridge(MEDIA_ID, NEW), channel(NEW, app=f"{APP},transfer,7"), None, id="the platform's"),
        pytest.param(bridge(MEDIA_ID, MEDIA_ID.replace("m1", "m2")), channel(NEW), None, id="a leg of ours"),
        pytest.param(GONE, channel(NEW), None, id="no bridge"),
        pytest.param(AWAY, channel(NEW), None, id="no answer"),
    ],
)
def test_who_is_in_the_bridge_in_place_of_the_leg(found: object, leg: object, expected: str | None) -> None:
    scene = Scene(CONNECTED, {LOOK_AT_BRIDGE: [found], LOOK_AT_NEW: [leg]})
    seen = scene.replacements.successor(CONNECTED, OLD)
    assert (seen.id if seen is not None else None) == expected


@pytest.mark.parametrize("call", [call for state, call in CALLS.items() if state is not State.CONNECTED])
def test_only_a_connected_call_has_a_bridge_to_look_at(call: Call) -> None:
    scene = Scene(call)
    assert scene.replacements.successor(call, call.leg_id) is None
    assert scene.asterisk.rounds == []


def test_the_channel_before_has_not_taken_the_place_of_its_successor() -> None:
    """It may still be in the bridge for a moment."""
    call = replace(CONNECTED, replacements=(NEW,))
    scene = Scene(call, {LOOK_AT_BRIDGE: [bridge(MEDIA_ID, OLD)], f"GET /channels/{OLD}": [channel(OLD)]})
    assert scene.replacements.successor(call, call.leg_id) is None


OTHERS = [{"name": APP, "channel_ids": [NEW]}, {"name": "other", "channel_ids": ["1.1"]}]
STILL_UP: dict[str, Sequence[object]] = {
    f"GET /channels/{OLD}": [channel(OLD)], "GET /bridges": [[bridge(MEDIA_ID, NEW)]], "GET /applications": [OTHERS],
}  # fmt: skip
IN_THE_DIALPLAN = channel(OLD) | {"dialplan": {"exten": "1", "app_name": "Wait", "app_data": "3600"}}
FOLLOWED = replace(CONNECTED, replacements=("between", NEW))


def test_a_channel_that_was_made_for_our_app_is_listed_wherever_it_is() -> None:
    listed = {"GET /applications": [[{"name": APP, "channel_ids": [OLD, NEW]}]]}
    answers: dict[str, Sequence[object]] = {"GET /channels/between": [GONE], **STILL_UP, **listed}
    for direction in Direction:
        call = replace(FOLLOWED, direction=direction)
        scene = Scene(call, answers)
        scene.replacements.remove_replaced(call, OLD)
        is_removed = [f"DELETE /channels/{OLD}"] in scene.asterisk.rounds
        assert is_removed is (direction is Direction.OUTBOUND)


@pytest.mark.parametrize(
    ("answers", "is_removed"),
    [
        pytest.param({}, True, id="left in Stasis"),
        pytest.param({f"GET /channels/{OLD}": [GONE]}, False, id="gone"),
        pytest.param({f"GET /channels/{OLD}": [channel(OLD, app="other")]}, True, id="left in Stasis after a move"),
        pytest.param({f"GET /channels/{OLD}": [IN_THE_DIALPLAN]}, False, id="in the dialplan"),
        pytest.param({"GET /bridges": [[bridge(OLD, "phone")]]}, False, id="bridged with another channel"),
        pytest.param({"GET /applications": [[{"name": "x", "channel_ids": [OLD]}]]}, False, id="moved"),
    ],
)
def test_a_channel_that_was_replaced_is_hung_up_if_it_is_up_in_silence(
    answers: Mapping[str, Sequence[object]], *, is_removed: bool
) -> None:
    scene = Scene(FOLLOWED, {"GET /channels/between": [GONE], **STILL_UP, **answers})
    scene.replacements.remove_replaced(FOLLOWED, OLD)
    assert ([f"DELETE /channels/{OLD}"] in scene.asterisk.rounds) is is_removed
    assert [f"DELETE /channels/{NEW}"] not in scene.asterisk.rounds


def test_a_party_that_was_replaced_before_its_event_was_read_is_not_taken_for_gone() -> None:
    answers: dict[str, Sequence[object]] = {
        LOOK_AT_NEW: [GONE], LOOK_AT_BRIDGE: [bridge(OLD, "newest")], "GET /channels/newest": [channel("newest")],
    }  # fmt: skip
    scene = Scene(CONNECTED, answers)
    scene.follow(MEDIA_ID)
    assert (scene.call.state, scene.call.leg_id, scene.call.destination_id) == (State.CONNECTED, OLD, "newest")


def test_a_replaced_leg_that_a_caller_was_transferred_to_is_hung_up_too() -> None:
    """The row has only the leg that came in its place."""
    call = replace(CONNECTED, destination_id=NEW)
    before = {"GET /channels/before": [channel("before")], f"GET /channels/{OLD}": [channel(OLD)]}
    scene = Scene(call, {**STILL_UP, **before})
    scene.replacements.remove_replaced(call, "before")
    assert ["DELETE /channels/before"] in scene.asterisk.rounds
    assert not {f"DELETE /channels/{leg}" for leg in (OLD, NEW)} & set(itertools.chain(*scene.asterisk.rounds))


def the_call_of(replaced_id: str, leg_id: str, *known: Call) -> Call | None:
    writer = SimpleNamespace(store=leg_scenes.Store(*known))
    parts: dict[str, Any] = dict.fromkeys(("flow", "asterisks", "runs"))
    replacements = Replacements(writer=cast(Any, writer), naming=NAMING, **parts)
    return replacements.call_of(leg_scenes.HERE, replaced_id, leg_id)


LATER = CONNECTED.received_at + timedelta(seconds=9)
#: A call that went on with another leg, and has ended.
BEFORE = replace(ENDED, replacements=(NEW,))


def test_of_the_calls_of_a_leg_the_open_one_follows() -> None:
    """It was moved away and came back: the call that it has now came with it."""
    back = replace(CONNECTED, call_id=UUID(int=2), channel_id=NEW, workflow_run_id=2, received_at=LATER)
    assert the_call_of(NEW, "newest", BEFORE, back) == back
    assert the_call_of(NEW, "newest", BEFORE) == BEFORE
    # It has left its own call, and then taken the place of another one's leg.
    other = replace(CONNECTED, call_id=UUID(int=3), channel_id="other", replacements=(OLD,), workflow_run_id=2)
    assert the_call_of(OLD, "newest", ENDED, other) == other


@pytest.mark.parametrize("before", [BEFORE, replace(BEFORE, state=State.CONNECTED)])
def test_a_replacement_that_is_told_again_is_of_the_same_call(before: Call) -> None:
    """The leg that was replaced has come back since, and has a call of its own."""
    back = replace(CONNECTED, call_id=UUID(int=2), entry=2, workflow_run_id=2, received_at=LATER)
    assert the_call_of(OLD, NEW, before, back) == before
    assert the_call_of(OLD, "newest", before, back) == back


def test_the_replacement_of_a_leg_that_a_caller_was_transferred_to_is_told_again() -> None:
    call = replace(CONNECTED, destination_id=NEW)
    assert the_call_of("before", NEW, call) == call
    assert the_call_of(NEW, "newest", call) == call
