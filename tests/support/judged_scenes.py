"""Scenes of a chaos run for the judge's tests: what it has seen, made of single moments."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from chaos.judge import deeds, history
from chaos.judge.checks import violations
from chaos.judge.evidence import Evidence, Heard, Left
from chaos.judge.history import History
from chaos.judge.tables import CallRow, DeadLetter, RunRow, Tables

#: The moment 0 of a scene, in unix seconds.
START = 1_800_000_000.0
APP, OTHER_APP = "voiceai-a", "voiceai-b"
CALL_ID, OTHER_CALL_ID = "a" * 32, "b" * 32
LEG, FAR = "call-1", "far-call-1"
MEDIA, SECOND_MEDIA = f"aip-{CALL_ID}-m1", f"aip-{CALL_ID}-m2"
BRIDGE, SECOND_BRIDGE = f"aip-{CALL_ID}-b1", f"aip-{CALL_ID}-b2"
ROW = CallRow(
    call_id=CALL_ID,
    organization_id=1,
    channel_id=LEG,
    direction="inbound",
    state="ended",
    received_at=START + 0.1,
    outcome="completed",
    reason="caller hung up",
    workflow_id=3,
    workflow_run_id=7,
    connected_at=START + 0.2,
    ending_at=START + 10,
)
OTHER_ROW = replace(ROW, call_id=OTHER_CALL_ID, channel_id="call-2", workflow_run_id=None, connected_at=None)
#: Of a caller who had an agent.
RUN = RunRow(id=7, organization_id=1, channel_id=LEG, is_completed=True, disposition="completed")


class Scene:
    """A run made of single moments, in seconds since its start. It begins empty."""

    def __init__(self) -> None:
        self.history = History([APP, OTHER_APP])
        self.rows: list[CallRow] = []
        self.runs: list[RunRow] = []
        self.letters: list[DeadLetter] = []
        self.deeds: list[dict[str, Any]] = []
        self.left = Left()
        self.heard: dict[str, Heard] = {}
        self._states: dict[str, str] = {}
        self._created: dict[str, float] = {}
        self._dialplans: dict[str, dict[str, str]] = {}

    def event(self, kind: str, at: float, channel: str | None = None, **details: Any) -> None:
        shown = {} if channel is None else {"channel": self.channel(channel, at)}
        self.history.event({"type": kind, "timestamp": stamp(at)} | shown | details)

    def channel(self, name: str, at: float = 0) -> dict[str, Any]:
        """A channel as Asterisk shows it."""
        return {
            "id": name,
            "state": self._states.get(name, "Ring"),
            "creationtime": stamp(self._created.setdefault(name, at)),
            "dialplan": self._dialplans.get(name, {"app_name": "Wait", "app_data": "1"}),
        }

    def created(self, *names: str, at: float) -> None:
        for name in names:
            self.event("ChannelCreated", at, name)

    def stasis(self, name: str, at: float, *, status: str = "", app: str = APP) -> None:
        """Stasis begins on a leg, or ends with a status."""
        self._dialplans[name] = {"app_name": "Stasis", "app_data": f"{app},a=1"}
        self.event("ChannelVarset", at, name, variable="STASISSTATUS", value=status)
        if status:
            self._dialplans.pop(name)

    def up(self, name: str, at: float) -> None:
        self._states[name] = "Up"
        self.event("ChannelStateChange", at, name)

    def bridged(self, *names: str, at: float, bridge: str = BRIDGE) -> None:
        for name in names:
            if history.kind(name) is history.Kind.MEDIA:
                self._states.setdefault(name, "Up")
            self.event("ChannelEnteredBridge", at, name, bridge={"id": bridge})
        if LEG in names:
            self.runs = [RUN]

    def unbridged(self, name: str, at: float, bridge: str = BRIDGE) -> None:
        self.event("ChannelLeftBridge", at, name, bridge={"id": bridge})

    def gone(self, *names: str, at: float) -> None:
        for name in names:
            self.event("ChannelDestroyed", at, name, cause=16)

    def offered(self, at: float = 0.0, leg: str = LEG, *, hang_up: bool = True, **details: Any) -> None:
        """A call is offered, and its caller will hang up."""
        known = {"deed": "call", "app": APP, "direction": "inbound", "manner": "seconds", "sampled": False}
        self.deeds.append(known | {"at": START + at, "leg": leg} | details)
        if hang_up:
            self.deeds.append({"deed": "hang-up", "leg": leg, "at": START + 1000})

    def fault(self, at: float, until: float | None, *, name: str = "Postgres unreachable", **details: Any) -> None:
        known = {"deed": "fault", "number": len(self.deeds), "target": "it", "outage": True, "apps": None}
        ends = None if until is None else START + until
        self.deeds.append(known | {"name": name, "at": START + at, "until": ends} | details)

    def evidence(self, *, now: float = 100) -> Evidence:
        return Evidence(
            history=self.history,
            tables=Tables(calls=self.rows, runs=self.runs, dead_letters=self.letters),
            deeds=deeds.of_lines(self.deeds),
            now=START + now,
            left=self.left,
            heard=self.heard,
            organizations={APP: 1, OTHER_APP: 2},
        )

    def kinds(self) -> set[str]:
        return {violation.kind for violation in violations(self.evidence())}


def stamp(at: float) -> str:
    return datetime.fromtimestamp(START + at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000"


def entered(*, rings_until: float = 0.1) -> Scene:
    """A caller in the app, with a row and a run."""
    scene = Scene()
    scene.offered()
    scene.created(FAR, LEG, at=0)
    scene.stasis(LEG, rings_until)
    scene.rows, scene.runs = [ROW], [replace(RUN, disposition="canceled")]
    return scene


def connected(until: float = 10) -> Scene:
    """A call that is fine: offered at 0 s, bridged from 0.2 s on; nothing of it is left."""
    scene = entered()
    scene.created(MEDIA, at=0.15)
    scene.up(LEG, 0.2)
    scene.bridged(LEG, MEDIA, at=0.2)
    end(scene, until)
    return scene


def end(scene: Scene, at: float) -> None:
    scene.gone(FAR, LEG, at=at)
    scene.event("ChannelHangupRequest", at + 0.1, MEDIA, cause=32)
    scene.gone(MEDIA, at=at + 0.1)
    scene.event("BridgeDestroyed", at + 0.1, bridge={"id": BRIDGE})


def listened(by_caller: float, by_agent: float, *, seconds: float = 10, fault: str = "", at: float = 1) -> Scene:
    """A call whose ends heard each other's tone for so many seconds; a fault strikes at a moment, for a second."""
    scene = connected(until=0.2 + seconds)
    scene.heard[LEG] = Heard(by_caller=by_caller, by_agent=by_agent)
    if fault:
        scene.fault(at, at + 1, name=fault)
    return scene
