"""What an event about a leg becomes: a fact about its call, a look at another time, or nothing."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from shared.asterisk.events import EventType
from shared.call import facts, ids
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.states import Outcome, State
from tests.support.calls import CALL_ID, CONNECTED, ENDED, PREPARED
from tests.support.leg_scenes import (
    AFTER,
    ASKED_FOR,
    BEFORE,
    ELSEWHERE,
    ENTERED,
    HERE,
    KNOWN,
    MEDIA_ID,
    ORIGINATED_ID,
    PREFIX,
    Scene,
    event,
)
from workers import leg_events

NOT_THERE = "the voice agent was not there, or refused the socket"

# ── the media leg ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_media_leg_in_stasis_is_ready() -> None:
    scene = Scene(PREPARED)
    scene.events.media_leg_ready(connection=HERE, event=event(EventType.STASIS_START, MEDIA_ID))
    assert scene.told == [facts.MediaReady(attempt=1)]


def test_an_awaited_media_leg_is_not_looked_up() -> None:
    scene = Scene(PREPARED)
    scene.awaited.append((CALL_ID, 1, "", 7))
    scene.events.media_leg_ready(connection=HERE, event=event(EventType.STASIS_START, MEDIA_ID))
    assert scene.told == []


def test_a_media_leg_that_is_reported_again_once_it_is_joined_has_done_what_follows() -> None:
    """The worker that joined it may have died before it wrote the ids into the run."""
    scene = Scene(CONNECTED)
    scene.events.media_leg_ready(connection=HERE, event=event(EventType.STASIS_START, MEDIA_ID))
    assert (scene.told, scene.asked) == ([], ["bridge of attempt 1 resumed"])


def test_what_happens_to_a_media_leg_is_told_with_its_nonce() -> None:
    """The core knows by it whether the leg is of the attempt in the call's row."""
    scene, leg = Scene(PREPARED), ids.media_id(PREFIX, CALL_ID, 1, "4f2a9c01")
    scene.awaited.append((CALL_ID, 1, "", 7))
    scene.events.media_leg_ready(connection=HERE, event=event(EventType.STASIS_START, leg))
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, leg))
    assert scene.told == [
        facts.MediaReady(attempt=1, nonce="4f2a9c01"), facts.MediaGone(attempt=1, nonce="4f2a9c01")
    ]  # fmt: skip


@pytest.mark.parametrize("channel_id", [KNOWN.channel_id, ids.bridge_id(PREFIX, CALL_ID, 1)])
def test_no_other_leg_is_a_media_leg(channel_id: str) -> None:
    scene = Scene(PREPARED)
    scene.events.media_leg_ready(connection=HERE, event=event(EventType.STASIS_START, channel_id))
    scene.events.leg_ended(connection=ELSEWHERE, event=event(EventType.CHANNEL_HANGUP_REQUEST, channel_id))
    assert scene.told == []


@pytest.mark.parametrize(
    ("cause", "cause_text", "reason"),
    [
        (None, "", "media leg ended"),
        (3, "No route", f"media leg ended, cause 3 No route: {NOT_THERE}"),
        (16, "", "media leg ended, cause 16: the voice agent closed the socket at once"),
        (38, "", "media leg ended, cause 38"),
    ],
)
def test_a_media_leg_that_ends_is_gone(cause: int | None, cause_text: str, reason: str) -> None:
    scene = Scene(PREPARED)
    ended = event(EventType.CHANNEL_DESTROYED, MEDIA_ID, cause=cause, cause_text=cause_text)
    scene.events.leg_ended(connection=HERE, event=ended)
    assert scene.told == [facts.MediaGone(attempt=1, hangup_cause=cause, reason=reason)]


@pytest.mark.parametrize(("connection_id", "is_told"), [(7, False), (8, True)])
def test_the_end_of_a_media_leg_whose_call_is_over_here_is_not_looked_up(connection_id: int, *, is_told: bool) -> None:
    """Nearly always this process has just removed it. What another connection tells is looked at as ever."""
    scene = Scene(PREPARED)
    scene.over = CALL_ID, connection_id
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, MEDIA_ID))
    assert bool(scene.told) is is_told


def test_what_makes_the_agent_refuse_a_socket_is_said_as_far_as_we_know_and_not_of_a_connected_call() -> None:
    ended = event(EventType.CHANNEL_DESTROYED, MEDIA_ID, cause=3)
    for call, reason in (
        (PREPARED, f"media leg ended, cause 3: {NOT_THERE} (its run is completed)"),
        (CONNECTED, "media leg ended, cause 3"),
    ):
        scene = Scene(call)
        scene.refused_for = "its run is completed"
        scene.events.leg_ended(connection=HERE, event=ended)
        assert scene.told == [facts.MediaGone(attempt=1, hangup_cause=3, reason=reason)]


def test_an_agent_that_leaves_a_joined_call_whose_run_it_has_not_begun_has_refused_the_socket() -> None:
    scene = Scene(CONNECTED)
    scene.refused_for, scene.is_begun = "configuration inactive", False
    scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_DESTROYED, MEDIA_ID, cause=16))
    reason = "media leg ended, cause 16: the voice agent closed the socket at once (configuration inactive)"
    assert scene.told == [facts.MediaGone(attempt=1, hangup_cause=16, reason=reason, is_refusal=True)]


def test_a_media_leg_that_is_being_hung_up_is_not_gone_yet() -> None:
    scene = Scene(PREPARED)
    scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_HANGUP_REQUEST, MEDIA_ID))
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, ids.bridge_id(PREFIX, CALL_ID, 1)))
    assert scene.told == []


@pytest.mark.parametrize("kind", [EventType.STASIS_START, EventType.STASIS_END])
def test_a_media_leg_on_another_connection_is_refused_and_recorded(kind: EventType) -> None:
    scene = Scene(PREPARED)
    handle = scene.events.media_leg_ready if kind is EventType.STASIS_START else scene.events.leg_ended
    handle(connection=ELSEWHERE, event=event(kind, MEDIA_ID))
    assert scene.told == []
    assert scene.store.notes == [("ForeignLeg", 8)]


@pytest.mark.parametrize("kind", [EventType.STASIS_START, EventType.STASIS_END])
def test_a_media_leg_is_its_call_s_by_any_connection_of_the_app_instance(kind: EventType) -> None:
    scene = Scene(PREPARED)
    scene.sharing = {7, 8}
    handle = scene.events.media_leg_ready if kind is EventType.STASIS_START else scene.events.leg_ended
    handle(connection=ELSEWHERE, event=event(kind, MEDIA_ID))
    assert len(scene.told) == 1
    assert scene.store.notes == []


@pytest.mark.parametrize("kind", [EventType.STASIS_START, EventType.STASIS_END])
def test_a_media_leg_of_no_call_changes_nothing(kind: EventType) -> None:
    scene = Scene()
    handle = scene.events.media_leg_ready if kind is EventType.STASIS_START else scene.events.leg_ended
    handle(connection=HERE, event=event(kind, MEDIA_ID))
    assert (scene.told, scene.store.notes, scene.asked) == ([], [], [])


# ── the caller's leg ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "stamp", "expected"),
    [
        (EventType.STASIS_END, AFTER, facts.CallerLeft(leg_id=KNOWN.channel_id, stamp=AFTER, hangup_cause=17)),
        (EventType.STASIS_END, "", facts.CallerLeft(leg_id=KNOWN.channel_id, stamp=None, hangup_cause=17)),
        (EventType.CHANNEL_DESTROYED, AFTER, facts.CallerGone(leg_id=KNOWN.channel_id, hangup_cause=17)),
        (EventType.CHANNEL_HANGUP_REQUEST, AFTER, facts.CallerHangingUp(leg_id=KNOWN.channel_id, hangup_cause=17)),
    ],
)
def test_the_end_of_the_caller_s_leg_is_told_as_it_happened(kind: EventType, stamp: str, expected: facts.Fact) -> None:
    scene = Scene(KNOWN)
    scene.events.leg_ended(connection=HERE, event=event(kind, cause=17, stamp=stamp))
    assert scene.told == [expected]


@pytest.mark.parametrize(
    ("entered", "stamp", "kind", "cause"),
    [
        pytest.param(ENTERED, AFTER, EventType.STASIS_END, 16, id="hung up"),
        pytest.param(ENTERED, BEFORE, EventType.STASIS_END, 16, id="hung up, the clock set back"),
        pytest.param(ENTERED, "", EventType.STASIS_END, 16, id="hung up, without a stamp"),
        pytest.param(ENTERED, BEFORE, EventType.CHANNEL_HANGUP_REQUEST, 16, id="hanging up, the clock set back"),
        pytest.param(ENTERED, BEFORE, EventType.CHANNEL_HANGUP_REQUEST, None, id="hanging up for no known cause"),
        pytest.param(ENTERED, BEFORE, EventType.CHANNEL_DESTROYED, 16, id="gone, the clock set back"),
        pytest.param(ENTERED, ENTERED, EventType.CHANNEL_DESTROYED, None, id="gone in the same millisecond"),
        pytest.param(None, BEFORE, EventType.CHANNEL_DESTROYED, 0, id="adopted and gone"),
    ],
)
def test_a_leg_that_does_not_come_back_has_ended_its_call_whatever_the_stamp(
    entered: str | None, stamp: str, kind: EventType, cause: int | None
) -> None:
    scene = Scene(replace(KNOWN, entered_stamp=entered))
    scene.is_in_place = True
    scene.events.leg_ended(connection=HERE, event=event(kind, stamp=stamp, cause=cause))
    assert len(scene.told) == 1
    assert scene.asked == []


@pytest.mark.parametrize("is_in_place", [True, False])
@pytest.mark.parametrize(
    ("known", "stamp"),
    [
        pytest.param(replace(KNOWN, entered_stamp=None), AFTER, id="adopted without a stamp"),
        pytest.param(replace(KNOWN, entered_stamp=ENTERED), AFTER, id="after it entered"),
        pytest.param(replace(ENDED, entered_stamp=ENTERED), BEFORE, id="over"),
        pytest.param(replace(KNOWN, entered_stamp=ENTERED), ENTERED, id="within a millisecond"),
        pytest.param(replace(KNOWN, entered_stamp=ENTERED), BEFORE, id="late, or the clock was set back"),
        pytest.param(replace(KNOWN, entered_stamp=ENTERED), "", id="without a stamp"),
    ],
)
def test_whether_a_leg_that_left_has_come_back_is_asked_whatever_the_stamp(
    known: Call, stamp: str, *, is_in_place: bool
) -> None:
    scene = Scene(known)
    scene.is_in_place = is_in_place
    scene.events.leg_ended(connection=ConnectionVersion(7, 2), event=event(EventType.STASIS_END, stamp=stamp))
    assert scene.asked == [f"in place on 7:1: {KNOWN.channel_id}"]
    assert bool(scene.told) is not is_in_place


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        pytest.param(replace(KNOWN, entered_stamp=None), 16, id="hung up: it does not come back"),
        pytest.param(replace(ENDED, caller_left=True), None, id="it is known to have left"),
    ],
)
def test_asterisk_is_not_asked_about_a_leg_that_does_not_come_back(call: Call, cause: int | None) -> None:
    scene = Scene(call)
    scene.is_in_place = True
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, cause=cause))
    assert scene.asked == []
    assert scene.told == [facts.CallerLeft(leg_id=KNOWN.channel_id, stamp=AFTER, hangup_cause=cause)]


# ── legs without a call ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_of_a_leg_that_was_left_alone_is_no_call() -> None:
    scene = Scene()
    scene.is_left_alone = True
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END))
    assert (scene.asked, scene.told) == (["unanswered on 7:1"], [])


def test_an_unknown_leg_that_left_stasis_is_recorded_as_abandoned() -> None:
    scene = Scene()
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END))
    assert (scene.asked, scene.told) == (["unanswered on 7:1", "abandoned on 7:1"], [])


def test_an_unknown_leg_that_left_stasis_ends_the_run_that_the_platform_made_for_it() -> None:
    scene = Scene()
    scene.has_run = True
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, cause=16))
    assert (scene.asked, scene.told) == (["unanswered on 7:1"], [])
    assert scene.outcomes == [(Outcome.CANCELED, "far end hung up before the call was received", 16)]


def test_a_call_that_appears_meanwhile_is_told() -> None:
    scene = Scene()
    scene.call_meanwhile = KNOWN
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END))
    assert scene.told == [facts.CallerLeft(leg_id=KNOWN.channel_id, stamp=AFTER)]


@pytest.mark.parametrize(
    ("channel_id", "name"),
    [("1", "WebSocket/other-1"), (ORIGINATED_ID, "PJSIP/1-1")],
    ids=["another controller's media", "originated for a call that is gone"],
)
def test_an_unknown_leg_that_is_no_caller_is_left_alone(channel_id: str, name: str) -> None:
    scene = Scene()
    for kind in (EventType.STASIS_END, EventType.CHANNEL_DESTROYED):
        scene.events.leg_ended(connection=HERE, event=event(kind, channel_id, name, cause=17))
    assert (scene.asked, scene.told, scene.later) == ([], [], [])


def test_an_unknown_leg_that_is_being_hung_up_is_nothing_yet() -> None:
    scene = Scene()
    scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_HANGUP_REQUEST, cause=17))
    assert (scene.asked, scene.told, scene.later) == ([], [], [])


def test_the_end_of_an_unknown_leg_that_tells_how_the_dialling_came_out_ends_its_run() -> None:
    scene = Scene()
    scene.has_run = True
    scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_DESTROYED, cause=17))
    assert scene.asked == ["unanswered on 7:1"]
    assert scene.outcomes == [(Outcome.BUSY, "busy", 17)]
    assert scene.later == []


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize(
    ("kind", "dial_status", "doubt_seconds"),
    [
        (EventType.CHANNEL_DESTROYED, "", 2.0),
        (EventType.CHANNEL_DESTROYED, "NOANSWER", 1.0),
        (EventType.DIAL, "CANCEL", 1.0),
        (EventType.DIAL, "CHANUNAVAIL", 2.0),
    ],
)
def test_an_event_that_leaves_something_open_gives_way_to_one_that_tells_more(
    kind: EventType, dial_status: str, doubt_seconds: float, *, has_run: bool
) -> None:
    """What tells more looks for the run at the same times, and so has one look more, also if its worker is behind."""
    scene = Scene()
    scene.has_run = has_run
    told = event(kind, cause=0, dial_status=dial_status)
    handle = scene.events.leg_ended if kind is EventType.CHANNEL_DESTROYED else scene.events.dial_ended
    handle(connection=HERE, event=told)
    assert (scene.looked, scene.asked) == ([f"{told.leg.id} on 7:1"], [])
    ((message, wait),) = scene.later
    assert (message.actor_name, message.kwargs["connection_id"], message.kwargs["connection_version"]) == (
        "leg_unanswered", 7, 1,
    )  # fmt: skip
    next_looks = 0.3 if doubt_seconds == 2.0 and has_run else 0.1
    assert wait.total_seconds() == pytest.approx(next_looks + (doubt_seconds if has_run else 0))
    scene.events.leg_unanswered(connection=HERE, event=told, looks=message.kwargs["looks"])
    assert bool(scene.asked) is has_run


def test_the_last_look_for_a_run_is_not_the_last_word_of_an_event_that_leaves_something_open() -> None:
    scene = Scene()
    scene.has_run = True
    unclear = event(EventType.CHANNEL_DESTROYED, cause=0)
    scene.events.leg_unanswered(connection=HERE, event=unclear, looks=6)
    ((message, wait),) = scene.later
    assert (scene.asked, wait.total_seconds()) == ([], 2.0)
    scene.has_run = False
    scene.events.leg_unanswered(connection=HERE, event=unclear, looks=message.kwargs["looks"])
    assert (scene.asked, len(scene.later)) == (["unanswered on 7:1"], 1)


@pytest.mark.parametrize("name", ["Local/1@x-1;2", "Snoop/1"])
def test_the_far_half_of_a_local_channel_is_no_call(name: str) -> None:
    scene = Scene()
    scene.events.dial_ended(connection=HERE, event=event(EventType.DIAL, name=name, dial_status="BUSY"))
    assert (scene.asked, scene.later) == ([], [])


@pytest.mark.parametrize(
    ("looks", "wait_seconds"), [(0, 0.1), (1, 0.2), (2, 0.4), (3, 0.8), (4, 1.5), (5, 5.0), (6, None)]
)
def test_a_run_is_looked_for_a_few_times(looks: int, wait_seconds: float | None) -> None:
    scene = Scene()
    busy = event(EventType.DIAL, dial_status="BUSY")
    scene.events.leg_unanswered(connection=HERE, event=busy, looks=looks)
    assert scene.asked == ["unanswered on 7:1"]
    sent = [(message.kwargs["looks"], wait.total_seconds()) for message, wait in scene.later]
    assert sent == ([(looks + 1, wait_seconds)] if wait_seconds is not None else [])


def test_a_run_that_was_found_is_looked_for_no_more() -> None:
    scene = Scene()
    scene.has_run = True
    scene.events.leg_unanswered(connection=HERE, event=event(EventType.DIAL, cause=21, dial_status=""), looks=0)
    assert scene.outcomes == [(Outcome.FAILED, "rejected", 21)]
    assert scene.later == []


# ── originated legs ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_originated_leg_in_stasis_is_answered() -> None:
    scene = Scene(ASKED_FOR)
    scene.events.far_end_answered(connection=HERE, at_ms=5, event=event(EventType.STASIS_START, ORIGINATED_ID))
    assert scene.told == [
        facts.FarEndAnswered(channel_name="PJSIP/1-1", channel_created=KNOWN.channel_created, stamp=AFTER)
    ]
    assert scene.asked == []


def test_an_originated_leg_without_a_stamp_is_answered_without_one() -> None:
    scene = Scene(ASKED_FOR)
    started = event(EventType.STASIS_START, ORIGINATED_ID, stamp="")
    scene.events.far_end_answered(connection=HERE, at_ms=5, event=started)
    (fact,) = scene.told
    assert isinstance(fact, facts.FarEndAnswered)
    assert fact.stamp is None
    assert leg_events.answered(started.leg).stamp is None


@pytest.mark.parametrize(
    ("call", "is_new"),
    [
        pytest.param(None, True, id="of no call"),
        pytest.param(replace(ASKED_FOR, state=State.CONNECTED, channel_created="once"), True, id="reported before"),
        pytest.param(replace(ASKED_FOR, state=State.ENDED), True, id="long after the call was over"),
        pytest.param(replace(ASKED_FOR, state=State.ENDED, caller_left=True), False, id="after it was seen gone"),
        pytest.param(replace(ASKED_FOR, state=State.ENDING), False, id="while the call is ended"),
    ],
)
def test_the_caller_s_rules_apply_to_an_originated_leg_that_no_call_waits_for(
    call: Call | None, *, is_new: bool
) -> None:
    scene = Scene(*([call] if call is not None else []))
    scene.events.far_end_answered(connection=HERE, at_ms=5, event=event(EventType.STASIS_START, ORIGINATED_ID))
    assert scene.asked == ([f"entered on 7:1 at 5: {ORIGINATED_ID}"] if is_new else [])
    assert bool(scene.told) is not is_new


def test_the_dial_status_of_an_originated_leg_is_recorded() -> None:
    scene = Scene(ASKED_FOR)
    scene.events.dial_ended(connection=HERE, event=event(EventType.DIAL, ORIGINATED_ID, dial_status="BUSY"))
    assert scene.recorded == [facts.Dialled(status="BUSY")]
    assert (scene.asked, scene.later) == ([], [])


def test_the_dial_status_of_a_leg_of_no_call_is_not_recorded() -> None:
    scene = Scene()
    scene.events.dial_ended(connection=HERE, event=event(EventType.DIAL, ORIGINATED_ID, dial_status="BUSY"))
    assert (scene.recorded, scene.asked, scene.later) == ([], [], [])


@pytest.mark.parametrize("call", [ASKED_FOR, replace(ASKED_FOR, state=State.ORIGINATING)])
def test_the_end_of_a_leg_that_still_rings_waits_for_its_dial_status(call: Call) -> None:
    scene = Scene(call)
    scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_DESTROYED, ORIGINATED_ID, cause=17))
    assert scene.slept == [0.02, 0.05, 0.1, 0.2]
    assert scene.told == [facts.CallerGone(leg_id=ORIGINATED_ID, hangup_cause=17)]


@pytest.mark.parametrize("call", [ASKED_FOR, replace(ASKED_FOR, state=State.ORIGINATING)])
def test_the_end_of_a_leg_that_carries_its_dial_status_waits_for_nothing(call: Call) -> None:
    scene = Scene(call)
    gone = event(EventType.CHANNEL_DESTROYED, ORIGINATED_ID, cause=0, dial_status="BUSY")
    scene.events.leg_ended(connection=HERE, event=gone)
    assert scene.slept == []
    assert scene.told == [facts.Dialled(status="BUSY"), facts.CallerGone(leg_id=ORIGINATED_ID, hangup_cause=0)]


def test_the_end_of_a_leg_whose_dial_status_comes_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(ASKED_FOR)
    monkeypatch.setattr(scene.store, "load", lambda _id: replace(ASKED_FOR, dial_status="BUSY"))
    reported: list[Call] = []
    monkeypatch.setattr(scene, "report", lambda call, *_: reported.append(call))
    scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_DESTROYED, ORIGINATED_ID))
    assert scene.slept == [0.02]
    assert [call.dial_status for call in reported] == ["BUSY"]


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (replace(ASKED_FOR, dial_status="BUSY"), EventType.CHANNEL_DESTROYED),
        (replace(ASKED_FOR, state=State.ENDING), EventType.CHANNEL_DESTROYED),
        (ASKED_FOR, EventType.CHANNEL_HANGUP_REQUEST),
    ],
    ids=["known", "over", "not gone yet"],
)
def test_no_end_waits_without_need(call: Call, kind: EventType) -> None:
    scene = Scene(call)
    scene.events.leg_ended(connection=HERE, event=event(kind, ORIGINATED_ID, created="later"))
    assert scene.slept == []
    assert len(scene.told) == 1


def test_a_call_is_that_of_its_connection() -> None:
    scene = Scene(KNOWN, replace(ASKED_FOR, call_id=UUID(int=1), workflow_run_id=10))
    scene.events.leg_ended(connection=ELSEWHERE, event=event(EventType.STASIS_END))
    assert (scene.asked, scene.told) == (["unanswered on 8:1", "abandoned on 8:1"], [])
    scene.events.dial_ended(connection=ELSEWHERE, event=event(EventType.DIAL, ORIGINATED_ID, dial_status="BUSY"))
    assert scene.recorded == []
