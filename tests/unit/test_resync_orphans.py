"""What a resync finds at Asterisk that no call accounts for: callers to receive, orphans to remove, one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from shared import errors, messages
from shared.asterisk import ari
from shared.asterisk.ari_requests import Bridge
from shared.asterisk.events import Channel
from shared.call import ids
from shared.call.calls import Call
from shared.call.states import State
from tests.support.calls import CALL_ID, CONNECTED, ENDED, NOW, PREPARED, RINGING, WAITING, seconds
from tests.support.resyncs import BRIDGE_ID, FILTER, MEDIA_ID, MEDIA_LEG, STILL, WHOLE, Asterisk, Scene, leg

# ── unknown callers ──────────────────────────────────────────────────────────────────────────────────────────────────

UNKNOWN = leg("1700000000.7")


def test_a_caller_that_no_call_knows_is_received() -> None:
    scene = Scene(Asterisk(leg(), MEDIA_LEG, UNKNOWN, bridges=[WHOLE]), CONNECTED).run()
    assert scene.received == [(UNKNOWN.id, ("support",))]
    assert (scene.reported, scene.findings) == ([], [])


def test_a_caller_who_is_back_although_its_call_says_that_it_left_is_received() -> None:
    scene = Scene(Asterisk(leg()), replace(ENDED, state=State.ENDING, caller_left=True)).run()
    assert scene.received == [(CONNECTED.channel_id, ("support",))]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(None, id="gone meanwhile"),
        pytest.param(replace(UNKNOWN, app_name="Dial"), id="in the dialplan meanwhile"),
        pytest.param(replace(UNKNOWN, name="Snoop/1"), id="no caller"),
    ],
)
def test_a_leg_that_is_no_caller_in_the_app_is_not_received(changed: Channel | None) -> None:
    asterisk = Asterisk(UNKNOWN)
    asterisk.legs = {changed.id: changed} if changed is not None else {}
    scene = Scene(asterisk).run()
    assert (scene.received, scene.findings) == ([], [])


def test_a_caller_moved_to_our_app_is_received_without_the_arguments_of_the_app_before() -> None:
    asterisk = Asterisk(UNKNOWN)
    asterisk.legs[UNKNOWN.id] = replace(UNKNOWN, app_data="ivr,workflow_run_id=9")
    assert Scene(asterisk).run().received == [(UNKNOWN.id, ())]


def test_a_leg_that_another_app_lists_too_is_left_alone() -> None:
    """It was made for ours and has gone to that one; or made for that one, and moved to ours: nothing tells."""
    asterisk = Asterisk(UNKNOWN)
    asterisk.legs[UNKNOWN.id] = replace(UNKNOWN, app_data="ivr")
    asterisk.lists[UNKNOWN.id] = {"voiceai", "ivr"}
    scene = Scene(asterisk).run()
    assert (scene.received, scene.findings) == ([], [f"channel {UNKNOWN.id} may be in ivr: left alone"])


def test_a_leg_that_another_program_dials_is_left_alone() -> None:
    scene = Scene(Asterisk(UNKNOWN))
    scene.left_alone = {UNKNOWN.id}
    assert scene.run().received == []
    (finding,) = scene.findings
    assert finding.endswith("goes out, for another program to dial: left alone")


def test_a_leg_in_a_foreign_bridge_is_left_to_the_one_who_bridged_it() -> None:
    """Also where bridges were not looked at before."""
    foreign = [Bridge(id="quiet", channels=frozenset()), Bridge(id="foreign", channels=frozenset({UNKNOWN.id}))]
    scene = Scene(Asterisk(UNKNOWN, bridges=foreign)).run(full=False)
    assert scene.received == []
    assert scene.findings == [f"channel {UNKNOWN.id} is in the foreign bridge foreign: left alone"]
    assert scene.store.written[0][1:] == (7, timedelta(hours=1))


@pytest.mark.parametrize("failure", [errors.AnswerUnreadable("no name"), errors.AsteriskRefused(405, "Invalid method")])
def test_an_odd_leg_does_not_keep_the_others_from_being_received(failure: errors.PipelineError) -> None:
    odd = leg("1700000000.5")
    asterisk = Asterisk(odd, UNKNOWN)
    asterisk.legs[odd.id] = failure
    scene = Scene(asterisk).run()
    assert scene.received == [(UNKNOWN.id, ("support",))]
    assert scene.findings == [f"channel {odd.id} cannot be read ({failure}): left alone"]


def test_callers_of_an_app_that_another_client_has_are_left_to_it() -> None:
    scene = Scene(Asterisk(UNKNOWN), preempted=True).run()
    assert scene.received == []
    assert scene.findings == ["a competing client has the app: unknown callers are left to it"]


def test_a_competing_client_is_no_finding_without_an_unknown_caller() -> None:
    assert Scene(Asterisk(leg(), MEDIA_LEG, bridges=[WHOLE]), CONNECTED, preempted=True).run().findings == []


def test_callers_of_an_app_that_is_another_organization_s_are_left_to_it() -> None:
    scene = Scene(Asterisk(UNKNOWN), is_anothers=True).run()
    assert scene.received == []
    assert scene.findings == ["another organization has the app: unknown callers are left to it"]


def test_callers_whom_another_process_may_be_about_to_serve_are_left_to_it_for_a_moment() -> None:
    """Its app has just been taken over. What it has not bridged by then it cannot: the events it needs are ours."""
    scene = Scene(Asterisk(UNKNOWN), displaced=True).run()
    assert scene.received == []
    assert scene.findings == ["another process had the app until now: unknown callers are left to it"]
    assert scene.follow_ups == [("follow-up", True, 10.0)]


def test_a_resync_that_stood_still_adopts_no_one_on_what_it_saw_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process, whose app was taken over, has bridged its callers meanwhile."""
    scene = Scene(Asterisk(UNKNOWN))
    moments = itertools.chain([NOW, NOW], itertools.repeat(NOW + timedelta(seconds=11)))
    monkeypatch.setattr(scene.store, "now", lambda: next(moments))
    scene.run()
    assert (scene.received, scene.follow_ups) == ([], [("follow-up", True, 3.0)])


def test_an_orphan_of_a_connection_that_had_the_app_before_is_removed() -> None:
    old = replace(OLD, connection_id=8)
    assert Scene(Asterisk(MEDIA_LEG), stored=[old], sharing={8}).run().asterisk.removed == [f"leg {MEDIA_LEG.id}"]


def test_a_call_of_a_newer_release_is_left_to_that() -> None:
    scene = Scene(Asterisk(UNKNOWN))
    scene.receive_fails = True
    assert scene.run().findings == []


@pytest.mark.parametrize(
    ("bridge", "stored", "is_received"),
    [
        (BRIDGE_ID, (), True),
        (BRIDGE_ID, (CONNECTED,), False),
        (ids.bridge_id("other-", CALL_ID, 1), (), False),
        ("foreign", (), False),
    ],
    ids=["of a forgotten call", "of another call", "of another installation", "of another controller"],
)
def test_a_caller_in_a_bridge_of_ours_is_received_if_its_call_is_forgotten(
    bridge: str, stored: Sequence[Call], *, is_received: bool
) -> None:
    asterisk = Asterisk(UNKNOWN, bridges=[Bridge(id=bridge, channels=frozenset({UNKNOWN.id}))])
    scene = Scene(asterisk, stored=stored).run()
    assert [channel_id for channel_id, _ in scene.received] == ([UNKNOWN.id] if is_received else [])


# ── orphans ──────────────────────────────────────────────────────────────────────────────────────────────────────────

OLD = replace(ENDED, state_since=STILL)
ORIGINATED_ID = ids.originated_id("aip-", 7, "campaign 7, row 12")


@pytest.mark.parametrize(
    ("known", "stored", "is_removed"),
    [
        pytest.param((), (), True, id="of no call"),
        pytest.param((), (OLD,), True, id="of an ended call"),
        pytest.param((), (replace(OLD, state_since=NOW - seconds(2)),), False, id="of a call that just ended"),
        pytest.param((), (replace(OLD, state_since=NOW + seconds(3600)),), True, id="before Postgres was set back"),
        pytest.param((), (replace(OLD, connection_id=8),), False, id="of another tenant"),
        pytest.param((), (replace(CONNECTED, state_since=STILL),), False, id="of a call that began meanwhile"),
        pytest.param((), (replace(WAITING, attempt=2, state_since=STILL),), True, id="of an attempt before"),
        pytest.param(
            (replace(WAITING, attempt=2, state_since=STILL),), (), True, id="of an open call's attempt before"
        ),
        pytest.param((replace(WAITING, attempt=2, state_since=NOW),), (), False, id="of an attempt that just failed"),
        pytest.param((replace(ENDED, state=State.ENDING, state_since=STILL),), (), False, id="of an ending call"),
        pytest.param((replace(CONNECTED, attempt_nonces=("0c11d2e3",)),), (), True, id="with another nonce"),
        pytest.param((), (replace(CONNECTED, attempt_nonces=("0c11d2e3",)),), True, id="of a call that began again"),
        pytest.param((replace(PREPARED, state_since=NOW),), (), True, id="of an attempt that is forgotten"),
        pytest.param((), (replace(PREPARED, connection_id=8),), False, id="of another tenant's forgotten attempt"),
    ],
)
def test_legs_and_bridges_are_removed_whose_attempt_counts_no_more(
    known: Sequence[Call], stored: Sequence[Call], *, is_removed: bool
) -> None:
    asterisk = Asterisk(MEDIA_LEG, bridges=[WHOLE, Bridge(id="foreign", channels=frozenset())])
    # The caller's leg and that of the newest attempt are there.
    asterisk.legs |= {one.id: one for one in (leg(), leg(ids.media_id("aip-", CALL_ID, 2)))}
    scene = Scene(asterisk, *known, stored=stored).run()
    assert sorted(asterisk.removed) == ([f"bridge {BRIDGE_ID}", f"leg {MEDIA_ID}"] if is_removed else [])
    removals = [finding for finding in scene.findings if "removed" in finding]
    assert sorted(removals) == (
        [f"bridge {BRIDGE_ID} had no live call: removed", f"leg {MEDIA_ID} had no live call: removed"]
        if is_removed
        else []
    )
    assert ("take", "clean-up of http://pbx") in scene.leases or not is_removed


def test_an_orphan_that_is_gone_by_itself_is_no_finding() -> None:
    asterisk = Asterisk(MEDIA_LEG)
    asterisk.legs.clear()
    scene = Scene(asterisk).run()
    assert (asterisk.removed, scene.findings) == ([f"leg {MEDIA_ID}"], [])


def test_the_bridge_of_an_orphan_goes_with_it_if_bridges_are_not_looked_at() -> None:
    scene = Scene(Asterisk(MEDIA_LEG, bridges=[WHOLE])).run(full=False)
    assert scene.asterisk.removed == [f"leg {MEDIA_ID}", f"bridge {BRIDGE_ID}"]


def test_orphans_of_a_newer_release_s_call_are_left_alone() -> None:
    scene = Scene(Asterisk(MEDIA_LEG))
    scene.store.unreadable = True
    assert scene.run().asterisk.removed == []


def test_orphans_are_left_to_a_worker_that_cleans_up_at_this_asterisk() -> None:
    scene = Scene(Asterisk(MEDIA_LEG))
    scene.busy.add("clean-up of http://pbx")
    assert scene.run().asterisk.removed == []
    assert scene.follow_ups == [("follow-up", True, 3.0)]


@pytest.mark.parametrize(
    ("call", "found", "is_removed"),
    [
        pytest.param(None, leg(ORIGINATED_ID, app=None), True, id="of a forgotten call"),
        pytest.param(replace(OLD, caller_left=False), leg(ORIGINATED_ID, app=None), True, id="of a call that is over"),
        pytest.param(replace(OLD, caller_left=True), leg(ORIGINATED_ID, app=None), False, id="of a leg seen gone"),
        pytest.param(
            replace(OLD, state_since=NOW - seconds(2)), leg(ORIGINATED_ID, app=None), False, id="of a call just over"
        ),
        pytest.param(
            replace(OLD, state_since=NOW + seconds(3600)),
            leg(ORIGINATED_ID, app=None),
            True,
            id="before Postgres was set back",
        ),
        pytest.param(replace(RINGING, state_since=STILL), leg(ORIGINATED_ID, app=None), False, id="that is wanted"),
        pytest.param(None, leg(ORIGINATED_ID), False, id="that was answered"),
        pytest.param(None, None, False, id="that is gone"),
    ],
)
def test_an_originated_leg_that_rings_for_no_call_is_hung_up(
    call: Call | None, found: Channel | None, *, is_removed: bool
) -> None:
    asterisk = Asterisk(*([found] if found is not None else []))
    asterisk.application_found = ari.Application(channels=frozenset({ORIGINATED_ID}), allowed=FILTER)
    stored = [replace(call, channel_id=ORIGINATED_ID)] if call is not None else []
    Scene(asterisk, stored=stored).run()
    assert asterisk.removed == ([f"leg {ORIGINATED_ID}"] if is_removed else [])


# ── one at a time ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_resync_runs_at_a_time_for_a_connection() -> None:
    scene = Scene(Asterisk(UNKNOWN)).run()
    assert scene.leases == [("take", "resync of connection 7"), ("release", "resync of connection 7")]


@pytest.mark.parametrize("reason", ["connected", messages.RESYNC_CLOCK])
def test_a_resync_that_finds_another_one_running_waits(reason: str) -> None:
    """One by the clock, too: it may be the other one's own message, delivered again because its worker has died."""
    scene = Scene(Asterisk(UNKNOWN))
    scene.busy.add("resync of connection 7")
    scene.run(reason=reason)
    assert (scene.received, scene.leases) == ([], [])
    assert scene.follow_ups == [(reason, True, 1.0)]


def test_a_lease_that_cannot_be_released_runs_out() -> None:
    scene = Scene(Asterisk(UNKNOWN))
    scene.release_fails = True
    assert scene.run().received == [(UNKNOWN.id, ("support",))]
