"""The step of admission: checks in their order, and what is written. And legs that the platform has originated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from unittest.mock import MagicMock

import pytest

from shared.call import facts
from shared.call.call_settings import CallSettings
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Attempt, Naming
from shared.call.limits import Limits
from shared.call.quota_rules import Quota
from shared.call.stasis_args import RunArgs
from shared.call.states import Cause, Direction, State
from shared.call.steps import Step
from shared.platform.ports import NoRoute, Route
from shared.storage.connections import InboundTarget
from tests.support.calls import ADMITTED, LIMITS, RECEIVED, advance
from tests.support.rounds import GONE, Rounds, channel
from workers.admission import Admission, RunCreation
from workers.claims import Arrival, Claim
from workers.step_ports import NoQuota

_T = TypeVar("_T")
NAMING = Naming("aip-")
LIMITED = Quota(organization_id=3, concurrent_calls=2)
TARGET = InboundTarget(served_by=ConnectionVersion(7, 1), organization_id=3, quota=LIMITED)
SETTINGS = CallSettings(media_client="media", call_seconds=120.0, dial_template="PJSIP/{number}", caller_id=None)
ROUTE = Route(
    workflow_id=1, user_id=2, settings=SETTINGS, continue_in_dialplan=True, concurrent_calls=5, reserved_run_id=77
)
NO_ROUTE = NoRoute(reason="no workflow", hangup_cause=Cause.UNALLOCATED, continue_in_dialplan=True)
PLATFORMS = replace(RECEIVED, direction=Direction.OUTBOUND, args=("workflow_run_id=9,workflow_id=1", "user_id=2"))
IN_APP = channel(RECEIVED.channel_id)


class StepClaim:
    """A claim on a call that has just arrived, or not; its transaction notes what is done in it."""

    def __init__(self, call: Call, arrival: Arrival | None, leads_to: Sequence[Step]) -> None:
        self.call = call
        self.arrival = arrival
        self.nonce = "4f2a9c01" if call.id_prefix else ""
        self._leads_to = leads_to
        self.asked: list[str] = []

    def leads_to(self, step: Step) -> bool:
        return step in self._leads_to

    def begin(self) -> str:
        self.asked.append("begin")
        return "transaction"

    def after(self, *happened: facts.Fact) -> Call:
        return advance(self.call, *happened)[0]

    def ask_once(self, question: str, ask: Callable[[], _T]) -> _T:
        self.asked.append(question)
        return ask()


class Scene:
    """The admission of one call, with ports that answer as told and note what they were asked."""

    def __init__(
        self,
        *,
        used: int = 0,
        quota: facts.Refused | None = None,
        route: Any = ROUTE,
        limits: Limits = LIMITS,
        about_runs: bool = False,
        **asterisk: Any,
    ) -> None:
        self.authorized: list[Call] = []
        self.quota_asked: list[tuple[int, Quota | None]] = []
        self.routes_asked: list[tuple[int, str]] = []
        self.slots_asked: list[tuple[int | None, int | None]] = []
        self.created: list[tuple[Call, Attempt | None, int | None]] = []
        self.attached: list[RunArgs] = []
        self.attaches: Route | NoRoute = ROUTE
        self.asterisk = Rounds({f"GET /channels/{RECEIVED.channel_id}": [asterisk.get("leg", IN_APP)]})
        self._used, self._quota, self._route = used, quota, route
        self.step = Admission(
            connections=cast(Any, SimpleNamespace(inbound_target=lambda _connection: TARGET)),
            routes=cast(Any, SimpleNamespace(inbound=self._inbound)),
            quota=cast(
                Any,
                SimpleNamespace(
                    refusal=self._refusal,
                    asks_network=False,
                    is_about_runs=lambda: about_runs,
                    authorization=self._authorization,
                ),
            ),
            slots=cast(Any, SimpleNamespace(among=self._among)),
            slot_count=cast(Any, SimpleNamespace(lock_organization=lambda *_: None, slots_used=lambda *_: self._used)),
            runs=cast(Any, SimpleNamespace(create=self._create, attach=self._attach)),
            asterisks=self.asterisk.asterisks,
            naming=NAMING,
            limits=limits,
        )

    def _inbound(self, connection_id: int, called_number: str) -> object:
        self.routes_asked.append((connection_id, called_number))
        return self._route

    def _refusal(self, call: Call, *, user_id: int, budget: object, quota: Quota | None) -> facts.Refused | None:
        self.quota_asked.append((user_id, quota))
        return self._quota

    def _authorization(self, call: Call, *, budget: object) -> facts.Refused | None:
        self.authorized.append(call)
        return self._quota

    def _among(self, own: int | None, platform: int | None) -> int | None:
        self.slots_asked.append((own, platform))
        return own

    def _create(
        self, db: str, call: Call, *, first_attempt: Attempt | None = None, reserved_id: int | None = None
    ) -> int:
        assert db == "transaction"
        self.created.append((call, first_attempt, reserved_id))
        return 9

    def _attach(self, db: str, call: Call, args: RunArgs) -> Route | NoRoute:
        assert (db, call) == ("transaction", PLATFORMS)
        self.attached.append(args)
        return self.attaches

    def run(
        self, call: Call = RECEIVED, *, arrival: Arrival | None = None, leads_to: Sequence[Step] = ()
    ) -> Sequence[facts.Fact]:
        self.claim = StepClaim(call, arrival, leads_to)
        return self.step.work(cast(Claim, self.claim))


def arrived(*, target: InboundTarget = TARGET, route: Any = ROUTE, waited_seconds: float = 0.0) -> Arrival:
    return Arrival(target=target, route=route, waited_seconds=waited_seconds)


GRANTED = facts.Admitted(workflow_id=1, user_id=2, media_client="media", call_seconds=120.0)


# ── inbound ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_caller_is_admitted_with_its_run_in_one_transaction() -> None:
    scene = Scene(route=None)
    assert scene.run(arrival=arrived(), leads_to=[Step.RUNS]) == (GRANTED, facts.RunCreated(workflow_run_id=9))
    assert scene.claim.asked == ["quota", "begin"]
    ((call, attempt, reserved_id),) = scene.created
    # The run is created for the call as it is once admitted.
    assert (call.workflow_id, call.user_id, call.media_client) == (1, 2, "media")
    assert (attempt, reserved_id) == (NAMING.attempt(RECEIVED, 1), 77)


@pytest.mark.parametrize("begins_it", [False, True])
def test_a_run_names_the_legs_of_the_first_attempt_only_if_their_nonce_is_drawn(*, begins_it: bool) -> None:
    """Another worker that begins the attempt draws another nonce."""
    drawn = replace(RECEIVED, id_prefix="aip-k3x9q2-")
    scene = Scene(route=None)
    scene.run(drawn, arrival=arrived(), leads_to=[Step.RUNS, Step.MEDIA] if begins_it else [Step.RUNS])
    ((_, attempt, _),) = scene.created
    assert attempt == (NAMING.attempt(drawn, 1, "4f2a9c01") if begins_it else None)
    assert (scene.quota_asked, scene.slots_asked, scene.routes_asked) == ([(2, LIMITED)], [(2, 5)], [])


@pytest.mark.parametrize("arrival", [None, arrived(route=None)], ids=["ordered by message", "not read along"])
def test_a_route_that_was_not_read_along_is_read_now(arrival: Arrival | None) -> None:
    scene = Scene()
    assert scene.run(arrival=arrival) == (GRANTED,)
    assert scene.routes_asked == [(7, RECEIVED.called_number)]
    assert scene.created == []


def test_a_caller_whose_admission_was_ordered_by_message_is_not_stale() -> None:
    """How long it has waited is not known: its deadline bounds it."""
    scene = Scene(limits=replace(LIMITS, stale_start_seconds=0.5))
    assert scene.run() == (GRANTED,)


def test_a_caller_of_a_connection_that_is_not_served_is_refused_first() -> None:
    scene = Scene()
    unserved = replace(TARGET, served_by=None, reason="the configuration was removed")
    refused = facts.Refused(reason="the configuration was removed", hangup_cause=Cause.CONGESTION)
    assert scene.run(arrival=arrived(target=unserved)) == (refused,)
    assert (scene.claim.asked, scene.routes_asked) == ([], [])


def test_a_channel_that_came_back_may_be_late_because_of_its_asterisk() -> None:
    (refused,) = Scene().run(replace(RECEIVED, entry=2), arrival=arrived(waited_seconds=10.01))
    assert isinstance(refused, facts.Refused)
    assert refused.reason == "received 10.0 s late, its Asterisk was asked first"


@pytest.mark.parametrize(
    ("scene", "arrival", "refused"),
    [
        pytest.param(
            Scene(), arrived(waited_seconds=10.01), facts.Refused(reason="received 10.0 s late", hangup_cause=42),
            id="it waited too long",
        ),
        pytest.param(
            Scene(), arrived(route=NO_ROUTE), facts.Refused(reason="no workflow", hangup_cause=1), id="without a route",
        ),
        pytest.param(
            Scene(quota=facts.Refused(reason="blocked", hangup_cause=57)), arrived(),
            facts.Refused(reason="blocked", hangup_cause=57, limit="quota"), id="the quota is used up",
        ),
        pytest.param(
            Scene(used=2), arrived(),
            facts.Refused(reason="too many concurrent calls: 2 of 2 slots in use", hangup_cause=17,
                          limit="concurrent-calls"),
            id="no free slot",
        ),
    ],
)  # fmt: skip
def test_a_refused_caller_continues_in_the_dialplan_if_its_route_says_so(
    scene: Scene, arrival: Arrival, refused: facts.Refused
) -> None:
    assert scene.run(arrival=arrival) == (replace(refused, continue_in_dialplan=True),)
    assert scene.created == []
    again = replace(cast(Any, arrival.route), continue_in_dialplan=False)
    assert scene.run(arrival=replace(arrival, route=again)) == (refused,)


def test_a_caller_who_waited_as_long_as_is_allowed_is_admitted() -> None:
    assert Scene().run(arrival=arrived(waited_seconds=10.0)) == (GRANTED,)


def test_a_caller_without_a_route_is_not_asked_a_quota_for() -> None:
    scene = Scene()
    scene.run(arrival=arrived(route=NO_ROUTE))
    assert (scene.quota_asked, scene.claim.asked) == ([], [])


def test_a_call_admitted_elsewhere_gets_its_run_in_a_step_of_its_own() -> None:
    scene = Scene()
    step = RunCreation(runs=scene.step.runs, naming=NAMING, quota=scene.step.quota, routes=scene.step.routes)
    claim = StepClaim(ADMITTED, None, [])
    assert step.work(cast(Claim, claim)) == (facts.RunCreated(workflow_run_id=9),)
    assert scene.created == [(ADMITTED, NAMING.attempt(ADMITTED, 1), None)]


# ── a quota that is asked about runs ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("next_steps", [(), (Step.RUNS,), (Step.RUNS, Step.MEDIA)])
def test_a_run_that_the_quota_is_asked_about_is_created_with_the_admission_in_any_pool(
    next_steps: tuple[Step, ...],
) -> None:
    scene = Scene(about_runs=True, quota=facts.Refused(reason="not asked yet", hangup_cause=1))
    (fact,) = scene.run(arrival=arrived(), leads_to=next_steps)
    assert isinstance(fact, facts.Admitted)
    assert fact.workflow_run_id == 9
    assert [(call.state, attempt) for call, attempt, _ in scene.created] == [(State.ADMITTED, None)]
    assert (scene.quota_asked, scene.authorized) == ([], [])


@pytest.mark.parametrize("refusal", [None, facts.Refused(reason="the credits are used up", hangup_cause=57)])
def test_a_call_that_has_its_run_is_prepared_only_if_the_quota_says_so(refusal: facts.Refused | None) -> None:
    """Also if the quota has another contract by now: it was not asked before."""
    scene = Scene(about_runs=False, quota=refusal)
    step = RunCreation(runs=scene.step.runs, naming=NAMING, quota=scene.step.quota, routes=scene.step.routes)
    call = replace(ADMITTED, workflow_run_id=9)
    claim = StepClaim(call, None, [])
    expected: facts.Fact = facts.RunCreated(workflow_run_id=9)
    if refusal is not None:
        expected = replace(refusal, continue_in_dialplan=True, limit="quota")
    assert step.work(cast(Claim, claim)) == (expected,)
    assert (scene.created, scene.authorized) == ([], [call])
    assert claim.asked == ["quota"]


# ── legs that the platform has originated ────────────────────────────────────────────────────────────────────────────


def test_a_platform_s_leg_gets_the_run_that_waits_for_it() -> None:
    scene = Scene()
    (fact,) = scene.run(PLATFORMS)
    assert fact == facts.RunAttached(
        workflow_id=1, user_id=2, media_client="media", call_seconds=120.0, workflow_run_id=9
    )
    assert scene.attached == [RunArgs(workflow_run_id=9, workflow_id=1, user_id=2)]
    assert scene.claim.asked == ["leg", "begin"]
    # It has passed the platform's own quota.
    assert scene.quota_asked == []


def test_a_platform_s_leg_whose_run_does_not_wait_is_refused() -> None:
    scene = Scene()
    scene.attaches = NO_ROUTE
    refused = facts.Refused(reason="no workflow", hangup_cause=1, continue_in_dialplan=True)
    assert scene.run(PLATFORMS) == (refused,)


def test_arguments_that_name_no_run_are_refused_before_anything_is_asked() -> None:
    scene = Scene()
    refused = facts.Refused(reason="workflow_id is missing", hangup_cause=Cause.NOT_ALLOWED)
    assert scene.run(replace(PLATFORMS, args=("workflow_run_id=9",))) == (refused,)
    assert scene.claim.asked == []


@pytest.mark.parametrize(
    ("leg", "expected"),
    [
        (GONE, facts.CallerGone(leg_id=RECEIVED.channel_id)),
        (channel(RECEIVED.channel_id, created="later"), facts.CallerGone(leg_id=RECEIVED.channel_id)),
        (channel(RECEIVED.channel_id, app="other"), facts.CallerLeft(leg_id=RECEIVED.channel_id, is_up=True)),
        (
            {**IN_APP, "state": "Ringing"},
            facts.Refused(reason="the far end has not answered: Ringing", hangup_cause=Cause.NOT_ALLOWED),
        ),
    ],
    ids=["gone", "another leg of this id", "elsewhere", "not answered"],
)
def test_a_platform_s_leg_is_looked_at_first(leg: object, expected: facts.Fact) -> None:
    scene = Scene(leg=leg)
    assert scene.run(PLATFORMS) == (expected,)
    assert (scene.attached, scene.claim.asked) == ([], ["leg"])


@pytest.mark.parametrize("state", ["Up", "Ring"])
def test_a_leg_that_is_answered_or_rings_here_is_served(state: str) -> None:
    (fact,) = Scene(leg={**IN_APP, "state": state}).run(PLATFORMS)
    assert isinstance(fact, facts.RunAttached)


# ── which callers are admitted before their call is first written ────────────────────────────────────────────────────


def admission(*, asks_network: bool = False) -> Admission:
    quota = NoQuota()
    quota.asks_network = asks_network
    others = ("connections", "routes", "slots", "slot_count", "runs", "asterisks", "naming", "limits")
    return Admission(quota=quota, **{name: MagicMock() for name in others})
