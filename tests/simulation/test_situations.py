"""One situation each, played by the real steps in one environment: the lessons, and what histories have found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from shared import messages
from shared.asterisk import events
from shared.asterisk.rest import Request, RequestBudget
from shared.call import commands, ids
from shared.call.states import Outcome, State
from shared.call.steps import Step
from simulator import bridges, channels
from tests.simulation.asterisks import NAMING, PREFIX, AgentPlan
from tests.simulation.environment import Environment
from tests.simulation.faults import Fault
from tests.simulation.requests import Requests
from tests.simulation.situations import CONNECTION, at_attempt, connect, ends_well, only, states, without


def test_a_caller_gets_an_agent_and_leaves_nothing(environment: Environment) -> None:
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(1.0)
    assert states(environment) == [State.CONNECTED]
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    environment.callers.hang_up_all()
    environment.world.run(2.0)
    environment.invariants.check_end()
    assert environment.world.violations == []
    assert [row.call.outcome for row in environment.store.rows.values()] == [Outcome.COMPLETED]


@pytest.mark.parametrize(
    ("agent_hangs_up_after_seconds", "ending"),
    [
        pytest.param(
            None, ["DELETE /channels/media", "DELETE /bridges/bridge", "GET /channels/media"], id="the caller hangs up"
        ),
        pytest.param(
            1.0,
            [
                # The first one: was the caller transferred?
                "GET /bridges/bridge", "GET /channels/caller", "DELETE /channels/caller", "DELETE /channels/media",
                "DELETE /bridges/bridge", "GET /channels/caller",
            ],
            id="the agent hangs up",
        ),
    ],
)  # fmt: skip
def test_the_requests_of_a_call_s_whole_life(
    make_environment: Callable[..., Environment],
    agent_hangs_up_after_seconds: float | None,
    ending: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each takes the worker's time and the Asterisk's, for every call: a further one is a decision."""
    made: list[str] = []
    request_all = Requests.request_all

    def noted(asterisk: Requests, budget: RequestBudget, requests: Sequence[Request[object]]) -> list[object]:
        made.extend(request.what for request in requests)
        return request_all(asterisk, budget, requests)

    monkeypatch.setattr(Requests, "request_all", noted)
    plan = AgentPlan(accepts_after_seconds=0.01, hangs_up_after_seconds=agent_hangs_up_after_seconds)
    environment = make_environment(plan_agent=lambda _leg: plan)
    environment.open()
    environment.world.run(0.3)
    connect(environment)
    call = only(environment)
    environment.world.run(2.0)
    ends_well(environment)
    names = {call.channel_id: "caller", NAMING.media_id(call): "media", NAMING.bridge_id(call): "bridge"}
    # The others are of a resync.
    of_call = ["/".join(names.get(part, part) for part in what.split("/")) for what in made if what.count("/") > 1]
    of_call = [what for what in of_call if "/applications/" not in what]
    assert sorted(of_call) == sorted(
        [
            "POST /channels/externalMedia", "POST /bridges/bridge", "POST /channels/caller/answer",
            "POST /bridges/bridge/addChannel", "GET /bridges/bridge", *ending,
        ]
    )  # fmt: skip


# ── what histories have found ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_late_end_of_an_earlier_entry_does_not_end_an_adopted_call(environment: Environment) -> None:
    """The caller left and came back while no socket was connected; the event of its leaving came last of all."""
    late: list[events.Event] = []
    environment.listeners[0].passes = without(*events.EventType, kept_in=late)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(0.4)
    environment.callers.come_back(caller, 0.1)
    environment.world.run(1.0)
    environment.listeners[0].passes = lambda _event: True
    assert [str(event.type) for event in late] == ["StasisStart", "StasisEnd", "StasisStart"]
    environment.handle("resync_connection", connection=CONNECTION, full=True, reason="test")
    environment.world.run(2.0)
    assert states(environment) == [State.CONNECTED]
    environment.handle("leg_ended", connection=CONNECTION, event=late[1])
    environment.world.run(3.0)
    assert states(environment) == [State.CONNECTED]
    assert environment.world.violations == []


@pytest.mark.parametrize("end_comes_last", [False, True])
def test_a_caller_who_comes_back_within_a_millisecond_keeps_the_new_call(
    environment: Environment, *, end_comes_last: bool
) -> None:
    """The stamps of leaving and entering are the same then."""
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(1.0001)
    assert states(environment) == [State.CONNECTED]
    late: list[events.Event] = []
    if end_comes_last:
        environment.listeners[0].passes = without(events.EventType.STASIS_END, kept_in=late)
    environment.callers.come_back(caller, 0.0001)
    environment.world.run(2.0)
    for event in late:
        environment.handle("leg_ended", connection=CONNECTION, event=event)
    environment.world.run(3.0)
    assert states(environment) == [State.ENDED, State.CONNECTED]
    assert caller.tenant.asterisk.is_with_agent(caller.channel)


def test_an_adopted_call_ends_when_its_caller_leaves(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment()
    environment.listeners[0].passes = lambda event: event.type is not events.EventType.STASIS_START
    environment.open()
    environment.world.run(0.3)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(0.4)
    environment.ask_resyncs("test", full=True)
    environment.world.run(5.0)
    assert states(environment) == [State.CONNECTED]
    caller.tenant.asterisk.caller_leaves_stasis(caller.channel)
    environment.world.run(6.0)
    assert states(environment) == [State.ENDED]
    assert caller.tenant.asterisk.is_alive(caller.channel)


# ── the lessons ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_legs_are_joined_when_the_media_leg_is_ready_and_not_before(
    make_environment: Callable[..., Environment],
) -> None:
    environment = make_environment(plan_agent=lambda _leg: AgentPlan(accepts_after_seconds=1.5))
    environment.open()
    environment.world.run(0.3)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(1.7)
    assert states(environment) == [State.PREPARED]
    assert caller.channel.state == "Ring"
    environment.world.run(2.0)
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    ends_well(environment)


def test_a_caller_whose_agent_cannot_be_reached_is_hung_up_after_four_attempts(
    make_environment: Callable[..., Environment],
) -> None:
    environment = make_environment(plan_agent=lambda _leg: AgentPlan(accepts_after_seconds=None))
    environment.open()
    environment.world.run(0.3)
    caller = environment.callers.call_in(environment.tenants[0])
    # Asterisk gives up four times after 1 s, and reports it by ChannelDestroyed alone. The pauses add up to 3.5 s.
    environment.world.run(7.0)
    assert states(environment) == [State.PREPARED]
    assert caller.channel.state == "Ring"
    environment.world.run(8.5)
    assert (only(environment).outcome, only(environment).attempt) == (Outcome.FAILED, 4)
    assert states(environment) == [State.ENDED]
    assert not caller.tenant.asterisk.is_alive(caller.channel)
    ends_well(environment)


def test_a_caller_whose_agent_refuses_at_first_gets_it_later_under_a_new_id(
    make_environment: Callable[..., Environment],
) -> None:
    refusing = AgentPlan(accepts_after_seconds=None, refuses_after_seconds=0.01)
    plans = {1: refusing, 2: refusing}

    def plan_agent(leg_id: str) -> AgentPlan:
        own = ids.parse(leg_id)
        assert own is not None
        return plans.get(own.attempt, AgentPlan(accepts_after_seconds=0.01))

    environment = make_environment(plan_agent=plan_agent)
    environment.open()
    environment.world.run(0.3)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(1.7)
    assert (states(environment), only(environment).attempt) == ([State.PREPARED], 2)
    environment.world.run(2.2)
    assert (states(environment), only(environment).attempt) == ([State.CONNECTED], 3)
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    ends_well(environment)


def test_a_caller_who_hangs_up_between_two_attempts_leaves_nothing_and_no_attempt_follows(
    make_environment: Callable[..., Environment],
) -> None:
    plan = AgentPlan(accepts_after_seconds=None, refuses_after_seconds=0.01)
    environment = make_environment(plan_agent=lambda _leg: plan)
    environment.open()
    environment.world.run(0.3)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(0.6)
    assert (states(environment), only(environment).attempt) == ([State.PREPARED], 1)
    caller.tenant.asterisk.caller_hangs_up(caller.channel)
    environment.world.run(0.7)
    assert (states(environment), environment.invariants.own(only(environment))) == ([State.ENDED], [])
    environment.world.run(3.0)
    assert only(environment).attempt == 1
    ends_well(environment)


def test_a_lost_order_for_an_attempt_after_a_pause_is_given_again(
    make_environment: Callable[..., Environment],
) -> None:
    plan = AgentPlan(accepts_after_seconds=None, refuses_after_seconds=0.01)
    environment = make_environment(plan_agent=lambda _leg: plan)
    environment.open()
    environment.world.run(0.3)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(0.6)
    environment.broker.flush()
    environment.world.run(6.0)
    assert (states(environment), only(environment).attempt > 1) == ([State.PREPARED], True)
    ends_well(environment)


def test_a_caller_whose_agent_hangs_up_is_hung_up(make_environment: Callable[..., Environment]) -> None:
    plan = AgentPlan(accepts_after_seconds=0.01, hangs_up_after_seconds=1.0)
    environment = make_environment(plan_agent=lambda _leg: plan)
    environment.open()
    environment.world.run(0.3)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(2.0)
    assert states(environment) == [State.ENDED]
    assert not caller.tenant.asterisk.is_alive(caller.channel)
    ends_well(environment)


def test_an_attempt_ordered_again_is_not_asked_for_again(environment: Environment) -> None:
    """The second worker would look, find no leg yet, and crash the Asterisk with a second request."""
    environment.world.script("POST /channels/externalMedia", Fault.FROZEN_BEFORE)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(0.4)
    call = only(environment)
    assert (call.state, call.attempt) == (State.PREPARED, 1)
    order = commands.StartMedia(call_id=call.call_id, attempt=1)
    environment.broker.put(messages.of_command(order, connection_id=1))
    environment.world.run(2.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment)


@pytest.mark.parametrize("fault", [Fault.UNSENT, Fault.UNANSWERED, Fault.LATE])
def test_a_media_leg_of_unknown_outcome_is_never_asked_for_again_under_its_id(
    environment: Environment, fault: Fault
) -> None:
    environment.world.script("POST /channels/externalMedia", fault)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(20.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment)


def test_a_teardown_removes_what_every_attempt_has_left(environment: Environment) -> None:
    asterisk = environment.asterisks["pbx1"]
    caller = connect(environment)
    call = at_attempt(environment, 2)
    # Not by `create_bridge`: no step makes it.
    asterisk.bridges[NAMING.bridge_id(call)] = bridges.Bridge(id=NAMING.bridge_id(call))
    leg = channels.Channel(id=NAMING.media_id(call), name="WebSocket/media/0x2", kind=channels.Kind.MEDIA)
    asterisk.add(leg)
    assert len(environment.invariants.own(call)) == 4
    asterisk.caller_hangs_up(caller.channel)
    environment.world.run(environment.world.now + 2.0)
    assert environment.invariants.own(call) == []
    ends_well(environment)


@pytest.mark.parametrize("is_ended", [False, True])
def test_a_media_leg_that_no_longer_counts_is_removed_on_sight(environment: Environment, *, is_ended: bool) -> None:
    """It comes up after another attempt has begun, or its call has ended: no resync is needed to find it."""
    asterisk, caller = environment.asterisks["pbx1"], connect(environment)
    late = NAMING.media_id(only(environment))
    if is_ended:
        asterisk.caller_hangs_up(caller.channel)
        environment.world.run(environment.world.now + 1.0)
    else:
        at_attempt(environment, 2)
        asterisk.agent_hangs_up(asterisk.channels[late])
    leg = channels.Channel(id=late, name="WebSocket/media/0x2", kind=channels.Kind.MEDIA)
    asterisk.add(leg)
    asterisk.enter_stasis(leg, "app1", [])
    environment.world.run(environment.world.now + 1.0)
    assert not asterisk.is_alive(leg)


def test_a_caller_who_has_left_stasis_unheard_is_not_hung_up(environment: Environment) -> None:
    environment.listeners[0].passes = without(events.EventType.STASIS_END)
    caller = connect(environment)
    asterisk = caller.tenant.asterisk
    asterisk.caller_leaves_stasis(caller.channel)
    environment.listeners[0].passes = lambda _event: True
    asterisk.agent_hangs_up(asterisk.channels[NAMING.media_id(only(environment))])
    environment.world.run(environment.world.now + 2.0)
    assert states(environment) == [State.ENDED]
    assert asterisk.is_alive(caller.channel)
    ends_well(environment)


@pytest.mark.parametrize(
    ("is_quota_remote", "statement"),
    [(False, "look up"), (False, "commit"), (True, "commit")],
)
@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
def test_a_run_is_created_once_though_a_worker_dies_over_it(
    make_environment: Callable[..., Environment], *, is_quota_remote: bool, statement: str, fault: Fault
) -> None:
    environment = make_environment(is_quota_remote=is_quota_remote)
    environment.open()
    environment.world.run(0.3)
    environment.world.script(statement, fault)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(20.0)
    assert states(environment) == [State.CONNECTED]
    assert len(environment.runs.rows) == 1
    ends_well(environment)


def test_an_adopted_caller_who_hangs_up_ends_the_call_without_a_question(environment: Environment) -> None:
    """When such a caller entered is unknown. But a leg that was hung up does not come back."""
    environment.listeners[0].passes = without(events.EventType.STASIS_START)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(0.5)
    environment.listeners[0].passes = lambda _event: True
    environment.handle("resync_connection", connection=CONNECTION, full=True, reason="test")
    environment.world.run(2.0)
    assert states(environment) == [State.CONNECTED]
    question = f"GET /channels/{caller.channel.id}"
    environment.world.script(question, Fault.UNANSWERED)
    caller.tenant.asterisk.caller_hangs_up(caller.channel)
    environment.world.run(3.0)
    assert states(environment) == [State.ENDED]
    assert environment.world.unplayed == [question]


def test_a_leg_named_like_another_tenant_s_touches_nothing(make_environment: Callable[..., Environment]) -> None:
    environment = make_environment(asterisks=("pbx1", "pbx2"))
    environment.open()
    environment.world.run(0.3)
    caller = connect(environment)
    name, asterisk = NAMING.media_id(only(environment)), environment.asterisks["pbx2"]
    forged = channels.Channel(id=name, name="PJSIP/forged", kind=channels.Kind.CALLER, state="Up")
    asterisk.add(forged)
    asterisk.enter_stasis(forged, "app2", [])
    environment.world.run(environment.world.now + 1.0)
    asterisk.caller_hangs_up(forged)
    environment.world.run(environment.world.now + 20.0)
    assert states(environment) == [State.CONNECTED]
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    ends_well(environment)


@pytest.mark.parametrize("knows_the_call", [False, True])
def test_what_another_installation_made_is_left_alone(environment: Environment, *, knows_the_call: bool) -> None:
    """Also if its database is a copy of ours: it knows the calls of then."""
    asterisk, caller = environment.asterisks["pbx1"], connect(environment)
    call_id = only(environment).call_id if knows_the_call else UUID(int=7)
    asterisk.caller_hangs_up(caller.channel)
    environment.world.run(environment.world.now + 10.0)
    names = {prefix: ids.bridge_id(prefix, call_id, 2) for prefix in (PREFIX, "aip-k3x9q2-")}
    # Not by `create_bridge`: no step of this installation makes them.
    asterisk.bridges |= {name: bridges.Bridge(id=name) for name in names.values()}
    environment.ask_resyncs("test", full=True)
    environment.world.run(environment.world.now + 10.0)
    assert [name for name in names.values() if name in asterisk.bridges] == [names["aip-k3x9q2-"]]


def test_the_end_of_an_earlier_entry_does_not_let_a_refused_caller_go(environment: Environment) -> None:
    """It came within a millisecond of the entry that is refused: the caller is still in the app, to be hung up."""
    entered: list[events.Event] = []
    environment.listeners[0].passes = without(events.EventType.STASIS_START, kept_in=entered)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(0.4)
    environment.handle(
        "caller_entered", connection=CONNECTION, at_ms=environment.broker.redis_ms() or 0, event=entered[0]
    )
    environment.world.run(0.41)
    (row,) = environment.store.rows.values()
    row.call = replace(row.call, state=State.ENDING, outcome=Outcome.REFUSED, reason="busy", workflow_run_id=None)
    late = replace(entered[0], type=events.EventType.STASIS_END)
    environment.handle("leg_ended", connection=CONNECTION, event=late)
    environment.world.run(0.42)
    assert not row.call.caller_left


def test_a_sweep_does_not_overrule_a_worker_that_took_the_call_up_meanwhile(environment: Environment) -> None:
    environment.workers.always_alone = True
    environment.world.script("enqueue create_run", Fault.ENQUEUE_FAILED)
    environment.world.script("overdue", Fault.FROZEN_AFTER)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(4.1)
    call_id = only(environment).call_id
    writer = environment.adapters.writer
    environment.do(
        "worker", lambda: environment.store.claim(call_id, writer.claim_request(Step.RUNS, writer.new_owner()))
    )
    environment.world.run(4.9)
    assert (only(environment).state, only(environment).step_retries) == (State.ADMITTED, 0)
    environment.world.run(20.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment)


@pytest.mark.parametrize("is_claimed_meanwhile", [False, True])
def test_a_resync_judges_no_call_that_a_worker_has_claimed(
    environment: Environment, *, is_claimed_meanwhile: bool
) -> None:
    """What that worker is about to store is not known yet."""
    environment.workers.always_alone = True
    environment.world.script("enqueue create_run", Fault.ENQUEUE_FAILED)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(2.8)
    assert states(environment) == [State.ADMITTED]
    call_id, writer = only(environment).call_id, environment.adapters.writer
    claim = writer.claim_request(Step.RUNS, writer.new_owner())
    environment.listeners[0].passes = without(*events.EventType)
    caller.tenant.asterisk.caller_hangs_up(caller.channel)
    if is_claimed_meanwhile:
        environment.world.script(f"GET /channels/{caller.channel.id}", Fault.FROZEN_BEFORE)
        environment.handle("resync_connection", connection=CONNECTION, full=True, reason="test")
        environment.world.run(2.9)
    environment.do("worker", lambda: environment.store.claim(call_id, claim))
    environment.world.run(4.0)
    environment.handle("resync_connection", connection=CONNECTION, full=True, reason="test")
    environment.world.run(4.5)
    assert states(environment) == [State.ADMITTED]
    assert environment.world.unplayed == []
    # The claim lapses.
    environment.listeners[0].passes = lambda _event: True
    environment.world.run(20.0)
    assert (only(environment).state, only(environment).outcome) == (State.ENDED, Outcome.ABANDONED)
    ends_well(environment)


@pytest.mark.parametrize("late_by_seconds", [0.2, 4.0])
def test_a_call_ends_when_no_request_of_its_first_attempt_can_take_effect_any_more(
    environment: Environment, late_by_seconds: float
) -> None:
    """Its second attempt has succeeded, and its caller has hung up since."""
    asterisk = environment.asterisks["pbx1"]
    environment.world.script("POST /channels/externalMedia", Fault.UNSENT)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(8.0)
    call = only(environment)
    assert (call.state, call.attempt) == (State.CONNECTED, 2)
    asterisk.caller_hangs_up(caller.channel)
    (leg_id,) = NAMING.attempt(call, 1).legs.values()
    leg = channels.Channel(id=leg_id, name="WebSocket/media/0x1", kind=channels.Kind.MEDIA)

    def appear() -> None:
        assert states(environment) == [State.ENDING]
        asterisk.add(leg)

    environment.world.after(late_by_seconds, appear)
    environment.world.run(14.0)
    assert states(environment) == [State.ENDING]
    environment.world.run(15.5)
    assert states(environment) == [State.ENDED]
    assert not asterisk.is_alive(leg)
    ends_well(environment)


def test_legs_that_are_joined_already_are_not_heard_to_leave_and_come_back(environment: Environment) -> None:
    """The worker that joined them died over it."""
    environment.awaited_legs.capacity = 0
    environment.world.script("addChannel", Fault.KILLED_AFTER)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(15.0)
    assert states(environment) == [State.CONNECTED]
    assert caller.channel.gaps == 0
    ends_well(environment)
