"""One situation each, played by the real steps at one site: the lessons, and what histories have found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shared import messages
from shared.asterisk import events
from shared.call import commands, ids
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.states import Outcome, State
from shared.call.steps import Step
from simulator import bridges, channels
from tests.simulation.asterisks import PREFIX, AgentPlan
from tests.simulation.faults import Fault
from tests.simulation.parties import Caller
from tests.simulation.sites import Site

CONNECTION = ConnectionVersion(1, 1)


def states(site: Site) -> list[State]:
    return [row.call.state for row in site.store.rows.values()]


def only(site: Site) -> Call:
    (row,) = site.store.rows.values()
    return row.call


def without(*types: events.EventType, kept_in: list[events.Event] | None = None) -> Callable[[events.Event], bool]:
    """Lets every other event through."""

    def passes(event: events.Event) -> bool:
        if event.type in types and kept_in is not None:
            kept_in.append(event)
        return event.type not in types

    return passes


def ends_well(site: Site, seconds: float = 3.0) -> None:
    """Everybody hangs up, and nothing is left."""
    site.parties.hang_up_all()
    site.world.run(site.world.now + seconds)
    site.invariants.check_end()
    assert site.world.violations == []


def connect(site: Site) -> Caller:
    """Somebody calls, and has an agent."""
    caller = site.parties.call_in(site.tenants[0])
    site.world.run(site.world.now + 0.5)
    assert states(site)[-1] is State.CONNECTED
    return caller


def at_attempt(site: Site, attempt: int) -> Call:
    """The one call, as if it were at this attempt."""
    (row,) = site.store.rows.values()
    row.call = replace(row.call, attempt=attempt)
    return row.call


def test_a_caller_gets_an_agent_and_leaves_nothing(site: Site) -> None:
    caller = site.parties.call_in(site.tenants[0])
    site.world.run(1.0)
    assert states(site) == [State.CONNECTED]
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    site.parties.hang_up_all()
    site.world.run(2.0)
    site.invariants.check_end()
    assert site.world.violations == []
    assert [row.call.outcome for row in site.store.rows.values()] == [Outcome.COMPLETED]


# ── what histories have found ────────────────────────────────────────────────────────────────────────────────────────


def test_a_late_end_of_an_earlier_entry_does_not_end_an_adopted_call(site: Site) -> None:
    """The caller left and came back while nobody listened; the event of its leaving came last of all."""
    late: list[events.Event] = []
    site.listeners[0].passes = without(*events.EventType, kept_in=late)
    caller = site.parties.call_in(site.tenants[0])
    site.world.run(0.4)
    site.parties.come_back(caller, 0.1)
    site.world.run(1.0)
    site.listeners[0].passes = lambda _event: True
    assert [str(event.type) for event in late] == ["StasisStart", "StasisEnd", "StasisStart"]
    site.handle("resync_connection", connection=CONNECTION, full=True, reason="test")
    site.world.run(2.0)
    assert states(site) == [State.CONNECTED]
    site.handle("leg_ended", connection=CONNECTION, event=late[1])
    site.world.run(3.0)
    assert states(site) == [State.CONNECTED]
    assert site.world.violations == []


@pytest.mark.parametrize("end_comes_last", [False, True])
def test_a_caller_who_comes_back_within_a_millisecond_keeps_the_new_call(site: Site, *, end_comes_last: bool) -> None:
    """The stamps of leaving and entering are the same then."""
    caller = site.parties.call_in(site.tenants[0])
    site.world.run(1.0001)
    assert states(site) == [State.CONNECTED]
    late: list[events.Event] = []
    if end_comes_last:
        site.listeners[0].passes = without(events.EventType.STASIS_END, kept_in=late)
    site.parties.come_back(caller, 0.0001)
    site.world.run(2.0)
    for event in late:
        site.handle("leg_ended", connection=CONNECTION, event=event)
    site.world.run(3.0)
    assert states(site) == [State.ENDED, State.CONNECTED]
    assert caller.tenant.asterisk.is_with_agent(caller.channel)


def test_an_adopted_call_ends_when_its_caller_leaves(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.listeners[0].passes = lambda event: event.type is not events.EventType.STASIS_START
    site.open()
    site.world.run(0.3)
    caller = site.parties.call_in(site.tenants[0])
    site.world.run(0.4)
    site.ask_resyncs("test", full=True)
    site.world.run(5.0)
    assert states(site) == [State.CONNECTED]
    caller.tenant.asterisk.caller_goes_on(caller.channel)
    site.world.run(6.0)
    assert states(site) == [State.ENDED]
    assert caller.tenant.asterisk.is_alive(caller.channel)


# ── the lessons ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_legs_are_joined_when_the_media_leg_is_ready_and_not_before(make_site: Callable[..., Site]) -> None:
    site = make_site(plan_agent=lambda _leg: AgentPlan(accepts_after_seconds=1.5))
    site.open()
    site.world.run(0.3)
    caller = site.parties.call_in(site.tenants[0])
    site.world.run(1.7)
    assert states(site) == [State.PREPARED]
    assert caller.channel.state == "Ring"
    site.world.run(2.0)
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    ends_well(site)


def test_a_caller_whose_agent_cannot_be_reached_is_hung_up_at_once(make_site: Callable[..., Site]) -> None:
    site = make_site(plan_agent=lambda _leg: AgentPlan(accepts_after_seconds=None))
    site.open()
    site.world.run(0.3)
    caller = site.parties.call_in(site.tenants[0])
    # Asterisk gives up after 2 s, and says so by ChannelDestroyed alone.
    site.world.run(2.8)
    assert only(site).outcome is Outcome.FAILED
    assert states(site) == [State.ENDED]
    assert not caller.tenant.asterisk.is_alive(caller.channel)
    ends_well(site)


def test_a_caller_whose_agent_hangs_up_is_hung_up(make_site: Callable[..., Site]) -> None:
    plan = AgentPlan(accepts_after_seconds=0.01, hangs_up_after_seconds=1.0)
    site = make_site(plan_agent=lambda _leg: plan)
    site.open()
    site.world.run(0.3)
    caller = site.parties.call_in(site.tenants[0])
    site.world.run(2.0)
    assert states(site) == [State.ENDED]
    assert not caller.tenant.asterisk.is_alive(caller.channel)
    ends_well(site)


def test_an_attempt_ordered_again_is_not_asked_for_again(site: Site) -> None:
    """The second worker would look, see nothing of it yet, and crash the Asterisk if it asked all the same."""
    site.world.script("POST /channels/externalMedia", Fault.FROZEN_BEFORE)
    site.parties.call_in(site.tenants[0])
    site.world.run(0.4)
    call = only(site)
    assert (call.state, call.attempt) == (State.PREPARED, 1)
    order = commands.StartMedia(call_id=call.call_id, attempt=1)
    site.broker.put(messages.of_command(order, connection_id=1))
    site.world.run(2.0)
    assert states(site) == [State.CONNECTED]
    ends_well(site)


@pytest.mark.parametrize("fault", [Fault.UNSENT, Fault.UNANSWERED, Fault.LATE])
def test_a_media_leg_of_unknown_outcome_is_never_asked_for_again_under_its_id(site: Site, fault: Fault) -> None:
    site.world.script("POST /channels/externalMedia", fault)
    site.parties.call_in(site.tenants[0])
    site.world.run(20.0)
    assert states(site) == [State.CONNECTED]
    ends_well(site)


def test_a_teardown_removes_what_every_attempt_has_left(site: Site) -> None:
    asterisk = site.asterisks["pbx1"]
    caller = connect(site)
    call = at_attempt(site, 2)
    asterisk.create_bridge(bridges.Bridge(id=ids.bridge_id(PREFIX, call.call_id, 2)))
    leg = channels.Channel(
        id=ids.media_id(PREFIX, call.call_id, 2), name="WebSocket/media/0x2", kind=channels.Kind.MEDIA
    )
    asterisk.add(leg)
    assert len(site.invariants.own(call)) == 4
    asterisk.caller_hangs_up(caller.channel)
    site.world.run(site.world.now + 2.0)
    assert site.invariants.own(call) == []
    ends_well(site)


@pytest.mark.parametrize("is_ended", [False, True])
def test_a_media_leg_that_no_longer_counts_is_removed_on_sight(site: Site, *, is_ended: bool) -> None:
    """It comes up when another attempt has begun, or its call has ended: no resync is needed to find it."""
    asterisk, caller = site.asterisks["pbx1"], connect(site)
    late = ids.media_id(PREFIX, only(site).call_id, 1)
    if is_ended:
        asterisk.caller_hangs_up(caller.channel)
        site.world.run(site.world.now + 1.0)
    else:
        at_attempt(site, 2)
        asterisk.agent_hangs_up(asterisk.channels[late])
    leg = channels.Channel(id=late, name="WebSocket/media/0x2", kind=channels.Kind.MEDIA)
    asterisk.add(leg)
    asterisk.enter_stasis(leg, "app1", [])
    site.world.run(site.world.now + 1.0)
    assert not asterisk.is_alive(leg)


def test_a_caller_who_has_left_stasis_unheard_is_not_hung_up(site: Site) -> None:
    site.listeners[0].passes = without(events.EventType.STASIS_END)
    caller = connect(site)
    asterisk = caller.tenant.asterisk
    asterisk.caller_goes_on(caller.channel)
    site.listeners[0].passes = lambda _event: True
    asterisk.agent_hangs_up(asterisk.channels[ids.media_id(PREFIX, only(site).call_id, 1)])
    site.world.run(site.world.now + 2.0)
    assert states(site) == [State.ENDED]
    assert asterisk.is_alive(caller.channel)
    ends_well(site)


def test_a_run_is_created_once_though_a_worker_dies_over_it(site: Site) -> None:
    site.world.script("save_in", Fault.KILLED_BEFORE)
    site.parties.call_in(site.tenants[0])
    site.world.run(20.0)
    assert states(site) == [State.CONNECTED]
    assert len(site.runs.rows) == 1
    ends_well(site)


def test_a_leg_named_like_another_tenant_s_touches_nothing(make_site: Callable[..., Site]) -> None:
    site = make_site(asterisks=("pbx1", "pbx2"))
    site.open()
    site.world.run(0.3)
    caller = connect(site)
    name, asterisk = ids.media_id(PREFIX, only(site).call_id, 1), site.asterisks["pbx2"]
    forged = channels.Channel(id=name, name="PJSIP/forged", kind=channels.Kind.CALLER, state="Up")
    asterisk.add(forged)
    asterisk.enter_stasis(forged, "app2", [])
    site.world.run(site.world.now + 1.0)
    asterisk.caller_hangs_up(forged)
    site.world.run(site.world.now + 20.0)
    assert states(site) == [State.CONNECTED]
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    ends_well(site)


def test_a_caller_in_another_controller_s_bridge_is_left_alone(site: Site) -> None:
    site.listeners[0].passes = without(events.EventType.STASIS_START)
    asterisk = site.asterisks["pbx1"]
    caller = site.parties.call_in(site.tenants[0])
    bridge = bridges.Bridge(id="other")
    asterisk.create_bridge(bridge)
    asterisk.add_to_bridge(bridge, [caller.channel.id])
    site.ask_resyncs("test", full=True)
    site.world.run(20.0)
    assert states(site) == []
    assert bridge.channel_ids == [caller.channel.id]


def test_a_module_that_is_not_loaded_ends_no_call(site: Site) -> None:
    """A 404 that does not name what is gone proves nothing."""
    connect(site)
    site.world.run(5.0)
    for _ in range(4):
        site.world.script("GET", Fault.MISANSWERED)
    site.ask_resyncs("test", full=False)
    site.world.run(8.0)
    assert states(site) == [State.CONNECTED]
    ends_well(site)


def test_a_far_end_that_answers_gets_an_agent_and_not_before(make_site: Callable[..., Site]) -> None:
    site = make_site(answer_after_seconds=3.0)
    site.open()
    site.world.run(0.3)
    site.parties.request_call(site.tenants[0], "100")
    site.world.run(3.0)
    assert states(site) == [State.RINGING]
    assert site.asterisks["pbx1"].bridges == {}
    site.world.run(4.0)
    assert states(site) == [State.CONNECTED]
    ends_well(site)


@pytest.mark.parametrize(
    ("number", "outcome"), [("busy", Outcome.BUSY), ("congestion", Outcome.FAILED), ("reject", Outcome.FAILED)]
)
def test_a_far_end_that_does_not_answer_ends_the_run_within_a_second(site: Site, number: str, outcome: Outcome) -> None:
    site.parties.request_call(site.tenants[0], number)
    site.world.run(1.3)
    assert (only(site).state, only(site).outcome) == (State.ENDED, outcome)
    assert [run.is_completed for run in site.runs.rows.values()] == [True]
    ends_well(site)


def test_the_end_of_an_earlier_entry_does_not_let_a_refused_caller_go(site: Site) -> None:
    """It came within a millisecond of the entry that is refused: the caller is in our app still, and to be hung up."""
    entered: list[events.Event] = []
    site.listeners[0].passes = without(events.EventType.STASIS_START, kept_in=entered)
    site.parties.call_in(site.tenants[0])
    site.world.run(0.4)
    site.handle("caller_entered", connection=CONNECTION, at_ms=site.broker.redis_ms() or 0, event=entered[0])
    site.world.run(0.41)
    (row,) = site.store.rows.values()
    row.call = replace(row.call, state=State.ENDING, outcome=Outcome.REFUSED, reason="busy", workflow_run_id=None)
    late = replace(entered[0], type=events.EventType.STASIS_END)
    site.handle("leg_ended", connection=CONNECTION, event=late)
    site.world.run(0.42)
    assert not row.call.caller_left


@pytest.mark.parametrize("end_first", [False, True])
def test_a_far_end_that_hangs_up_before_it_is_taken_over_ends_the_platform_s_run(
    site: Site, *, end_first: bool
) -> None:
    kept: list[events.Event] = []
    site.listeners[0].passes = without(*events.EventType, kept_in=kept)
    run = site.parties.platform_calls(site.tenants[0], "100")
    site.world.run(0.4)
    site.parties.hang_up_all()
    site.world.run(0.5)
    entered, left = (next(event for event in kept if event.type == kind) for kind in ("StasisStart", "StasisEnd"))

    def receive() -> None:
        site.handle("caller_entered", connection=CONNECTION, at_ms=site.broker.redis_ms() or 0, event=entered)

    def end() -> None:
        site.handle("leg_ended", connection=CONNECTION, event=left)

    for number, report in enumerate([end, receive] if end_first else [receive, end]):
        report()
        site.world.run(1.0 + number)
    assert only(site).state is State.ENDED
    assert run.is_completed
    assert site.world.violations == []


def over_too_soon(make_site: Callable[..., Site], answer_after_seconds: float) -> Site:
    """A leg that we begin rings, and its call is over: an Asterisk that hung has carried out our request much later."""
    site = make_site(answer_after_seconds=answer_after_seconds)
    site.open()
    site.world.run(0.3)
    site.parties.request_call(site.tenants[0], "100")
    site.world.run(1.0)
    (row,) = site.store.rows.values()
    assert row.call.state is State.RINGING
    row.call = replace(row.call, state=State.ENDED, outcome=Outcome.CANCELED, deadline_at=None)
    for run in site.runs.rows.values():
        run.is_completed = True
    return site


def test_a_far_end_that_answers_when_its_call_is_long_over_is_hung_up(make_site: Callable[..., Site]) -> None:
    site = over_too_soon(make_site, answer_after_seconds=1.5)
    site.world.run(2.3)
    assert not site.asterisks["pbx1"].channels
    site.invariants.check_end()
    assert site.world.violations == []


def test_a_leg_that_rings_when_its_call_is_long_over_is_found_by_a_resync(make_site: Callable[..., Site]) -> None:
    site = over_too_soon(make_site, answer_after_seconds=60.0)
    site.world.run(6.0)
    site.handle("resync_connection", connection=CONNECTION, full=True, reason="test")
    site.world.run(7.0)
    assert not site.asterisks["pbx1"].channels
    site.invariants.check_end()
    assert site.world.violations == []


def test_a_call_that_is_refused_before_anybody_has_dialled_has_ended_at_once(make_site: Callable[..., Site]) -> None:
    site = make_site(refuses=1.0)
    site.open()
    site.world.run(0.3)
    site.parties.request_call(site.tenants[0], "100")
    site.world.run(0.5)
    call = only(site)
    assert (call.state, call.outcome) == (State.ENDED, Outcome.REFUSED)
    site.invariants.check_end()
    assert site.world.violations == []


def test_a_call_that_is_refused_when_it_was_dialled_before_is_waited_for(site: Site) -> None:
    site.world.script("POST /channels", Fault.UNSENT)
    site.parties.request_call(site.tenants[0], "100")
    site.world.run(1.0)
    # Whoever asked knows no more than that nobody answered.
    site.quota.refuses = 1.0
    site.world.run(8.0)
    call = only(site)
    assert (call.state, call.outcome) == (State.ENDING, Outcome.REFUSED)
    site.world.run(35.0)
    assert only(site).state is State.ENDED
    assert site.world.violations == []


def test_a_call_asked_for_twice_is_placed_once(site: Site) -> None:
    request = site.parties.request_call(site.tenants[0], "100")
    site.broker.put(messages.of_request(request))
    site.world.run(2.0)
    site.broker.put(messages.of_request(request))
    site.world.run(3.0)
    assert states(site) == [State.CONNECTED]
    assert len(site.runs.rows) == 1
    ends_well(site)


def test_a_run_of_another_tenant_is_refused_and_left_alone(make_site: Callable[..., Site]) -> None:
    site = make_site(asterisks=("pbx1", "pbx2"))
    site.open()
    site.world.run(0.3)
    run = site.runs.begin(site.tenants[0].organization_id)
    site.parties.platform_calls(site.tenants[1], "100", run=run)
    site.world.run(2.0)
    assert (only(site).state, only(site).outcome) == (State.ENDED, Outcome.REFUSED)
    assert (run.is_completed, run.channel_id) == (False, None)
    site.parties.platform_calls(site.tenants[0], "100", run=run)
    site.world.run(4.0)
    assert states(site)[-1] is State.CONNECTED
    ends_well(site)
    assert run.is_completed


def test_a_sweep_does_not_overrule_a_worker_that_took_the_call_up_meanwhile(site: Site) -> None:
    site.workers.always_alone = True
    site.world.script("enqueue create_run", Fault.ENQUEUE_FAILED)
    site.world.script("overdue", Fault.FROZEN_AFTER)
    site.parties.call_in(site.tenants[0])
    site.world.run(4.1)
    call_id = only(site).call_id
    writer = site.adapters.writer
    site.do("worker", lambda: site.store.claim(call_id, writer.claim_request(Step.RUNS, writer.new_owner())))
    site.world.run(4.9)
    assert (only(site).state, only(site).step_retries) == (State.ADMITTED, 0)
    site.world.run(20.0)
    assert states(site) == [State.CONNECTED]
    ends_well(site)


def test_a_leg_that_still_rings_is_not_adopted(make_site: Callable[..., Site]) -> None:
    """The app hears of it, and lists it."""
    site = make_site(answer_after_seconds=5.0)
    site.open()
    site.world.run(0.3)
    site.parties.platform_calls(site.tenants[0], "100")
    site.world.run(1.0)
    site.ask_resyncs("test", full=True)
    site.world.run(5.0)
    assert states(site) == []
    site.world.run(6.0)
    assert states(site) == [State.CONNECTED]
    ends_well(site)


def test_an_order_that_cannot_be_enqueued_is_given_again(site: Site) -> None:
    site.workers.always_alone = True
    site.world.script("enqueue create_run", Fault.ENQUEUE_FAILED)
    site.parties.call_in(site.tenants[0])
    site.world.run(10.0)
    assert states(site) == [State.CONNECTED]
    ends_well(site)
