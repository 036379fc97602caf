"""The judge's verdict: each violation has a history that shows it, and a calm neighbour that does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chaos.judge import figures, verdict
from chaos.judge.checks import violations
from chaos.judge.evidence import Left
from chaos.judge.tables import CallRow, DeadLetter, RunRow
from tests.support.judged_scenes import (
    APP,
    BRIDGE,
    CALL_ID,
    FAR,
    LEG,
    MEDIA,
    OTHER_APP,
    OTHER_CALL_ID,
    OTHER_ROW,
    ROW,
    RUN,
    SECOND_BRIDGE,
    SECOND_MEDIA,
    START,
    Scene,
    connected,
    end,
    entered,
    listened,
)  # fmt: skip


def beside(*, agent: str, bridge: str) -> Scene:
    """A call that is fine, and another one of the other tenant, whose caller is with some agent in some bridge."""
    scene = connected()
    scene.offered(leg="call-2", app=OTHER_APP)
    scene.created("call-2", agent, at=0)
    scene.stasis("call-2", 0.1, app=OTHER_APP)
    scene.up("call-2", 0.2)
    scene.bridged("call-2", agent, at=0.2, bridge=bridge)
    scene.gone("call-2", agent, at=5)
    scene.rows.append(replace(OTHER_ROW, organization_id=2))
    return scene


def not_hung_up(*, agent_closes: bool = False) -> Scene:
    """A call that ends at 10 s, and whose caller has not hung up."""
    scene = connected()
    scene.deeds = [deed for deed in scene.deeds if deed["deed"] != "hang-up"]
    if agent_closes:
        scene.history.legs[MEDIA].causes[:] = [16, 0]
    return scene


def beside_an_agent_that_closes() -> Scene:
    """Another call's agent, which ends that call alone."""
    scene = not_hung_up()
    other = f"aip-{OTHER_CALL_ID}-m1"
    scene.created(other, at=1)
    scene.up(other, 2)
    scene.gone(other, at=3)
    return scene


def dialled_again(scene: Scene) -> Scene:
    """Its request was dialled once more."""
    scene.history.dialled_again.append(scene.history.legs[LEG])
    return scene


def with_run(scene: Scene, run: RunRow) -> Scene:
    scene.runs = [run]
    return scene


def struck(scene: Scene, at: float, until: float | None = None, **fault: Any) -> Scene:
    scene.fault(at, at if until is None else until, **fault)
    return scene


def never_came() -> Scene:
    """A request to call that came to nothing."""
    scene = connected()
    scene.offered(leg="aip-1-o", direction="outbound", hang_up=False)
    return scene


def connecting(seconds: float) -> Scene:
    """An answered caller in a bridge with a media leg whose agent accepts it only after so long."""
    scene = entered()
    scene._states[MEDIA] = "Down"
    scene.created(MEDIA, at=0.15)
    scene.up(LEG, 0.2)
    scene.bridged(LEG, MEDIA, at=0.2)
    scene.up(MEDIA, 0.2 + seconds)
    end(scene, 0.2 + seconds + 1)
    return scene


def blind(since: float, until: float, *, fault: tuple[float, float] | None = None) -> Scene:
    scene = connected()
    scene.history.blind.append((START + since, START + until))
    return struck(scene, *fault, name="Asterisk restarted") if fault else scene


def test_a_call_that_is_fine_breaks_no_promise() -> None:
    assert connected().kinds() == set()


def leftover(left: Left) -> Callable[[], Scene]:
    def scene() -> Scene:
        made = connected()
        made.left = left
        return made

    return scene


def waits(seconds: float, *, outage: tuple[float, float] | None = None, apps: list[str] | None = None) -> Scene:
    """A caller who rings in the app for so long."""
    scene = entered(rings_until=1)
    scene.gone(FAR, LEG, at=1 + seconds)
    if outage:
        scene.fault(*outage, apps=apps)
    return scene


def alone(seconds: float, *, outage: tuple[float, float] | None = None) -> Scene:
    """An answered caller who is in a bridge alone after the agent left."""
    scene = entered()
    scene.created(MEDIA, at=0.15)
    scene.up(LEG, 0.2)
    scene.bridged(LEG, MEDIA, at=0.2)
    scene.gone(MEDIA, at=10)
    end(scene, 10 + seconds)
    if outage:
        scene.fault(*outage)
    return scene


def continued(seconds: float) -> Scene:
    """An answered caller who was sent back to the dialplan, and talks to a human there."""
    scene = entered()
    scene.up(LEG, 0.2)
    scene.stasis(LEG, 1, status="SUCCESS")
    scene.gone(FAR, LEG, at=1 + seconds)
    return scene


def agent_alone(seconds: float, *, connects_seconds: float = 0) -> Scene:
    """A media leg that outlives its caller, from when its agent has accepted it."""
    scene = connected()
    scene.created(SECOND_MEDIA, at=10 - connects_seconds)
    scene.up(SECOND_MEDIA, 10)
    scene.bridged(SECOND_MEDIA, at=10.1, bridge=SECOND_BRIDGE)
    scene.gone(SECOND_MEDIA, at=10 + seconds)
    scene.event("BridgeDestroyed", 10 + seconds, bridge={"id": SECOND_BRIDGE})
    return scene


def second_agent(*, after_the_first: bool) -> Scene:
    scene = entered()
    scene.created(MEDIA, SECOND_MEDIA, at=0.15)
    scene.up(LEG, 0.2)
    scene.bridged(LEG, MEDIA, at=0.2)
    if after_the_first:
        scene.unbridged(MEDIA, 5)
    scene.bridged(SECOND_MEDIA, at=5)
    scene.gone(SECOND_MEDIA, at=10)
    end(scene, 10)
    return scene


def without_row(seconds: float, *, fault: bool = False, outage: tuple[float, float] | None = None, **how: Any) -> Scene:
    """A caller who was in the app for so long, and of whom no row tells."""
    scene = entered(rings_until=1)
    scene.rows, scene.runs = [], []
    scene.gone(FAR, LEG, at=1 + seconds)
    if fault or outage:
        scene.fault(0, 0.5, name="listener killed", outage=False, **how)
    if outage:
        scene.fault(*outage, name="Postgres unreachable", outage=True)
    return scene


def never_entered() -> Scene:
    """A caller whom no app took: Stasis failed at once, and its dialplan hung up."""
    scene = Scene()
    scene.offered()
    scene.created(FAR, LEG, at=0)
    for at in (0.1, 0.2, 0.3):
        scene.stasis(LEG, at)
        scene.stasis(LEG, at, status="FAILED")
    scene.gone(FAR, LEG, at=60)
    return scene


def with_rows(*rows: CallRow, runs: tuple[RunRow, ...] = (RUN,)) -> Callable[[], Scene]:
    def scene() -> Scene:
        made = connected()
        made.rows, made.runs = list(rows), list(runs)
        return made

    return scene


def came_back() -> Scene:
    """A caller who left the app by `continue` and came back: two entries, two calls."""
    scene = entered()
    scene.stasis(LEG, 2, status="SUCCESS")
    scene.stasis(LEG, 5)
    scene.gone(FAR, LEG, at=6)
    scene.rows.append(replace(OTHER_ROW, channel_id=LEG))
    return scene


def seen_after_a_blind_time() -> Scene:
    scene = with_rows(ROW, OTHER_ROW)()
    scene.history.blind.append((START - 1, START + 1))
    return scene


def with_platform_run(*, direction: str, channel_id: str | None = "platform-1", offered: bool = True) -> Scene:
    """A run without a call; the platform's own leg may never have come."""
    scene = connected()
    scene.runs.append(RunRow(id=8, organization_id=1, channel_id=channel_id, is_completed=False))
    scene.offered(leg="platform-1", direction=direction)
    if not offered:
        scene.deeds.append({"deed": "not-offered", "leg": "platform-1", "reason": "OperationalError"})
    return scene


def with_letter(at: float, **fault: Any) -> Scene:
    scene = connected()
    scene.letters.append(DeadLetter(at=START + at, call_id=CALL_ID, name="leg_ended", detail="Unavailable: x"))
    scene.fault(5, 10, **fault)
    return scene


def platform_call(*, is_completed: bool) -> Scene:
    """A leg of the platform's whose far end hung up before the pipeline had looked at its run."""
    scene = Scene()
    scene.offered(direction="platform")
    scene.created(LEG, at=0)
    scene.stasis(LEG, 0.1)
    scene.gone(LEG, at=0.2)
    scene.rows = [replace(ROW, workflow_id=None, workflow_run_id=None, connected_at=None, outcome="canceled")]
    scene.runs = [replace(RUN, is_completed=is_completed)]
    return scene


NOT_ENDED = replace(ROW, state="ending", outcome="refused", ending_at=START + 90)
ENDING = replace(ROW, state="ending", ending_at=START + 90)

#: Kind of violation, a scene that shows it, and one that nearly does.
CASES: list[tuple[str, Callable[[], Scene], Callable[[], Scene]]] = [
    ("channel-left", leftover(Left(channels=[FAR])), connected),
    ("bridge-left", leftover(Left(bridges=[BRIDGE])), connected),
    ("media-socket-left", leftover(Left(media_sockets=1)), connected),
    ("not-observed", leftover(Left(problem="Asterisk does not answer")), connected),
    ("caller-waits", lambda: waits(61), lambda: waits(59)),
    ("caller-waits", lambda: waits(61), lambda: connected(until=61)),
    ("caller-waits", lambda: waits(79, outage=(20, 38)), lambda: waits(79, outage=(20, 40))),
    (
        "caller-waits",
        lambda: waits(79, outage=(20, 40), apps=[OTHER_APP]),
        lambda: waits(79, outage=(20, 40), apps=[APP]),
    ),
    ("caller-in-silence", lambda: alone(21), lambda: alone(19)),
    ("caller-in-silence", lambda: alone(29, outage=(0, 18)), lambda: alone(29, outage=(0, 20))),
    ("caller-in-silence", lambda: alone(21), lambda: continued(40)),
    ("agent-alone", lambda: agent_alone(21), lambda: agent_alone(19)),
    ("agent-alone", lambda: agent_alone(21), lambda: agent_alone(19, connects_seconds=5)),
    ("two-agents", lambda: second_agent(after_the_first=False), lambda: second_agent(after_the_first=True)),
    ("dialled-again", lambda: dialled_again(connected()), connected),
    (
        "wrong-agent",
        lambda: beside(agent=SECOND_MEDIA, bridge=SECOND_BRIDGE),
        lambda: beside(agent=f"aip-{OTHER_CALL_ID}-m1", bridge=f"aip-{OTHER_CALL_ID}-b1"),
    ),
    ("caller-in-silence", lambda: connecting(21), lambda: connecting(19)),
    ("wrong-tenant", with_rows(replace(ROW, organization_id=2), runs=(replace(RUN, organization_id=2),)), connected),
    ("wrong-tenant", with_rows(ROW, runs=(replace(RUN, organization_id=2),)), connected),
    ("call-lost", not_hung_up, lambda: not_hung_up(agent_closes=True)),
    ("call-lost", lambda: struck(not_hung_up(), 41), lambda: struck(not_hung_up(), 9)),
    ("call-lost", lambda: struck(not_hung_up(), 9, apps=[OTHER_APP]), lambda: struck(not_hung_up(), 9, apps=[APP])),
    ("call-lost", lambda: struck(not_hung_up(), 9, loses=False), lambda: struck(not_hung_up(), 9, loses=True)),
    ("call-lost", beside_an_agent_that_closes, lambda: not_hung_up(agent_closes=True)),
    ("call-lost", never_came, lambda: struck(never_came(), 50)),
    (
        "ended-early",
        with_rows(replace(ROW, ended_at=START - 11)),
        with_rows(replace(ROW, ended_at=START - 9)),
    ),
    ("run-outcome", with_rows(ROW, runs=(replace(RUN, disposition="canceled"),)), connected),
    (
        "run-outcome",
        with_rows(ROW, runs=(replace(RUN, disposition="canceled"),)),
        lambda: struck(with_rows(ROW, runs=(replace(RUN, disposition="canceled"),))(), 1, outage=False),
    ),
    ("run-outcome", lambda: with_run(waits(5), RUN), lambda: waits(5)),
    ("not-observed", lambda: blind(1, 7), lambda: blind(1, 6)),
    ("not-observed", lambda: blind(1, 9), lambda: blind(1, 9, fault=(0, 6))),
    ("call-without-row", lambda: without_row(5), lambda: without_row(5, fault=True)),
    ("call-without-row", lambda: without_row(21, fault=True), lambda: without_row(19, fault=True)),
    ("call-without-row", lambda: without_row(31, outage=(5, 14)), lambda: without_row(29, outage=(5, 14))),
    ("call-without-row", lambda: without_row(5, fault=True, apps=[OTHER_APP]), never_entered),
    ("call-without-row", lambda: without_row(5, fault=True, loses=False), lambda: without_row(5, fault=True)),
    ("row-twice", with_rows(ROW, replace(OTHER_ROW, channel_id=LEG)), came_back),
    ("row-without-channel", with_rows(ROW, OTHER_ROW), with_rows(ROW, replace(OTHER_ROW, request_id="r"))),
    ("row-without-channel", with_rows(ROW, OTHER_ROW), seen_after_a_blind_time),
    ("call-not-ended", with_rows(NOT_ENDED), with_rows(ROW)),
    ("run-missing", with_rows(replace(ROW, workflow_run_id=None), runs=()), with_rows(ROW)),
    ("run-missing", with_rows(ROW, runs=()), with_rows(ROW)),
    ("run-not-ended", with_rows(ROW, runs=(replace(RUN, is_completed=False),)), with_rows(ROW)),
    ("run-not-ended", lambda: platform_call(is_completed=False), lambda: platform_call(is_completed=True)),
    ("run-twice", with_rows(ROW, runs=(RUN, replace(RUN, id=8))), with_rows(ROW)),
    (
        "run-without-call",
        lambda: with_platform_run(direction="inbound"),
        lambda: with_platform_run(direction="platform"),
    ),
    (
        "run-without-call",
        lambda: with_platform_run(direction="platform", channel_id=None),
        lambda: with_platform_run(direction="platform", channel_id=None, offered=False),
    ),
    ("dead-letter", lambda: with_letter(4), lambda: with_letter(6)),
    ("dead-letter", lambda: with_letter(61), lambda: with_letter(59)),
    ("dead-letter", lambda: with_letter(6, outage=False), lambda: with_letter(6)),
    ("dead-letter", lambda: with_letter(6, apps=[OTHER_APP]), lambda: with_letter(6, apps=[APP])),
    ("caller-hears-nothing", lambda: listened(0.5, 0.9, seconds=3.9), lambda: listened(1.0, 0.9, seconds=3.9)),
    ("caller-hears-nothing", lambda: listened(0.5, 0.9, seconds=3), lambda: listened(0.5, 0.9, seconds=2.9)),
    ("caller-hears-gaps", lambda: listened(4.9, 0.9), lambda: listened(5.1, 0.9)),
    ("caller-hears-gaps", lambda: listened(4.9, 0.9), lambda: listened(6.9, 0.9, fault="Asterisk restarted")),
    ("agent-hears-nothing", lambda: listened(9.0, 0.0), lambda: listened(9.0, 0.2)),
    (
        "agent-hears-nothing",
        lambda: listened(9.0, 0.0, fault="listener killed"),
        lambda: listened(9.0, 0.0, fault="agent down"),
    ),
    # Asterisk closes the media leg at 10.3 s; what the agent has heard, it writes then.
    (
        "agent-hears-nothing",
        lambda: listened(9.0, 0.0, fault="agent down", at=10.4),
        lambda: listened(9.0, 0.0, fault="agent down", at=10.25),
    ),
]


@pytest.mark.parametrize(("kind", "broken", "calm"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)])
def test_a_violation_is_reported_and_its_calm_neighbour_is_not(
    kind: str, broken: Callable[[], Scene], calm: Callable[[], Scene]
) -> None:
    assert broken().kinds() == {kind}
    assert calm().kinds() == set()


def test_one_run_of_two_calls_and_a_slot_that_is_kept_are_reported() -> None:
    shared = with_rows(ROW, replace(ROW, call_id=OTHER_CALL_ID, channel_id="call-2", request_id="r"))
    assert shared().kinds() == {"run-shared"}
    assert with_rows(ENDING)().kinds() == {"call-not-ended", "slot-in-use"}
    assert with_rows(replace(ENDING, ending_at=START + 30))().kinds() == {"call-not-ended"}


def test_two_callers_in_one_bridge_are_reported_once() -> None:
    scene = entered()
    scene.created("call-2", MEDIA, at=0.1)
    scene.stasis("call-2", 0.1)
    scene.rows.append(OTHER_ROW)
    scene.bridged(LEG, MEDIA, "call-2", at=0.2)
    scene.gone("call-2", at=5)
    end(scene, 5)
    scene.offered(leg="call-2")
    found = [violation.kind for violation in violations(scene.evidence())]
    assert sorted(found) == ["two-callers", "wrong-agent"]


def died(*, waiting: bool, at: float = 5) -> Scene:
    """An Asterisk that dies and is back a second later, with a call in set-up or connected."""
    scene = entered()
    if not waiting:
        scene.created(MEDIA, at=0.15)
        scene.up(LEG, 0.2)
        scene.bridged(LEG, MEDIA, at=0.2)
    scene.fault(at - 0.1, at + 1, name="Asterisk restarted")
    scene.history.restarted(died_at=START + at, started_at=START + at + 1)
    return scene


def test_an_asterisk_that_dies_takes_its_calls_along() -> None:
    for waiting, outcome in ((True, "lost"), (False, "connected")):
        scene = died(waiting=waiting)
        assert scene.kinds() == set()
        (call,) = figures.calls(scene.evidence())
        assert (call.outcome, call.ended_at) == (outcome, START + 5)


def test_a_row_is_not_asked_of_a_call_that_died_with_its_asterisk() -> None:
    scene = died(waiting=True, at=40)
    scene.rows, scene.runs = [], []
    assert scene.kinds() == set()


def test_what_ended_before_the_death_or_began_after_it_is_not_lost() -> None:
    scene = connected(until=3)
    scene.created("call-2", at=6.5)
    scene.history.restarted(died_at=START + 5, started_at=START + 6)
    assert not any(leg.is_lost for leg in scene.history.legs.values())
    assert scene.history.legs["call-2"].gone_at == math.inf


def test_what_events_did_not_tell_is_taken_from_two_lists_in_a_row() -> None:
    scene = Scene()
    scene.created(LEG, at=0)
    scene._dialplans[LEG] = {"app_name": "Stasis", "app_data": APP}
    channels, bridges = [scene.channel(LEG)], [{"id": BRIDGE, "channels": [LEG]}]
    scene.history.reconcile(channels, bridges, START + 10)
    assert not scene.history.legs[LEG].apps
    scene.history.reconcile(channels, bridges, START + 11)
    leg = scene.history.legs[LEG]
    assert [(stay.where, stay.since) for stay in leg.apps] == [(APP, START + 10)]
    assert [(stay.where, stay.since) for stay in leg.bridges] == [(BRIDGE, START + 10)]
    assert scene.history.in_setup() == {LEG: APP}
    scene.stasis(LEG, 9.5)
    assert [stay.since for stay in leg.apps] == [START + 9.5], "the event that comes late knows better"
    scene.history.reconcile([], [], START + 12)
    scene.history.reconcile([], [], START + 13)
    assert (leg.gone_at, leg.apps[0].until, leg.bridges[0].until) == (START + 12,) * 3
    assert scene.history.in_setup() == {}
    scene.gone(LEG, at=11.5)
    assert leg.gone_at == START + 11.5


def test_a_leg_that_has_left_its_app_and_hangs_up_has_not_come_back() -> None:
    """Its dialplan names the app until it is gone, which may take seconds."""
    scene = entered()
    scene.event("ChannelHangupRequest", 2, LEG, cause=16)
    channels = [scene.channel(LEG), scene.channel(FAR)]
    scene.stasis(LEG, 2, status="SUCCESS")
    for at in (3, 4):
        scene.history.reconcile(channels, [], START + at)
    scene.gone(FAR, LEG, at=5)
    assert scene.kinds() == set()


def test_set_up_ends_with_a_second_channel_in_the_bridge() -> None:
    scene = entered()
    assert scene.history.in_setup() == {LEG: APP}
    scene.bridged(LEG, at=1)
    assert scene.history.in_setup() == {LEG: APP}
    scene.bridged(MEDIA, at=2)
    assert scene.history.in_setup() == {}


def test_a_fault_has_the_callers_whose_set_up_it_overlaps() -> None:
    scene = entered(rings_until=1)
    scene.fault(2, 8)
    scene.created(MEDIA, at=9)
    scene.bridged(LEG, MEDIA, at=9)
    scene.offered(leg="call-2", at=3)
    scene.created("call-2", at=3)
    scene.stasis("call-2", 3)
    scene.bridged("call-2", f"aip-{OTHER_CALL_ID}-m1", at=10, bridge=f"aip-{OTHER_CALL_ID}-b1")
    for leg, at in (("call-0", 0.5), ("call-9", 20)):
        scene.offered(leg=leg, at=at)
        scene.created(leg, at=at)
        scene.stasis(leg, at)
        bridge, media = (f"aip-{leg[-1] * 32}-{kind}1" for kind in "bm")
        scene.bridged(leg, media, at=at + 1, bridge=bridge)
    scene.offered(leg="call-3", at=39)
    scene.deeds.append({"deed": "not-offered", "leg": "call-3", "at": START + 39, "reason": "ConnectionError"})
    evidence = scene.evidence()
    calls = figures.calls(evidence)
    found = figures.fault(evidence.deeds.faults[0], calls)
    assert (found.in_setup, found.callers) == (1, 3)
    assert found.served_again_seconds == pytest.approx(8)
    assert (found.p50_wait_seconds, found.worst_wait_seconds) == pytest.approx((7, 9))
    assert [call.leg for call in calls] == [LEG, "call-0", "call-2", "call-9", "call-3"]
    assert [call.outcome for call in calls] == [*["connected"] * 4, "lost"]
    assert [bool(call.faults) for call in calls] == [True, False, True, False, False]


def test_a_violation_is_told_with_what_asterisk_showed_and_the_timeline() -> None:
    scene = alone(30)
    scene.fault(1, 2)
    found = verdict.judge(scene.evidence(), timeline=lambda call_id: [f"timeline of {call_id}"])
    (violation,) = found["violations"]
    assert (violation["leg"], violation["call_id"]) == (LEG, CALL_ID)
    text = "\n".join(violation["story"])
    assert f"in app {APP}" in text
    assert f"in bridge {BRIDGE}" in text
    assert "Postgres unreachable" in text
    assert f"timeline of {CALL_ID}" in text
