"""A ringing leg that the product dials is picked up by another channel, which brings its arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.asterisk.events import EventType
from shared.call import facts, stasis_args
from shared.call.states import State
from tests.support.calls import ENDED, advance
from tests.support.leg_scenes import AFTER, ASKED_FOR, ELSEWHERE, HERE, ORIGINATED_ID, Scene, event

COLLEAGUE = "1700000009.9"
ARGS = tuple(
    stasis_args.of_leg(stasis_args.RunArgs(workflow_run_id=9, workflow_id=1, user_id=2), ORIGINATED_ID).split(",")
)
START = event(EventType.STASIS_START, COLLEAGUE, name="PJSIP/100-1", args=ARGS, created="now")
FOLLOWED: list[facts.Fact] = [
    facts.LegReplaced(replaced_id=ORIGINATED_ID, channel_id=COLLEAGUE, channel_name="PJSIP/100-1"),
    facts.FarEndAnswered(channel_name="PJSIP/100-1", channel_created="now", stamp=AFTER),
]


@pytest.mark.parametrize("state", [State.ORIGINATING, State.RINGING])
def test_its_call_goes_on_with_the_channel_that_has_picked_it_up(state: State) -> None:
    scene = Scene(replace(ASKED_FOR, state=state))
    scene.events.caller_entered(connection=HERE, at_ms=1, event=START)
    assert (scene.told, scene.asked) == (FOLLOWED, [])
    call, _ = advance(replace(ASKED_FOR, state=state), *FOLLOWED)
    assert (call.state, call.leg_id, call.is_unanswered) == (State.PREPARED, COLLEAGUE, False)
    # What is told of the leg that rang, in whichever order, ends nothing.
    assert advance(call, facts.CallerGone(leg_id=ORIGINATED_ID, hangup_cause=26))[0] is call


def test_it_may_be_told_again() -> None:
    scene = Scene(replace(ASKED_FOR, state=State.CONNECTED, replacements=(COLLEAGUE,)))
    scene.events.caller_entered(connection=HERE, at_ms=1, event=START)
    scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_DESTROYED, ORIGINATED_ID, cause=26))
    assert (scene.told, scene.asked) == ([], [])


def test_a_call_that_is_over_is_not_taken_up_nor_another_tenant_s() -> None:
    scene = Scene(replace(ENDED, channel_id=ORIGINATED_ID, request_id="r"))
    scene.events.caller_entered(connection=HERE, at_ms=1, event=START)
    other = Scene(ASKED_FOR)
    other.events.caller_entered(connection=ELSEWHERE, at_ms=1, event=START)
    assert (scene.told, other.told) == ([], [])
    assert scene.asked == [f"entered on 7:1 at 1: {COLLEAGUE}"]
    assert other.asked == [f"entered on 8:1 at 1: {COLLEAGUE}"]


def test_the_end_of_the_leg_that_rang_waits_for_the_channel_that_has_picked_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(ASKED_FOR)
    followed, _ = advance(ASKED_FOR, *FOLLOWED)
    monkeypatch.setattr(scene.store, "load", lambda _id: followed)
    scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_DESTROYED, ORIGINATED_ID, cause=26))
    assert (scene.slept, scene.told) == ([0.02], [])
