"""Which calls a resync judges, and which legs and bridges it removes."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from shared import messages
from shared.asterisk import ari, events
from shared.call import commands, facts, ids
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.limits import Limits
from shared.storage.call_store import OpenCall
from tests.support.calls import CONNECTED, ENDED, ENDING, JOINING, NOW, RINGING, WAITING
from tests.support.rounds import APP, GONE, LOOK_AT_APP, Rounds, channel
from workers.resync import Resync

CONNECTION = ConnectionVersion(7, 1)
LEG = f"GET /channels/{CONNECTED.channel_id}"
LONG_AGO = timedelta(minutes=1)
NAMING = Naming("aip-")


class Scene:
    """A resync of one connection that has one call, on an Asterisk where the app has these channels."""

    def __init__(
        self, call: Call, legs: dict[str, object], *, present: tuple[str, ...] = (), is_claimed: bool = False,
        unchanged_for: timedelta = LONG_AGO,
    ) -> None:  # fmt: skip
        allowed = [{"type": str(kind)} for kind in events.wanted(with_talking=False)]
        application = {"channel_ids": list(present), "events_allowed": allowed}
        answers = {f"GET /channels/{leg}": [shown] for leg, shown in legs.items()}
        # Nor is another leg in its bridge.
        answers[f"GET /bridges/{NAMING.bridge_id(call)}"] = [GONE]
        self.asterisk = Rounds({f"GET /applications/{APP}": [application], **answers})
        open_call = OpenCall(call=call, changed_at=NOW - unchanged_for, is_claimed=is_claimed)
        known = [open_call] if call is not ENDED else []
        self.store = MagicMock(now=lambda: NOW, open_calls=lambda _connection: known)
        self.flow = MagicMock()
        self.writer = MagicMock(store=self.store, limits=Limits(), clock=time)
        self.later: list[messages.Message] = []

    def run(self) -> list[facts.Fact]:
        """Run it; return what it reports about the call."""
        resync = Resync(
            flow=cast(Any, self.flow),
            writer=self.writer,
            inbound=MagicMock(),
            replacements=MagicMock(),
            connections=MagicMock(share_an_app=lambda connection_id, other_id: connection_id == other_id),
            asterisks=cast(Any, SimpleNamespace(at=lambda _connection, budget: ari.Ari(self.asterisk, budget))),
            exclusive=MagicMock(),
            app_holders=MagicMock(has_lately_displaced=lambda _connection, seconds: False),
            naming=NAMING,
            send_later=lambda message, _wait: self.later.append(message),
        )
        resync.resync_connection(connection=CONNECTION, full=False, reason="test")
        # What it has found is dropped when another process has written the call since.
        assert all(call.kwargs == {"retry_on_conflict": False} for call in self.flow.report.call_args_list)
        return [call.args[1] for call in self.flow.report.call_args_list]


@pytest.mark.parametrize("call", [WAITING, JOINING, CONNECTED])
@pytest.mark.parametrize(
    ("is_claimed", "unchanged_for", "is_judged"),
    [
        (False, timedelta(seconds=2.1), True),
        (False, timedelta(seconds=2.0), False),
        (True, LONG_AGO, False),
        (True, timedelta(0), False),
    ],
)
def test_a_call_is_judged_when_it_is_not_claimed_and_still(
    call: Call, unchanged_for: timedelta, *, is_claimed: bool, is_judged: bool
) -> None:
    """What another worker is about to store is not known yet. Another resync follows for such a call."""
    legs: dict[str, object] = {call.channel_id: GONE}
    scene = Scene(call, legs, is_claimed=is_claimed, unchanged_for=unchanged_for)
    assert scene.run() == ([facts.CallerGone(leg_id=CONNECTED.channel_id)] if is_judged else [])
    assert ([LEG, LOOK_AT_APP] in scene.asterisk.rounds) is is_judged
    assert [message.kwargs["reason"] for message in scene.later] == ([] if is_judged else [messages.RESYNC_FOLLOW_UP])


@pytest.mark.parametrize(
    ("shown", "reported"),
    [
        pytest.param({"app_name": "AppDial2", "app_data": "(Outgoing Line)"}, [], id="rings"),
        pytest.param({"app_name": "Stasis", "app_data": "other"}, [], id="in another app"),
        pytest.param({"app_name": "Stasis", "app_data": APP}, ["FarEndAnswered"], id="answered"),
    ],
)
def test_a_far_end_has_answered_when_its_leg_is_in_the_app(shown: dict[str, str], reported: list[str]) -> None:
    """The app lists a leg that it dials from the first moment on."""
    leg = channel(RINGING.channel_id)
    leg["dialplan"] = {**cast(dict[str, object], leg["dialplan"]), **shown}
    scene = Scene(RINGING, {RINGING.channel_id: leg}, present=(RINGING.channel_id,))
    assert [type(fact).__name__ for fact in scene.run()] == reported


@pytest.mark.parametrize(("app", "reported"), [(APP, [facts.MediaReady(attempt=1)]), ("other", [])])
def test_a_media_leg_is_ready_when_it_is_in_the_app(app: str, reported: list[facts.Fact]) -> None:
    media_id = NAMING.media_id(WAITING)
    legs: dict[str, object] = {media_id: channel(media_id, app=app)}
    assert Scene(WAITING, legs, present=(WAITING.channel_id, media_id)).run() == reported


def test_a_leg_of_the_same_id_that_was_created_later_is_another_leg() -> None:
    legs: dict[str, object] = {
        CONNECTED.channel_id: channel(CONNECTED.channel_id, created="2026-05-01T13:00:00.000+0000")
    }
    assert Scene(CONNECTED, legs).run() == [facts.CallerGone(leg_id=CONNECTED.channel_id)]
    legs = {CONNECTED.channel_id: channel(CONNECTED.channel_id, app="other")}
    assert Scene(CONNECTED, legs).run() == [facts.CallerLeft(leg_id=CONNECTED.channel_id, is_up=True)]


@pytest.mark.parametrize(
    ("call", "is_claimed", "is_ordered"),
    [
        pytest.param(replace(ENDING, step_retries=4), False, True, id="it pauses"),
        pytest.param(replace(ENDING, step_retries=4), True, False, id="a worker is at it"),
        pytest.param(ENDING, False, False, id="it was just ordered"),
        pytest.param(replace(CONNECTED, step_retries=4), False, False, id="a live call"),
    ],
)
def test_a_teardown_that_pauses_is_ordered_again_when_asterisk_answers(
    call: Call, *, is_claimed: bool, is_ordered: bool
) -> None:
    scene = Scene(call, {call.channel_id: GONE}, present=(call.channel_id,), is_claimed=is_claimed)
    scene.run()
    ordered = [one.args[0] for one in scene.writer.enqueue.call_args_list]
    assert ordered == ([[commands.TearDown.of(call)]] if is_ordered else [])


# ── what no call has any more ─────────────────────────────────────────────────────────────────────────────────────────

ORPHAN = NAMING.media_id(ENDED)
OVER = replace(ENDED, state_since=NOW - LONG_AGO)


@pytest.mark.parametrize(
    ("call", "is_removed"),
    [
        pytest.param(None, True, id="of no call"),
        pytest.param(OVER, True, id="of an ended call"),
        pytest.param(replace(OVER, state_since=NOW), False, id="of a call that has just ended"),
        pytest.param(replace(OVER, connection_id=8), False, id="of another tenant's call"),
        pytest.param(replace(CONNECTED, attempt=2, state_since=NOW - LONG_AGO), True, id="of an attempt before"),
        pytest.param(replace(CONNECTED, attempt=2, state_since=NOW), False, id="of an attempt until just now"),
        pytest.param(replace(CONNECTED, state_since=NOW - LONG_AGO), False, id="of a live call"),
        pytest.param(replace(ENDING, state_since=NOW - LONG_AGO), False, id="of an ending call"),
    ],
)
def test_a_leg_is_removed_when_its_attempt_no_longer_counts(call: Call | None, *, is_removed: bool) -> None:
    scene = Scene(ENDED, {}, present=(ORPHAN,))
    scene.store.load_all.return_value = {ENDED.call_id: call} if call else {}
    assert scene.run() == []
    assert ([f"DELETE /channels/{ORPHAN}"] in scene.asterisk.rounds) is is_removed


@pytest.mark.parametrize(
    ("call", "app_name", "is_removed"),
    [
        pytest.param(None, "AppDial2", True, id="of no call"),
        pytest.param(replace(OVER, caller_left=False), "AppDial2", True, id="of an ended call"),
        pytest.param(replace(OVER, caller_left=False), "Stasis", False, id="answered"),
        pytest.param(replace(OVER, caller_left=True), "AppDial2", False, id="in the dialplan"),
        pytest.param(RINGING, "AppDial2", False, id="of a live call"),
    ],
)
def test_a_leg_that_rings_is_removed_when_its_call_is_over(
    call: Call | None, app_name: str, *, is_removed: bool
) -> None:
    dialled = ids.originated_id("aip-", 7, "campaign 7, row 12")
    leg = channel(dialled)
    leg["dialplan"] = {**cast(dict[str, object], leg["dialplan"]), "app_name": app_name}
    scene = Scene(ENDED, {dialled: leg}, present=(dialled,))
    scene.store.originated_all.return_value = {dialled: call} if call else {}
    assert scene.run() == []
    assert ([f"DELETE /channels/{dialled}"] in scene.asterisk.rounds) is is_removed
