"""Whose a leg in Stasis is: another program's to dial, in our app, or in another one by now."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared import errors
from shared.call.faults import fault_of
from shared.call.ids import ConnectionVersion
from shared.call.states import Fault, Outcome, State
from shared.inbound_lookup import Destination
from tests.support.calls import LIMITS
from tests.support.rounds import GONE, LOOK_AT_APP, Rounds, channel
from tests.unit.test_inbound import (
    ABANDONED,
    AFTER,
    ARGS,
    BEFORE,
    HERE,
    KNOWN,
    LEG,
    LOOK_AT_BRIDGE,
    NAMING,
    PLACE,
    TARGET,
    Scene,
    started,
)
from workers.inbound import is_over_unreceived


def test_a_leg_that_went_out_for_another_program_is_left_alone_once_it_is_answered() -> None:
    """It has no second StasisStart then; a resync sees an answered leg in the app."""
    scene = Scene()
    assert not scene.inbound.is_left_alone(HERE, LEG)
    scene.enter(started(leg={"state": "Down"}))
    answered = replace(LEG, state="Up")
    assert scene.inbound.is_left_alone(HERE, answered)
    assert not scene.inbound.is_left_alone(HERE, replace(answered, id="another"))
    assert not scene.inbound.is_left_alone(HERE, replace(answered, created="later"))
    assert not scene.inbound.is_left_alone(ConnectionVersion(8, 1), answered)
    assert scene.inbound.is_left_alone(HERE, replace(LEG, id="another", state="Ringing"))


@pytest.mark.parametrize("state", ["Ring", "Up", ""])
def test_a_leg_that_comes_in_or_is_answered_is_a_caller(state: str) -> None:
    """A release before this one reports no state."""
    scene = Scene()
    scene.enter(started(leg={"state": state}))
    assert len(scene.new) == 1


def test_a_leg_for_a_run_is_judged_by_its_admission() -> None:
    scene = Scene()
    scene.enter(started(leg={"state": "Ringing"}, args=ARGS))
    assert len(scene.new) == 1


@pytest.mark.parametrize(
    ("there", "listed"),
    [
        pytest.param(channel(LEG.id, created=LEG.created), [], id="moved away, in its bridge still"),
        pytest.param(channel(LEG.id, created=LEG.created, app="other"), [], id="was in another app before"),
        pytest.param(channel(LEG.id, created="later"), [LEG.id], id="another leg of this id"),
        pytest.param(GONE, [LEG.id], id="gone"),
    ],
)
def test_a_caller_in_its_bridge_is_in_place_only_if_it_is_in_our_app(there: object, listed: list[str]) -> None:
    bridge = {"id": NAMING.bridge_id(KNOWN), "channels": [NAMING.media_id(KNOWN), LEG.id]}
    answers: dict[str, list[object]] = {
        LOOK_AT_BRIDGE: [bridge],
        PLACE[0]: [there],
        LOOK_AT_APP: [{"channel_ids": listed}],
    }
    scene = Scene(KNOWN, asterisk=Rounds(answers))
    assert not scene.inbound.is_in_place(HERE, KNOWN, LEG)


def test_a_caller_moved_to_our_app_is_in_place_whatever_the_dialplan_says() -> None:
    moved = channel(LEG.id, created=LEG.created, app="ivr")
    scene = Scene(asterisk=Rounds({PLACE[0]: [moved], LOOK_AT_APP: [{"channel_ids": [LEG.id]}]}))
    assert scene.inbound.is_in_stasis(HERE, LEG)


@pytest.mark.parametrize(
    ("listing", "is_new"),
    [(["voiceai"], True), (["voiceai", "ivr"], False), (["ivr"], False)],
)
def test_a_leg_that_left_and_may_be_in_another_app_is_not_adopted(listing: list[str], *, is_new: bool) -> None:
    """The app that a leg was made for lists it wherever it goes."""
    answers: dict[str, list[object]] = {
        PLACE[0]: [channel(LEG.id, created=LEG.created)],
        "GET /applications": [[{"name": name, "channel_ids": [LEG.id]} for name in listing]],
    }
    scene = Scene(replace(ABANDONED, left_stamp=BEFORE), asterisk=Rounds(answers))
    scene.inbound.receive(connection=HERE, leg=LEG, args=())
    assert bool(scene.new) is is_new


# ── callers whose event is late ──────────────────────────────────────────────────────────────────────────────────────

LATE_MS = 2_500.0


@pytest.mark.parametrize("there", [GONE, channel(LEG.id, created="later")])
def test_a_caller_who_has_hung_up_by_the_time_of_a_late_event_has_abandoned_the_call(there: object) -> None:
    """No run, no slot and no media leg: after an outage most of the callers are gone."""
    scene = Scene(age_ms=LATE_MS, asterisk=Rounds({PLACE[0]: [there, there]}))
    scene.enter(started())
    (call,) = scene.new
    assert (call.state, call.outcome, call.caller_left) == (State.ENDED, Outcome.ABANDONED, True)
    assert (call.entered_stamp, call.left_stamp, call.ended_at) == (AFTER, None, call.received_at)
    assert (scene.arrivals, scene.asterisk.rounds) == ([], [[PLACE[0]]])
    assert (call.reason, call.fault) == ("caller hung up before the call was received", Fault.CALLER)
    assert is_over_unreceived(call)
    # Its event is delivered once more, and its end afterwards.
    scene.enter(started())
    assert scene.inbound.record_abandoned(connection=HERE, event=started()) == call
    assert (scene.new, scene.reported) == ([call], [])


@pytest.mark.parametrize(
    ("there", "args", "age_ms"),
    [
        pytest.param(channel(LEG.id, created=LEG.created), (), LATE_MS, id="there"),
        pytest.param(channel(LEG.id, created=LEG.created, app="ivr"), (), LATE_MS, id="elsewhere: its end tells"),
        pytest.param(errors.AsteriskUnreachable("no answer in time"), (), LATE_MS, id="Asterisk gives no answer"),
        pytest.param(errors.SealBroken("sealed by another key"), (), LATE_MS, id="no Asterisk can be asked"),
        pytest.param(GONE, ARGS, LATE_MS, id="the platform's: its run is to end"),
        pytest.param(GONE, (), 1_900.0, id="not late"),
    ],
)
def test_any_other_caller_is_admitted(there: object, args: tuple[str, ...], age_ms: float) -> None:
    scene = Scene(age_ms=age_ms, asterisk=Rounds({PLACE[0]: [there]}))
    scene.enter(started(args=args))
    assert [call.state for call in scene.new] == [State.RECEIVED]
    assert len(scene.arrivals) == 1


def test_a_caller_who_was_not_served_for_too_long_has_not_given_up_by_fault_of_their_own() -> None:
    scene = Scene(age_ms=LIMITS.stale_start_seconds * 1000 + 1, asterisk=Rounds({PLACE[0]: [GONE]}))
    scene.enter(started())
    (call,) = scene.new
    assert call.reason == "caller hung up before the call was received: no worker has done its step"
    assert (call.fault, fault_of(call.outcome, call.reason)) == (Fault.US, Fault.US)


@pytest.mark.parametrize("is_there", [True, False])
def test_the_successor_of_a_caller_who_was_found_gone_is_the_caller_with_the_number_called(*, is_there: bool) -> None:
    """Its own event tells the number of its line, and its end the creation time of the one before."""
    there = channel("1700000009.9", created=LEG.created) if is_there else GONE
    scene = Scene(age_ms=LATE_MS, asterisk=Rounds({PLACE[0]: [GONE], "GET /channels/1700000009.9": [there]}))
    scene.enter(started(args=("sales",)))
    (over,) = scene.new
    successor = started(leg={"id": "1700000009.9", "created": "later", "called_number": "9", "caller_number": ""})
    scene.inbound.successor_entered(over, connection=HERE, at_ms=4_000, event=replace(successor, replaces=LEG.id))
    _, call = scene.new
    assert (call.channel_id, call.channel_created, call.args) == ("1700000009.9", LEG.created, ("sales",))
    assert (call.caller_number, call.called_number, call.state is State.RECEIVED) == ("+49151", "100", is_there)
    assert is_over_unreceived(call) is not is_there, "one that has taken its place in turn is a caller, too"


def test_the_late_event_of_a_known_call_leaves_it_as_it_is() -> None:
    scene = Scene(KNOWN, age_ms=LATE_MS, asterisk=Rounds({PLACE[0]: [GONE]}))
    scene.enter(started(stamp=KNOWN.entered_stamp or ""))
    assert (scene.new, scene.reported) == ([], [])


def test_a_late_leg_that_no_request_can_name_is_refused_as_any() -> None:
    scene = Scene(age_ms=LATE_MS)
    scene.enter(started(leg={"id": "create"}))
    assert [call.outcome for call in scene.new] == [Outcome.REFUSED]
    assert scene.asterisk.rounds == []


def test_another_owner_s_caller_is_not_asked_for() -> None:
    anothers = Destination(target=replace(TARGET, is_anothers=True), route=None)
    scene = Scene(age_ms=LATE_MS, destination=anothers)
    scene.enter(started())
    assert (scene.new, scene.asterisk.rounds) == ([], [])
