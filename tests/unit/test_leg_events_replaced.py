"""What an event about a leg becomes whose place another channel has taken."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from shared.asterisk.events import EventType
from shared.call import facts
from shared.call.states import Outcome, State
from tests.support.calls import CALL_ID, CONNECTED, ENDED, PREPARED
from tests.support.leg_scenes import AFTER, ELSEWHERE, ENTERED, HERE, KNOWN, MEDIA_ID, Scene, event
from workers.actors import arguments

NEW = "1700000009.9"


@pytest.mark.parametrize("replaced", [KNOWN.channel_id, MEDIA_ID])
def test_a_call_follows_the_channel_that_takes_the_place_of_one_of_its_legs(replaced: str) -> None:
    scene = Scene(KNOWN)
    scene.events.caller_entered(connection=HERE, at_ms=1, event=event(EventType.STASIS_START, NEW, replaces=replaced))
    assert (scene.followed, scene.asked) == ([(replaced, NEW)], [])
    # Told again, later: the channel before may be up still.
    ((message, wait),) = scene.later
    assert (message.actor_name, wait) == ("caller_entered", timedelta(seconds=2))
    scene.events.caller_entered(connection=HERE, at_ms=1, event=event(EventType.STASIS_START, NEW, replaces=replaced))
    assert (len(scene.followed), len(scene.later), scene.asked) == (2, 1, ["replaced channels removed"])


def test_another_tenant_s_media_leg_is_not_followed() -> None:
    scene = Scene(KNOWN)
    start = event(EventType.STASIS_START, NEW, replaces=MEDIA_ID)
    scene.events.caller_entered(connection=ELSEWHERE, at_ms=1, event=start, looks=5)
    assert (scene.followed, scene.store.notes) == ([], [("ForeignLeg", 8)])
    assert scene.asked == [f"entered on 8:1 at 1: {NEW}"]


def test_a_leg_that_was_replaced_before_its_call_is_written_is_looked_for_again() -> None:
    """However old the event is: both may have waited for long, and are begun at the same time then."""
    scene, start = Scene(), event(EventType.STASIS_START, NEW, replaces=KNOWN.channel_id)
    scene.age_ms = 60_000.0
    scene.events.caller_entered(connection=HERE, at_ms=1, event=start)
    for looks in range(1, 5):
        message, wait = scene.later[-1]
        assert (message.actor_name, message.kwargs["event"]["replaces"]) == ("caller_entered", KNOWN.channel_id)
        assert (message.kwargs["looks"], wait) == (looks, timedelta(seconds=0.2))
        scene.events.caller_entered(**arguments("caller_entered", message.kwargs))
    assert (len(scene.later), scene.asked) == (5, [])
    scene.events.caller_entered(connection=HERE, at_ms=1, event=start, looks=5)
    assert (len(scene.later), scene.asked) == (5, [f"entered on 7:1 at 1: {NEW}"])


def test_a_channel_in_the_place_of_a_caller_who_was_found_gone_is_a_caller_itself() -> None:
    """Its own late event found that leg gone, for it was replaced before."""
    over = replace(ENDED, outcome=Outcome.ABANDONED, ended_at=ENDED.received_at, entered_stamp=ENTERED, attempt=0)
    start = event(EventType.STASIS_START, NEW, created="later", replaces=over.channel_id)
    scene = Scene(over)
    scene.events.caller_entered(connection=HERE, at_ms=1, event=start)
    assert (scene.followed, scene.asked) == ([], [f"successor of {CALL_ID} on 7:1 at 1: {NEW}"])
    # The end of the call before its caller was served is no such thing.
    scene = Scene(replace(over, ended_at=ENDED.ended_at))
    scene.events.caller_entered(connection=HERE, at_ms=1, event=start)
    assert scene.followed == [(over.channel_id, NEW)]


def test_the_end_of_a_channel_that_was_replaced_is_not_told() -> None:
    scene = Scene(replace(KNOWN, replacements=(NEW,)))
    for kind in (EventType.CHANNEL_HANGUP_REQUEST, EventType.STASIS_END, EventType.CHANNEL_DESTROYED):
        scene.events.leg_ended(connection=HERE, event=event(kind, cause=16))
    assert (scene.told, scene.asked) == ([], [])


@pytest.mark.parametrize("created", [KNOWN.channel_created, "its own"])
def test_the_end_of_the_channel_that_replaced_it_ends_the_call(created: str) -> None:
    scene = Scene(replace(KNOWN, replacements=("between", NEW)))
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, NEW, created=created, cause=16))
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, "between", created=created, cause=16))
    assert scene.told == [facts.CallerLeft(leg_id=NEW, stamp=AFTER, hangup_cause=16)]
    assert scene.asked == []


def test_a_channel_that_came_back_has_left_the_call_whose_leg_it_had_replaced() -> None:
    """Its end is told after its second beginning, of which it has a call of its own."""
    before = replace(KNOWN, replacements=(NEW,))
    back = replace(CONNECTED, call_id=UUID(int=2), channel_id=NEW, workflow_run_id=2)
    scene = Scene(before, back)
    scene.is_in_place = True
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, NEW, created=back.channel_created))
    assert scene.reported == [(CALL_ID, facts.CallerLeft(leg_id=NEW, stamp=AFTER, is_up=True))]


@pytest.mark.parametrize("own", [None, State.PREPARED, State.ENDED])
def test_a_leg_that_leaves_and_comes_back_before_its_next_call_is_known_ends_the_one_it_was_in(
    own: State | None,
) -> None:
    """Unless this may be the end of a call of its own before, told once more."""
    before = replace(KNOWN, replacements=(NEW,))
    others = (
        [replace(PREPARED, call_id=UUID(int=2), channel_id=NEW, workflow_run_id=2, state=own)]
        if own is not None
        else []
    )
    scene = Scene(before, *others)
    end = event(EventType.STASIS_END, NEW, created=before.channel_created)
    scene.events._end_earlier_call(HERE, before, end)
    left = [(CALL_ID, facts.CallerLeft(leg_id=NEW, stamp=AFTER, is_up=True))]
    assert scene.reported == ([] if own is State.ENDED else left)


def test_a_leg_that_leaves_without_a_hang_up_is_looked_for_in_its_bridge() -> None:
    """The StasisStart of the channel in its place was lost, or comes later."""
    scene = Scene(KNOWN)
    scene.in_its_place = event(EventType.STASIS_START, NEW).leg
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, cause=16))
    assert scene.followed == []
    scene.reported.clear()
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END))
    assert (scene.followed, scene.told) == ([(KNOWN.channel_id, NEW)], [])


@pytest.mark.parametrize("is_up", [True, False])
def test_a_leg_that_goes_on_elsewhere_is_told_from_one_that_is_gone(*, is_up: bool) -> None:
    scene = Scene(KNOWN)
    scene.is_up = is_up
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END))
    assert scene.told == [facts.CallerLeft(leg_id=KNOWN.channel_id, stamp=AFTER, is_up=is_up)]


@pytest.mark.parametrize("is_own_open", [True, False])
def test_the_end_of_a_leg_of_two_calls_is_of_the_open_one(*, is_own_open: bool) -> None:
    """It has replaced another call's leg, and has or had a call of its own: it left in between."""
    ended: dict[str, Any] = {"state": State.ENDED, "caller_left": True}
    other = replace(
        KNOWN,
        call_id=UUID(int=2),
        channel_id="other",
        workflow_run_id=2,
        replacements=(KNOWN.channel_id,),
        **(ended if is_own_open else {}),
    )
    scene = Scene(KNOWN if is_own_open else replace(KNOWN, **ended), other)
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, cause=16))
    assert [call_id for call_id, _ in scene.reported] == [CALL_ID if is_own_open else other.call_id]


@pytest.mark.parametrize(("cause", "followed"), [(None, [("d", NEW)]), (16, [])])
def test_a_leg_that_a_caller_was_transferred_to_is_looked_for_as_well(
    cause: int | None, followed: list[tuple[str, str]]
) -> None:
    scene = Scene(replace(KNOWN, destination_id="d"))
    scene.in_its_place = event(EventType.STASIS_START, NEW).leg
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, "d", cause=cause))
    assert scene.followed == followed
    assert len(scene.told) == (not followed)
