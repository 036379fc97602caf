"""What a resync concludes from a look at Asterisk about the calls that Postgres knows."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from uuid import UUID

import pytest

from shared import errors, messages
from shared.asterisk import ari, circuit_breaker, events
from shared.asterisk.ari_requests import Bridge
from shared.asterisk.events import Channel
from shared.call import facts
from shared.call.calls import Call
from shared.call.states import State
from shared.storage.call_store import OpenCall
from tests.support.calls import (
    CALL_ID,
    CALLS,
    CONNECTED,
    ENDED,
    JOINING,
    NOW,
    ORIGINATING,
    PREPARED,
    RINGING,
    WAITING,
    seconds,
)
from tests.support.resyncs import BRIDGE_ID, FILTER, HERE, LEGS, MEDIA_ID, MEDIA_LEG, STILL, WHOLE, Asterisk, Scene, leg

# ── the caller's leg ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", [State.RECEIVED, State.ADMITTED, State.PREPARED, State.JOINING, State.CONNECTED])
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, facts.CallerGone(leg_id=CONNECTED.channel_id)),
        (leg(created="later"), facts.CallerGone(leg_id=CONNECTED.channel_id)),
        (leg(app="other"), facts.CallerLeft(leg_id=CONNECTED.channel_id, is_up=True)),
        (leg(), facts.CallerLeft(leg_id=CONNECTED.channel_id, is_up=True)),
        (leg(app=None), facts.CallerLeft(leg_id=CONNECTED.channel_id, is_up=True)),
    ],
    ids=["gone", "another leg of this id", "in another app", "moved to another app", "in the dialplan"],
)
def test_a_caller_s_leg_that_is_not_in_the_app_ends_its_call(
    state: State, found: Channel | None, expected: facts.Fact
) -> None:
    asterisk = Asterisk(*([found] if found is not None else []), MEDIA_LEG)
    present = frozenset({MEDIA_ID} if CALLS[state].attempt else ())
    asterisk.application_found = ari.Application(channels=present, allowed=FILTER)
    scene = Scene(asterisk, CALLS[state]).run()
    assert scene.reported == [expected]
    assert scene.findings == [f"{state} call {CALL_ID}: {type(expected).__name__}"]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("full", [True, False])
def test_a_caller_who_came_back_has_left_the_call_before(first: int, *, full: bool) -> None:
    """A fail-over has forgotten its end. The channel is in the app, and so is the call's media leg."""
    again = replace(PREPARED, call_id=UUID(int=2), entry=2, legs_created=False)
    known = [CONNECTED, again]
    scene = Scene(Asterisk(leg(), MEDIA_LEG, bridges=[WHOLE]), known[first], known[1 - first]).run(full=full)
    assert scene.reported == [facts.CallerLeft(leg_id=CONNECTED.channel_id, is_up=True)]
    other = replace(again, channel_created="later")
    assert Scene(Asterisk(leg(), MEDIA_LEG, bridges=[WHOLE]), CONNECTED, other).run().reported == []


@pytest.mark.parametrize(
    "call", [ORIGINATING, replace(ENDED, state=State.ENDING), JOINING, CONNECTED], ids=lambda call: str(call.state)
)
def test_a_call_that_is_as_it_should_be_is_left_alone(call: Call) -> None:
    legs = [] if call.state in (State.ORIGINATING, State.ENDING) else [leg(), MEDIA_LEG]
    scene = Scene(Asterisk(*legs, bridges=[WHOLE] if call.attempt else []), call).run()
    assert (scene.reported, scene.findings, scene.later, scene.received) == ([], [], [], [])
    assert scene.asterisk.removed == []


def test_a_leg_that_came_after_the_list_is_there() -> None:
    asterisk = Asterisk(leg(app="ivr"), MEDIA_LEG, bridges=[WHOLE])
    listed = ari.Application(channels=frozenset({CONNECTED.channel_id, MEDIA_ID}), allowed=FILTER)
    asterisk.later_applications = [listed]
    scene = Scene(asterisk, CONNECTED).run()
    assert scene.reported == []
    assert asterisk.asked[:2] == ["bridges", CONNECTED.channel_id]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, [facts.CallerGone()]),
        (leg(app=None), []),
        (
            leg(),
            [facts.FarEndAnswered(channel_name=leg().name, channel_created=CONNECTED.channel_created, stamp=None)],
        ),
    ],
    ids=["gone", "rings", "answered"],
)
def test_a_leg_that_rings_by_our_row_is_looked_at(
    found: Channel | None, expected: list[facts.Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    asterisk = Asterisk(*([found] if found is not None else []))
    asterisk.application_found = ari.Application(channels=frozenset(), allowed=FILTER)
    scene = Scene(asterisk, RINGING)
    # What is gone is waited for: the next test.
    instant = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: None)
    monkeypatch.setattr(scene.resync.writer, "clock", instant)
    assert scene.run().reported == expected


def test_a_ringing_leg_that_is_gone_waits_for_the_events_that_tell_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come within half a second. One that is written meanwhile stands: the finding is dropped then."""
    asterisk = Asterisk()
    asterisk.application_found = ari.Application(channels=frozenset(), allowed=FILTER)
    scene = Scene(asterisk, RINGING)
    slept: list[float] = []
    told: list[object] = []

    def report(_call: Call, fact: facts.Fact, *, retry_on_conflict: bool) -> object:
        told.append((fact, retry_on_conflict, list(slept)))
        return SimpleNamespace(applied=True)

    monkeypatch.setattr(scene.resync.writer, "clock", SimpleNamespace(monotonic=time.monotonic, sleep=slept.append))
    monkeypatch.setattr(scene, "report", report)
    scene.run()
    assert told == [(facts.CallerGone(), False, [0.5])]


# ── the media leg and the bridge ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", [WAITING, CONNECTED], ids=["prepared", "connected"])
def test_a_media_leg_that_is_gone_is_reported(call: Call) -> None:
    scene = Scene(Asterisk(leg(), bridges=[WHOLE]), call).run()
    assert scene.reported == [facts.MediaGone(attempt=1, reason="media leg is gone", is_found=True)]


def test_a_media_leg_that_is_gone_from_a_joined_call_may_have_been_refused() -> None:
    for call, is_refusal in ((CONNECTED, True), (WAITING, False)):
        scene = Scene(Asterisk(leg(), bridges=[WHOLE]), call)
        scene.is_begun = False
        (gone,) = scene.run().reported
        assert isinstance(gone, facts.MediaGone)
        assert gone.is_refusal is is_refusal


def test_a_media_leg_whose_event_was_lost_is_ready() -> None:
    assert Scene(Asterisk(leg(), MEDIA_LEG), WAITING).run().reported == [facts.MediaReady(attempt=1)]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(PREPARED, id="no attempt yet"),
        pytest.param(replace(WAITING, legs_created=False), id="not created yet"),
        pytest.param(JOINING, id="being joined"),
        pytest.param(replace(WAITING, attempt=0), id="of no attempt"),
    ],
)
def test_a_media_leg_that_is_not_due_is_not_missed(call: Call) -> None:
    scene = Scene(Asterisk(leg()), call).run()
    assert scene.reported == []
    assert scene.asterisk.asked == ["bridges"]


def test_a_media_leg_that_still_connects_is_waited_for() -> None:
    assert Scene(Asterisk(leg(), leg(MEDIA_ID, app=None)), WAITING).run().reported == []


@pytest.mark.parametrize(
    ("bridges", "reason"),
    [
        ([], "the bridge is gone"),
        ([Bridge(id="other", channels=LEGS)], "the bridge is gone"),
        ([Bridge(id=BRIDGE_ID, channels=frozenset({MEDIA_ID}))], f"not in the bridge: {CONNECTED.channel_id}"),
        ([Bridge(id=BRIDGE_ID, channels=frozenset())], f"not in the bridge: {CONNECTED.channel_id}, {MEDIA_ID}"),
        ([Bridge(id=BRIDGE_ID, channels=LEGS | {"a third"})], None),
    ],
)
def test_a_bridge_that_lacks_a_leg_is_reported(bridges: list[Bridge], reason: str | None) -> None:
    scene = Scene(Asterisk(leg(), MEDIA_LEG, bridges=bridges), CONNECTED).run()
    assert scene.reported == ([facts.BridgeLost(attempt=1, reason=reason)] if reason is not None else [])


def test_a_leg_that_joins_between_the_two_looks_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    asterisk = Asterisk(leg(), MEDIA_LEG, bridges=[Bridge(id=BRIDGE_ID, channels=frozenset())])
    monkeypatch.setattr(asterisk, "bridge", lambda _id: WHOLE)
    assert Scene(asterisk, CONNECTED).run().reported == []


def test_bridges_are_looked_at_in_a_full_resync_only() -> None:
    scene = Scene(Asterisk(leg(), MEDIA_LEG), CONNECTED).run(full=False)
    assert (scene.reported, scene.asterisk.asked) == ([], [])


# ── calls that are not judged ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("legs", "expected"),
    [
        pytest.param([leg()], [facts.MediaGone(attempt=1, reason="media leg is gone", is_found=True)], id="gone"),
        pytest.param([leg(), MEDIA_LEG], [facts.MediaReady(attempt=1)], id="ready"),
    ],
)
def test_a_media_leg_that_is_waited_for_is_looked_at_however_young_the_call_is(
    legs: list[Channel], expected: list[facts.Fact]
) -> None:
    """While no event socket was connected it has ended, and nothing has told it."""
    known = OpenCall(call=WAITING, changed_at=NOW, is_claimed=False)
    scene = Scene(Asterisk(*legs), known).run()
    assert scene.reported == expected
    assert Scene(Asterisk(*legs), replace(known, is_claimed=True)).run().reported == []
    assert Scene(Asterisk(*legs), replace(known, call=PREPARED)).run().reported == []


@pytest.mark.parametrize(
    ("changed_at", "is_claimed", "is_judged"),
    [
        pytest.param(STILL, False, True, id="still"),
        pytest.param(NOW - seconds(2), False, False, id="at the bound"),
        pytest.param(NOW - seconds(1), False, False, id="young"),
        pytest.param(NOW + seconds(1), False, False, id="since the look"),
        pytest.param(NOW + seconds(3600), False, True, id="before the clock was set back"),
        pytest.param(STILL, True, False, id="claimed"),
    ],
)
def test_a_call_that_is_being_worked_on_is_not_judged(
    changed_at: datetime, *, is_claimed: bool, is_judged: bool
) -> None:
    known = OpenCall(call=CONNECTED, changed_at=changed_at, is_claimed=is_claimed)
    scene = Scene(Asterisk(), known).run()
    assert bool(scene.reported) is is_judged
    assert scene.follow_ups == ([] if is_judged else [("follow-up", True, 3.0)])


@pytest.mark.parametrize("reason", [messages.RESYNC_CLOCK, messages.RESYNC_FOLLOW_UP])
def test_a_resync_by_the_clock_and_a_second_one_ask_for_no_other(reason: str) -> None:
    known = OpenCall(call=CONNECTED, changed_at=NOW, is_claimed=False)
    assert Scene(Asterisk(), known).run(reason=reason).follow_ups == []


def test_a_follow_up_looks_as_far_as_the_first_did() -> None:
    known = OpenCall(call=CONNECTED, changed_at=NOW, is_claimed=False)
    assert Scene(Asterisk(), known).run(full=False).follow_ups == [("follow-up", False, 3.0)]


def test_the_moment_comes_first_then_asterisk_then_postgres() -> None:
    """A call unchanged since the moment is as Asterisk saw it."""
    assert Scene(Asterisk()).run().asterisk.moments[:3] == ["now", "Asterisk", "Postgres"]


@pytest.mark.parametrize("failure", [errors.AsteriskUnreachable("no answer"), errors.AsteriskRefused(406, "no")])
def test_nothing_is_concluded_from_an_asterisk_that_does_not_answer(failure: errors.PipelineError) -> None:
    asterisk = Asterisk()
    asterisk.is_away, asterisk.failure = True, failure
    scene = Scene(asterisk, CONNECTED).run()
    assert (scene.reported, scene.findings) == ([], [])
    assert scene.follow_ups == [("follow-up", True, circuit_breaker.LONGEST_PAUSE_SECONDS)]


@pytest.mark.parametrize(
    ("allowed", "is_set"), [(FILTER, False), (frozenset(), True), (FILTER | {"ChannelVarset"}, True)]
)
def test_the_event_filter_is_set_where_it_is_another(allowed: frozenset[str], *, is_set: bool) -> None:
    asterisk = Asterisk()
    asterisk.application_found = ari.Application(channels=frozenset(), allowed=allowed)
    assert Scene(asterisk).run().asterisk.filters == ([sorted(FILTER)] if is_set else [])


def test_the_filter_lets_audio_through_where_that_is_wanted_alone() -> None:
    wanted = events.wanted(with_talking=True)
    asterisk = Asterisk()
    scene = Scene(asterisk)
    scene.resync = replace(scene.resync, detects_talking=True)
    assert scene.run().asterisk.filters == [sorted(wanted)]
    asterisk.application_found = ari.Application(channels=frozenset(), allowed=wanted)
    assert Scene(asterisk).run().asterisk.filters[1:] == [sorted(FILTER)]
    assert wanted - FILTER == {"ChannelTalkingStarted"}


@pytest.mark.parametrize("reason", ["connected", "events lost", messages.RESYNC_CLOCK, messages.RESYNC_FOLLOW_UP])
def test_before_a_resync_for_missed_events_it_is_noted_that_audio_may_be_missed(reason: str) -> None:
    """Before: the resync ends calls, and a note of their time is one before their last row."""
    for is_on in (True, False):
        asterisk = Asterisk()
        scene = Scene(asterisk)
        scene.resync = replace(scene.resync, detects_talking=is_on)
        scene.resync.resync_connection(connection=HERE, full=False, reason=reason)
        is_noted = is_on and reason in ("connected", "events lost")
        assert asterisk.moments[:-3] == ([f"EventsMissed of 7: {reason}"] if is_noted else [])


@pytest.mark.parametrize(
    "failure",
    [
        errors.AsteriskUnreachable("answered 403 Write access denied", may_have_acted=False),
        errors.AsteriskUnreachable("no answer in time"),
        errors.AsteriskRefused(405, "Method Not Allowed"),
    ],
)
def test_a_filter_that_cannot_be_set_keeps_no_call_from_being_judged(failure: errors.PipelineError) -> None:
    asterisk = Asterisk()
    asterisk.application_found = ari.Application(channels=frozenset(), allowed=frozenset())
    asterisk.filter_fails = failure
    scene = Scene(asterisk, CONNECTED).run()
    assert scene.reported == [facts.CallerGone(leg_id=CONNECTED.channel_id)]
    assert scene.findings[0] == f"the event filter could not be set: {failure}"
