"""Legs to which the platform transfers its callers: what it is told of them, and which are hung up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import errors, messages
from shared.asterisk import events
from shared.asterisk.ari_requests import Bridge
from shared.asterisk.events import EventType
from shared.call import stasis_args
from shared.call.calls import Call
from shared.call.states import State
from shared.platform.ports import Transfer
from tests.support.calls import CONNECTED, LIMITS
from tests.support.leg_scenes import HERE, event
from tests.support.leg_scenes import Scene as LegScene
from tests.support.resyncs import BRIDGE_ID, Asterisk, leg
from tests.support.resyncs import Scene as ResyncScene
from workers import transfer_legs
from workers.transfer_legs import TransferLegs

CALLER = CONNECTED.channel_id
DESTINATION = leg("d", app_data="voiceai,transfer,7")
TRANSFER = Transfer(
    transfer_id="7", caller_id=CALLER, workflow_run_id=CONNECTED.workflow_run_id, conference_name="room"
)
ENTERED = replace(event(EventType.STASIS_START, "d", args=("transfer", "7")), channel=DESTINATION)
LAST = len(transfer_legs._LOOKS_SECONDS)


class Scene:
    """A leg of a transfer, its caller's call, and a platform that hears or does not."""

    def __init__(self, call: Call | None = CONNECTED, *, transfer: Transfer | None = TRANSFER) -> None:
        self.call, self.known, self.is_heard = call, transfer, True
        self.swapped: Call | None = None
        self.refusal_text: str | None = None
        self.is_away = False
        self.noted: set[str] = set()
        self.notes: list[str] = []
        self.told: list[tuple[Any, ...]] = []
        self.later: list[tuple[messages.Message, timedelta]] = []
        self.asterisk = Asterisk(leg(), DESTINATION)
        store = SimpleNamespace(
            append_timeline=self._append, is_noted=self._is_noted, load=lambda _call_id: self.call,
            transferred=lambda _connection, _leg: self.swapped, of_channel=self._of_channel,
            replaced_by=lambda _connection, _channel: None,
        )  # fmt: skip
        clock = SimpleNamespace(monotonic=lambda: 0.0)
        self.legs = TransferLegs(
            writer=cast(Any, SimpleNamespace(store=store, limits=LIMITS, clock=clock)),
            asterisks=cast(Any, SimpleNamespace(at=lambda _connection, _budget: self.asterisk)),
            transfer_events=cast(Any, self),
            send_later=lambda message, wait: self.later.append((message, wait)),
        )

    def _append(self, timeline: list[Any], *, connection_id: int) -> None:
        assert connection_id == 7
        self.notes += [entry.name for entry in timeline]

    def _is_noted(self, _note: object, *, connection_id: int, within: timedelta) -> bool:
        return ("lately" if within < timedelta(minutes=1) else "today") in self.noted

    def _of_channel(self, connection_id: int, channel_id: str) -> Call | None:
        return self.call if (connection_id, channel_id) == (7, CALLER) else None

    # The port TransferEvents.

    def is_served(self) -> bool:
        return True

    def refusal(self) -> str | None:
        return self.refusal_text

    def transfer(self, transfer_id: str) -> Transfer | None:
        if self.is_away:
            raise errors.PlatformRedisAway("away")
        assert transfer_id == "7"
        return self.known

    def transfer_to(self, channel_id: str) -> Transfer | None:
        if self.is_away:
            raise errors.PlatformRedisAway("away")
        assert channel_id == "d"
        return self.known

    def answered(self, transfer: Transfer, channel_id: str) -> bool:
        self.told.append(("answered", transfer.transfer_id, channel_id))
        return self.is_heard

    def failed(self, transfer: Transfer, channel_id: str, reason: str) -> bool:
        self.told.append(("failed", channel_id, reason))
        return self.is_heard

    def forget(self, channel_id: str) -> None:
        self.told.append(("forget", channel_id))

    def look(self, looks: int = 0) -> None:
        self.legs.look(connection=HERE, event=ENTERED, looks=looks)


def test_the_id_of_a_transfer_is_read_from_the_arguments() -> None:
    for args in (["transfer", "7"], ["transfer,7"], ["transfer", "7", "room"], ["transfer,7,room"]):
        assert stasis_args.transfer_id(args) == "7"
    assert stasis_args.transfer_id(["sales", "7"]) == ""


@pytest.mark.parametrize("is_heard", [True, False])
def test_the_platform_is_told_of_an_answer_and_again_until_it_has_swapped_the_legs(*, is_heard: bool) -> None:
    """What hears the first one need not be the API."""
    scene = Scene()
    scene.is_heard = is_heard
    scene.legs.entered(connection=HERE, event=ENTERED)
    assert (scene.notes, scene.told) == (["TransferLeg"], [("answered", "7", "d")])
    ((message, wait),) = scene.later
    assert (message.actor_name, message.kwargs["looks"], wait) == ("leg_unanswered", 1, timedelta(seconds=0.1))
    assert events.decode(message.kwargs["event"]).args == ("transfer", "7")
    scene.look(1)
    assert len(scene.told) == 2
    scene.swapped = replace(CONNECTED, destination_id="d")
    scene.look(2)
    assert (len(scene.told), len(scene.later), scene.asterisk.removed) == (2, 2, [])


def test_the_looks_end_and_a_leg_that_was_not_taken_over_is_hung_up() -> None:
    scene = Scene()
    scene.look(LAST)
    reason = "the platform did not take it over"
    assert scene.told == [("answered", "7", "d"), ("failed", "d", reason), ("forget", "d")]
    assert (scene.asterisk.removed, scene.later, scene.notes) == (["leg d"], [], ["TransferLegEnded"])


def test_a_leg_in_its_caller_s_bridge_is_not_hung_up_though_its_swap_was_not_heard_of() -> None:
    for known in (TRANSFER, None):
        scene = Scene(transfer=known)
        scene.asterisk.found = [Bridge(id=BRIDGE_ID, channels=frozenset({CALLER, "d"}))]
        scene.look(LAST)
        assert (scene.asterisk.removed, scene.later) == ([], [])


@pytest.mark.parametrize("refusal", [None, "PLATFORM_REDIS_URL is not set"])
@pytest.mark.parametrize("call", [CONNECTED, None])
@pytest.mark.parametrize("transfer", [TRANSFER, None])
def test_a_leg_that_another_controller_has_bridged_is_left_to_it(
    call: Call | None, transfer: Transfer | None, refusal: str | None
) -> None:
    """The platform's own process, before it was switched from."""
    scene = Scene(call, transfer=transfer)
    scene.refusal_text = refusal
    scene.asterisk.found = [Bridge(id="theirs", channels=frozenset({"somebody", "d"}))]
    for looks in range(LAST + 1):
        scene.look(looks)
    assert (scene.asterisk.removed, scene.notes) == ([], [])
    assert not any(told[0] == "failed" for told in scene.told)


def test_a_resync_leaves_a_leg_in_another_controller_s_bridge_alone() -> None:
    found = [Bridge(id="theirs", channels=frozenset({CALLER, "d"}))]
    scene = ResyncScene(Asterisk(leg(), DESTINATION, bridges=found))
    scene.run()
    assert (scene.transfer_legs, scene.received, scene.asterisk.removed) == ([], [], [])
    ((findings, _, _),) = scene.store.written
    assert "channel d is in the foreign bridge theirs: left alone" in findings


def test_a_destination_that_has_left_again_is_announced_no_more() -> None:
    scene = Scene()
    scene.is_heard = False
    scene.look()
    del scene.asterisk.legs["d"]
    for looks in range(1, LAST + 1):
        scene.look(looks)
    assert [told[0] for told in scene.told] == ["answered", "failed", "forget"]


@pytest.mark.parametrize(
    ("call", "transfer"),
    [
        pytest.param(None, TRANSFER, id="a caller of another tenant, or none"),
        pytest.param(replace(CONNECTED, state=State.ENDING), TRANSFER, id="its caller has left"),
        pytest.param(CONNECTED, replace(TRANSFER, workflow_run_id=1234), id="of another run"),
        pytest.param(replace(CONNECTED, destination_id="e"), TRANSFER, id="another destination has its caller"),
    ],
)
def test_a_leg_whose_caller_is_not_there_is_hung_up_and_the_platform_is_told_nothing(
    call: Call | None, transfer: Transfer
) -> None:
    scene = Scene(call, transfer=transfer)
    scene.look()
    assert (scene.asterisk.removed, scene.told, scene.later) == (["leg d"], [("forget", "d")], [])


def test_a_leg_that_is_swapped_between_the_two_looks_at_its_call_is_left_alone() -> None:
    """The first look asks by the leg, the other one by the caller, whose transfer the platform has not removed yet."""
    scene = Scene(replace(CONNECTED, destination_id="d"))
    scene.look(1)
    assert (scene.asterisk.removed, scene.told, scene.later, scene.notes) == ([], [], [], [])


def test_a_leg_for_a_layout_without_transfers_is_refused_by_name() -> None:
    scene = Scene()
    scene.refusal_text = "the platform's layout of 2026-02 makes no transfers"
    scene.legs.entered(connection=HERE, event=ENTERED)
    assert scene.asterisk.removed == ["leg d"]
    assert scene.notes == ["TransferLeg", "TransferLegEnded"]


def test_a_leg_does_not_wait_for_a_platform_s_redis_that_is_away_longer_than_a_party_may_be_alone() -> None:
    scene = Scene()
    scene.is_away = True
    waited = 0.0
    while not scene.asterisk.removed:
        scene.look(len(scene.later))
        if not scene.asterisk.removed:
            waited += scene.later[-1][1].total_seconds()
    # A look takes a while, too.
    assert 3.0 < waited < 4.0
    assert (scene.notes, len(scene.later)) == (["TransferLegEnded"], transfer_legs._AWAY_LOOKS)


def test_a_leg_that_is_with_its_caller_is_not_hung_up_for_a_platform_s_redis_that_is_away() -> None:
    scene = Scene()
    scene.is_away = True
    scene.asterisk.found = [Bridge(id=BRIDGE_ID, channels=frozenset({CALLER, "d"}))]
    scene.look(LAST)
    assert scene.asterisk.removed == []


def test_a_leg_whose_transfer_the_platform_has_removed_is_hung_up_at_once_unless_it_is_with_its_caller() -> None:
    """The platform writes it before it dials, and removes it after the swap: the caller may leave at that moment."""
    scene = Scene(transfer=None)
    scene.asterisk.found = [Bridge(id=BRIDGE_ID, channels=frozenset({CALLER, "d"}))]
    scene.look(2)
    assert (scene.asterisk.removed, len(scene.later)) == ([], 1)
    scene.call = replace(CONNECTED, state=State.ENDED)
    scene.look(3)
    assert (scene.asterisk.removed, len(scene.later)) == (["leg d"], 1)


def _moved(scene: Scene) -> None:
    scene.asterisk.application_found = None


def _another(scene: Scene) -> None:
    scene.asterisk.legs["d"] = replace(DESTINATION, created="later")


@pytest.mark.parametrize("change", [_moved, _another])
def test_a_leg_that_is_elsewhere_or_another_one_is_not_touched(change: Callable[[Scene], None]) -> None:
    scene = Scene(None)
    change(scene)
    scene.look()
    assert scene.asterisk.removed == []


def test_an_asterisk_without_an_answer_leaves_the_leg_to_a_resync() -> None:
    scene = Scene(None)

    def away(_channel_id: str) -> Any:
        raise errors.AsteriskUnreachable("no answer in time")

    scene.asterisk.channel_and_place = away  # type: ignore[method-assign, assignment]
    scene.look()
    assert (scene.asterisk.removed, scene.later) == ([], [])


# ── a resync ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_resync_hands_over_what_it_finds() -> None:
    scene = ResyncScene(Asterisk(leg(), DESTINATION), CONNECTED)
    scene.run()
    assert scene.transfer_legs == ["d"]


def test_a_leg_whose_event_was_lost_is_told_of_and_one_that_was_forgotten_is_hung_up() -> None:
    lost = Scene()
    lost.legs.found(connection=HERE, leg=DESTINATION)
    assert (lost.told, len(lost.later)) == ([("answered", "7", "d")], 1)
    looked_after = Scene()
    looked_after.noted = {"lately", "today"}
    looked_after.legs.found(connection=HERE, leg=DESTINATION)
    assert (looked_after.told, looked_after.later) == ([], [])
    forgotten = Scene()
    forgotten.noted = {"today"}
    forgotten.legs.found(connection=HERE, leg=DESTINATION)
    assert forgotten.asterisk.removed == ["leg d"]


# ── a leg that is gone ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cause", "status", "words"),
    [
        (17, "", "busy"), (0, "BUSY", "busy"), (19, "", "not answered"), (19, "NOANSWER", "not answered"),
        (0, "CANCEL", "not answered"), (21, "NOANSWER", "rejected"), (21, "", "rejected"),
        (38, "", "Network out of order"),
    ],
)  # fmt: skip
def test_the_platform_is_told_why_a_destination_was_not_reached(cause: int, status: str, words: str) -> None:
    scene = Scene()
    gone = replace(
        event(EventType.CHANNEL_DESTROYED, "d"), cause=cause, cause_text="Network out of order", dial_status=status
    )
    assert scene.legs.ended(connection=HERE, event=gone)
    (kind, channel_id, reason), forgotten = scene.told
    assert (kind, channel_id, words in reason, forgotten) == ("failed", "d", True, ("forget", "d"))


def test_a_platform_that_does_not_hear_yet_or_has_not_noted_the_leg_is_told_again() -> None:
    gone = event(EventType.CHANNEL_DESTROYED, "d")
    deaf, unknown, away, foreign = Scene(), Scene(transfer=None), Scene(), Scene(None)
    deaf.is_heard, away.is_away = False, True
    assert not any(scene.legs.ended(connection=HERE, event=gone) for scene in (deaf, unknown, away, foreign))
    assert [kind for kind, *_ in deaf.told] == ["failed"]
    assert (unknown.told, away.told, foreign.told) == ([], [], [])


def test_of_a_leg_whose_caller_has_left_nothing_is_told_and_nothing_kept() -> None:
    scene = Scene(replace(CONNECTED, state=State.ENDED))
    assert scene.legs.ended(connection=HERE, event=event(EventType.CHANNEL_DESTROYED, "d"))
    assert scene.told == [("forget", "d")]


def test_the_end_of_a_transfer_s_leg_is_no_end_of_a_run() -> None:
    scene = LegScene()
    scene.is_transfer_leg = True
    gone = event(EventType.CHANNEL_DESTROYED, "d", cause=17)
    scene.events.leg_ended(connection=HERE, event=gone)
    assert (scene.outcomes, scene.later) == ([], [])
    scene.is_transfer_leg = False
    scene.events.leg_ended(connection=HERE, event=gone)
    assert len(scene.outcomes) == 1


def test_the_looks_at_a_leg_that_answered_come_by_the_message_of_one_that_did_not() -> None:
    scene = LegScene()
    scene.events.leg_unanswered(connection=HERE, event=ENTERED, looks=3)
    assert scene.asked == [f"transfer leg on {HERE}: d, look 3"]
