"""The resync and legs whose place another channel has taken: the call follows, no caller is made of that channel."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from shared.asterisk import ari
from shared.asterisk.ari_requests import Bridge
from shared.asterisk.events import Channel
from shared.call import facts
from shared.call.calls import Call
from shared.call.states import State
from shared.storage.call_store import OpenCall
from tests.support.calls import CALL_ID, CONNECTED, ENDING, PREPARED
from tests.support.resyncs import BRIDGE_ID, FILTER, MEDIA_ID, MEDIA_LEG, STILL, WHOLE, Asterisk, Scene, leg

NEW = replace(leg(), id="new", created="its own", app_data="voiceai")
IN_ITS_PLACE = Bridge(id=BRIDGE_ID, channels=frozenset({MEDIA_ID, "new"}))
FOLLOWED = replace(CONNECTED, replacements=("new",))
OF_CALLER, OF_AGENT = (CONNECTED.channel_id, "new"), (MEDIA_ID, "new")
#: Another worker is at work on it.
CLAIMED = OpenCall(call=PREPARED, changed_at=STILL, is_claimed=True)
#: What a resync writes of it.
FOUND = f"channel new has taken the place of {CONNECTED.channel_id}"


@pytest.mark.parametrize("full", [True, False])
def test_a_connected_call_follows_the_leg_that_is_in_its_bridge(*, full: bool) -> None:
    scene = Scene(Asterisk(NEW, MEDIA_LEG, bridges=[IN_ITS_PLACE]), CONNECTED).run(full=full)
    assert (scene.followed, scene.reported, scene.received) == ([OF_CALLER], [], [])
    assert scene.findings == [f"connected call {CALL_ID}: {FOUND}"]
    assert scene.later == []


def test_a_call_that_was_written_meanwhile_is_looked_at_again() -> None:
    scene = Scene(Asterisk(NEW, MEDIA_LEG, bridges=[IN_ITS_PLACE]), CONNECTED)
    scene.is_written_meanwhile = True
    assert len(scene.run().later) == 1


def test_a_leg_that_is_up_and_outside_its_bridge_was_replaced_by_the_one_inside() -> None:
    """Who transfers stays up."""
    scene = Scene(Asterisk(leg(), NEW, MEDIA_LEG, bridges=[IN_ITS_PLACE]), CONNECTED).run()
    assert (scene.followed, scene.reported) == ([OF_CALLER], [])


@pytest.mark.parametrize(("created", "followed"), [(PREPARED.channel_created, [OF_CALLER]), ("its own", [])])
def test_a_call_that_is_set_up_follows_a_masquerade(created: str, followed: list[tuple[str, str]]) -> None:
    """Which has kept the creation time of the channel before."""
    call = replace(PREPARED, legs_created=False)
    scene = Scene(Asterisk(replace(NEW, created=created)), call).run()
    assert scene.followed == followed
    assert scene.reported == ([] if followed else [facts.CallerGone(leg_id=PREPARED.channel_id)])


def test_a_channel_that_a_call_follows_already_is_its_leg() -> None:
    scene = Scene(Asterisk(NEW, MEDIA_LEG, bridges=[IN_ITS_PLACE]), FOLLOWED).run()
    assert (scene.followed, scene.reported, scene.received, scene.findings) == ([], [], [], [])


@pytest.mark.parametrize(
    ("known", "stored", "new"),
    [
        pytest.param([CLAIMED], [], replace(NEW, created=PREPARED.channel_created), id="by a masquerade"),
        pytest.param([], [FOLLOWED], NEW, id="written meanwhile"),
    ],
)
def test_no_caller_is_made_of_a_channel_that_has_just_taken_a_leg_s_place(
    known: list[OpenCall], stored: list[Call], new: Channel
) -> None:
    scene = Scene(Asterisk(new), *known, stored=stored).run()
    assert (scene.received, scene.followed) == ([], [])
    assert len(scene.later) == 1


@pytest.mark.parametrize(("written", "looks"), [([], 0), ([FOLLOWED], 1), ([replace(FOLLOWED, state=State.ENDED)], 0)])
def test_a_call_that_follows_to_a_caller_in_the_moment_of_his_receipt_is_looked_at_soon(
    written: list[Call], looks: int
) -> None:
    """Neither has seen the other: one of the two calls has to end."""
    scene = Scene(Asterisk(NEW))
    scene.written_meanwhile = written
    scene.run()
    assert [leg_id for leg_id, _ in scene.received] == ["new"]
    assert len(scene.later) == looks


def test_another_caller_of_the_same_millisecond_is_received() -> None:
    another = replace(NEW, created=CONNECTED.channel_created)
    scene = Scene(Asterisk(leg(), MEDIA_LEG, another, bridges=[WHOLE]), CONNECTED).run()
    assert scene.received == [("new", ())]


def test_another_caller_of_the_same_millisecond_is_received_beside_a_call_that_has_followed_its_leg() -> None:
    another = replace(NEW, id="another", created=CONNECTED.channel_created)
    scene = Scene(Asterisk(NEW, MEDIA_LEG, another, bridges=[IN_ITS_PLACE]), FOLLOWED).run()
    assert scene.received == [("another", ())]


@pytest.mark.parametrize("apps", [set[str](), {"other"}])
def test_a_channel_that_was_replaced_and_is_up_in_silence_is_hung_up(apps: set[str]) -> None:
    """Unlisted, but in Stasis by our app. One that another app lists was moved there."""
    asterisk = Asterisk(leg(), NEW, MEDIA_LEG, bridges=[IN_ITS_PLACE])
    asterisk.application_found = ari.Application(channels=frozenset({"new", MEDIA_ID}), allowed=FILTER)
    asterisk.lists[CONNECTED.channel_id] = apps
    scene = Scene(asterisk, FOLLOWED).run()
    assert (scene.reported, scene.received) == ([], [])
    assert asterisk.removed == ([] if apps else [f"leg {CONNECTED.channel_id}"])


def test_a_leg_that_was_replaced_and_came_back_is_of_another_call() -> None:
    """The call that goes on with another leg has not ended with that."""
    back = replace(CONNECTED, call_id=UUID(int=2), entry=2)
    own = {name: name.replace(CALL_ID.hex, back.call_id.hex) for name in (MEDIA_ID, BRIDGE_ID)}
    bridges = [IN_ITS_PLACE, Bridge(id=own[BRIDGE_ID], channels=frozenset({own[MEDIA_ID], leg().id}))]
    asterisk = Asterisk(leg(), NEW, MEDIA_LEG, replace(MEDIA_LEG, id=own[MEDIA_ID]), bridges=bridges)
    scene = Scene(asterisk, FOLLOWED, back).run()
    assert (scene.followed, scene.reported, scene.received, scene.findings) == ([], [], [], [])


def test_a_call_whose_leg_has_come_back_as_the_caller_of_another_one_is_over() -> None:
    """Its leg had taken another one's place, left, and came back; no event of that was heard."""
    back = replace(PREPARED, call_id=UUID(int=2), channel_id="new")
    scene = Scene(Asterisk(NEW, MEDIA_LEG), replace(PREPARED, replacements=("new",)), back)
    scene.run()
    assert facts.CallerLeft(leg_id="new", is_up=True) in scene.reported


def test_a_call_goes_on_with_a_leg_whose_earlier_call_has_not_ended_yet() -> None:
    """It has left that call, whose end waits for a run."""
    left = replace(ENDING, call_id=UUID(int=2), channel_id="new", caller_left=True)
    scene = Scene(Asterisk(NEW, MEDIA_LEG, bridges=[IN_ITS_PLACE]), FOLLOWED, left).run()
    assert (scene.followed, scene.reported, scene.received) == ([], [], [])


@pytest.mark.parametrize("is_up", [True, False])
def test_a_call_goes_on_with_the_party_that_is_in_the_place_of_its_destination(*, is_up: bool) -> None:
    """No event has told it. The one that was replaced is up in silence, or gone."""
    in_its_place = Bridge(id=BRIDGE_ID, channels=frozenset({CONNECTED.channel_id, "new"}))
    before = [replace(NEW, id="d")] if is_up else []
    call = replace(CONNECTED, destination_id="d")
    scene = Scene(Asterisk(leg(), NEW, *before, bridges=[in_its_place]), call).run()
    assert (scene.followed, scene.reported, scene.received) == ([("d", "new")], [], [])


@pytest.mark.parametrize("full", [True, False])
def test_a_party_that_is_in_the_place_of_an_agent_that_is_gone_goes_on_with_the_caller(*, full: bool) -> None:
    handed_over = Bridge(id=BRIDGE_ID, channels=frozenset({CONNECTED.channel_id, "new"}))
    scene = Scene(Asterisk(leg(), NEW, bridges=[handed_over]), CONNECTED).run(full=full)
    assert (scene.followed, scene.reported) == ([OF_AGENT], [])
    if full:
        # Its media leg is up still, outside the bridge.
        scene = Scene(Asterisk(leg(), NEW, MEDIA_LEG, bridges=[handed_over]), CONNECTED).run()
        assert (scene.followed, scene.reported) == ([OF_AGENT], [])
