"""Transfers that the platform makes: its leg is no caller, and the call lives on with it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors, messages
from shared.asterisk import ari_requests, events
from shared.asterisk.ari_requests import Bridge
from shared.asterisk.events import EventType
from shared.call import facts, ids, stasis_args
from shared.call.calls import Call
from shared.call.legs import Role
from shared.call.states import State
from tests.support.calls import CALL_ID, CALLS, CONNECTED, LIMITS, PREPARED, advance
from tests.support.leg_scenes import ELSEWHERE, HERE, event
from tests.support.leg_scenes import Scene as LegScene
from tests.support.resyncs import BRIDGE_ID, MEDIA_ID, MEDIA_LEG, NAMING, WHOLE, Asterisk, Scene, leg
from workers.transfers import Transfers

CALLER = CONNECTED.channel_id
TRANSFERRED = replace(CONNECTED, destination_id="d")
DESTINATION = leg("d", app_data="voiceai,transfer,7")
SWAPPED = Bridge(id=BRIDGE_ID, channels=frozenset({CALLER, "d"}))


@pytest.mark.parametrize(
    ("args", "is_transfer"),
    [
        (["transfer", "8e1f"], True),
        (["transfer,8e1f"], True),
        (["transfer"], False),
        (["transfer", ""], False),
        (["transfers", "1"], False),
        (["sales", "transfer", "1"], False),
        (["workflow_run_id=1", "workflow_id=2"], False),
        ([], False),
    ],
)
def test_the_arguments_of_a_transfer(args: list[str], *, is_transfer: bool) -> None:
    assert stasis_args.is_transfer(args) is is_transfer
    assert not (is_transfer and stasis_args.names_run(args))


@pytest.mark.parametrize(
    ("data", "args"), [("voiceai,transfer,7", ["transfer", "7"]), ("voiceai,sales", None), ("voiceai", None)]
)
def test_the_end_of_a_leg_tells_that_it_came_for_a_transfer(data: str, args: list[str] | None) -> None:
    """From its channel: what a StasisEnd itself has of arguments is not Asterisk's."""
    channel = replace(leg("d"), app_data=data)
    ended = events.Event(
        type=EventType.STASIS_END, application="voiceai", stamp="", channel=channel, args=("transfer", "forged")
    )
    message = messages.of_event(ended, connection=HERE, at_ms=0)
    assert message is not None
    assert json.loads(json.dumps(message.kwargs["event"])).get("args") == args
    assert events.decode(message.kwargs["event"]).args == tuple(args or ())
    assert events.carried(replace(ended, type=EventType.CHANNEL_DESTROYED)).args == ()


# ── the core ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_of_the_media_leg_is_no_end_of_a_transferred_call() -> None:
    after, _ = advance(CONNECTED, facts.Transferred(attempt=1, destination_id="d"))
    assert advance(after, facts.MediaGone(attempt=1)) == (after, [])
    assert NAMING.legs(after) == {Role.CALLER: CALLER, Role.DESTINATION: "d"}


@pytest.mark.parametrize("call", [call for state, call in CALLS.items() if state is not State.CONNECTED])
def test_only_a_connected_call_is_transferred(call: Call) -> None:
    assert advance(call, facts.Transferred(attempt=1, destination_id="d")) == (call, [])


def test_another_leg_s_end_or_another_attempt_s_transfer_changes_nothing() -> None:
    assert advance(TRANSFERRED, facts.DestinationGone(destination_id="e")) == (TRANSFERRED, [])
    assert advance(CONNECTED, facts.Transferred(attempt=2, destination_id="d")) == (CONNECTED, [])
    forgotten = facts.Transferred(attempt=1, nonce="4f2a9c01", destination_id="d")
    assert advance(CONNECTED, forgotten) == (CONNECTED, [])


def test_a_transfer_that_is_told_again_brings_no_destination_back_that_was_replaced() -> None:
    replaced, _ = advance(TRANSFERRED, facts.LegReplaced(replaced_id="d", channel_id="e", channel_name="PJSIP/2"))
    assert replaced.destination_id == "e"
    assert advance(replaced, facts.Transferred(attempt=1, destination_id="d")) == (replaced, [])
    assert advance(replaced, facts.DestinationGone(destination_id="d")) == (replaced, [])


# ── asked when the media leg is gone ─────────────────────────────────────────────────────────────────────────────────


class Scenery:
    """Transfers around an Asterisk and a flow that keeps what it is told."""

    def __init__(self, asterisk: Asterisk) -> None:
        #: What the run says.
        self.has_transfer = False
        self.reported: list[facts.Fact] = []
        self.noted: list[Call] = []
        self.asterisk = asterisk
        self.transfers = Transfers(
            flow=cast(Any, SimpleNamespace(report=lambda _call, fact: self.reported.append(fact))),
            writer=cast(Any, SimpleNamespace(limits=LIMITS, clock=SimpleNamespace(monotonic=lambda: 0.0))),
            asterisks=cast(Any, SimpleNamespace(of=lambda _call, _budget: asterisk)),
            runs=cast(
                Any, SimpleNamespace(note_transfer=self.noted.append, has_transfer=lambda _call: self.has_transfer)
            ),
            naming=NAMING,
        )


def test_a_leg_that_came_for_a_transfer_takes_the_media_leg_s_place() -> None:
    scene = Scenery(Asterisk(leg(), DESTINATION, bridges=[SWAPPED]))
    assert scene.transfers.take_up(CONNECTED)
    assert scene.reported == [facts.Transferred(attempt=1, destination_id="d")]
    assert scene.noted == [CONNECTED]


@pytest.mark.parametrize(
    ("legs", "bridges"),
    [
        pytest.param([leg()], [], id="no bridge"),
        pytest.param([leg()], [Bridge(id=BRIDGE_ID, channels=frozenset({CALLER}))], id="the caller is alone"),
        pytest.param([leg(), DESTINATION], [Bridge(id=BRIDGE_ID, channels=frozenset({"d"}))], id="the caller has left"),
        pytest.param([leg(), leg("d")], [SWAPPED], id="a leg that did not come for a transfer"),
        pytest.param([leg(), leg("d", app="other", app_data="other,transfer,7")], [SWAPPED], id="of another app"),
        pytest.param([leg()], [SWAPPED], id="gone"),
        pytest.param([leg(), MEDIA_LEG], [WHOLE], id="the media leg itself"),
    ],
)
def test_without_such_a_leg_the_agent_has_hung_up(legs: list[Any], bridges: list[Bridge]) -> None:
    scene = Scenery(Asterisk(*legs, bridges=bridges))
    assert not scene.transfers.take_up(CONNECTED)
    assert (scene.reported, scene.noted) == ([], [])


@pytest.mark.parametrize(("call", "is_transferred"), [(PREPARED, False), (TRANSFERRED, True)])
def test_asterisk_is_not_asked_where_it_is_known(call: Call, *, is_transferred: bool) -> None:
    """A resync has found it, or a try that Postgres broke off: the run is told all the same."""
    scene = Scenery(Asterisk())
    assert scene.transfers.take_up(call) is is_transferred
    assert scene.noted == ([call] if is_transferred else [])
    assert (scene.reported, scene.asterisk.asked) == ([], [])


def test_a_destination_that_hung_up_before_it_was_known_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asterisk = Asterisk(leg(), DESTINATION, bridges=[SWAPPED])
    seen = [DESTINATION]
    monkeypatch.setattr(asterisk, "channel", lambda _id: seen.pop() if seen else None)
    scene = Scenery(asterisk)
    assert scene.transfers.take_up(CONNECTED)
    assert scene.reported == [
        facts.Transferred(attempt=1, destination_id="d"), facts.DestinationGone(destination_id="d"),
    ]  # fmt: skip


_NO_ANSWER = [
    errors.AsteriskUnreachable("no answer in time"),
    errors.AsteriskRefused(429, "too many requests"),
    errors.OutOfTime("the step ran out of its time"),
]


@pytest.mark.parametrize("error", _NO_ANSWER, ids=lambda error: type(error).__name__)
def test_without_an_answer_the_run_says_whether_there_is_a_transfer(error: errors.PipelineError) -> None:
    """If not, the call ends. If there is, nothing is concluded."""
    asterisk = Asterisk(leg(), DESTINATION, bridges=[SWAPPED])
    asterisk.legs["d"] = error
    scene = Scenery(asterisk)
    assert not scene.transfers.take_up(CONNECTED)
    scene.has_transfer = True
    with pytest.raises(type(error)):
        scene.transfers.take_up(CONNECTED)
    assert (scene.reported, scene.noted) == ([], [])


# ── found by a resync ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_resync_finds_a_transfer_that_no_event_told_of() -> None:
    scene = Scene(Asterisk(leg(), DESTINATION, bridges=[SWAPPED]), CONNECTED).run()
    assert scene.reported == [facts.Transferred(attempt=1, destination_id="d")]


def test_a_resync_in_the_midst_of_the_swap_ends_nothing() -> None:
    """The media leg is out of the bridge, and not ended yet."""
    scene = Scene(Asterisk(leg(), MEDIA_LEG, DESTINATION, bridges=[SWAPPED]), CONNECTED).run()
    assert scene.reported == [facts.Transferred(attempt=1, destination_id="d")]


def test_a_resync_leaves_a_transferred_call_and_its_destination_alone() -> None:
    scene = Scene(Asterisk(leg(), DESTINATION, bridges=[SWAPPED]), TRANSFERRED).run()
    assert (scene.reported, scene.findings, scene.received) == ([], [], [])
    assert scene.asterisk.removed == []
    assert scene.asterisk.asked == ["bridges"]


@pytest.mark.parametrize(
    ("found", "bridges"),
    [([], [SWAPPED]), ([leg("d", app=None)], [SWAPPED]), ([], [])],
    ids=["gone", "in the dialplan", "and the bridge too"],
)
def test_a_resync_finds_that_the_destination_has_left(found: list[Any], bridges: list[Bridge]) -> None:
    scene = Scene(Asterisk(leg(), *found, bridges=bridges), TRANSFERRED).run()
    assert scene.reported == [facts.DestinationGone(destination_id="d")]


def test_a_resync_finds_that_a_transferred_caller_is_alone_in_the_bridge() -> None:
    alone = Bridge(id=BRIDGE_ID, channels=frozenset({CALLER}))
    scene = Scene(Asterisk(leg(), DESTINATION, bridges=[alone]), TRANSFERRED).run()
    assert scene.reported == [facts.BridgeLost(attempt=1, reason="not in the bridge: d")]


def test_a_resync_adopts_no_leg_that_came_for_a_transfer() -> None:
    scene = Scene(Asterisk(DESTINATION)).run()
    assert (scene.received, scene.findings, scene.asterisk.removed) == ([], [], [])


def test_the_names_of_a_transferred_call_s_media_leg_are_still_its_own() -> None:
    """What is left of the media leg is removed with the call."""
    assert [attempt.legs for attempt in NAMING.attempts(TRANSFERRED)] == [{Role.MEDIA: MEDIA_ID}]
    assert ids.media_id("aip-", CALL_ID, 1) == MEDIA_ID
    assert ari_requests.hang_up("d").what == "DELETE /channels/d"


# ── events of its legs ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [EventType.STASIS_END, EventType.CHANNEL_DESTROYED])
def test_the_end_of_the_media_leg_of_a_transferred_call_ends_nothing(kind: EventType) -> None:
    scene = LegScene(CONNECTED)
    scene.is_transferred = True
    scene.events.leg_ended(connection=HERE, event=event(kind, MEDIA_ID))
    assert (scene.asked, scene.told) == ([f"transferred: {CALL_ID}"], [])


def test_the_end_of_another_attempt_s_media_leg_asks_for_no_transfer() -> None:
    scene = LegScene(replace(CONNECTED, attempt=2))
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, MEDIA_ID))
    assert (scene.asked, scene.told) == ([], [facts.MediaGone(attempt=1)])
    scene = LegScene(replace(CONNECTED, attempt_nonces=("4f2a9c01",)))
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, MEDIA_ID))
    assert (scene.asked, scene.told) == ([], [facts.MediaGone(attempt=1)])


@pytest.mark.parametrize("kind", [EventType.STASIS_END, EventType.CHANNEL_DESTROYED])
def test_the_end_of_the_leg_that_a_caller_was_transferred_to_is_its_call_s(kind: EventType) -> None:
    scene = LegScene(replace(CONNECTED, destination_id="d"))
    scene.events.leg_ended(connection=HERE, event=event(kind, "d", cause=16, args=("transfer", "7")))
    assert scene.told == [facts.DestinationGone(destination_id="d", hangup_cause=16)]
    assert (scene.asked, scene.later) == ([], [])
    elsewhere = LegScene(replace(CONNECTED, destination_id="d"))
    elsewhere.events.leg_ended(connection=ELSEWHERE, event=event(kind, "d", args=("transfer", "7")))
    assert elsewhere.reported == []


def test_a_leg_that_came_for_a_transfer_and_left_is_no_abandoned_call() -> None:
    scene = LegScene()
    scene.events.leg_ended(connection=HERE, event=event(EventType.STASIS_END, "d", args=("transfer", "7")))
    assert (scene.asked, scene.told, scene.later) == ([], [], [])
