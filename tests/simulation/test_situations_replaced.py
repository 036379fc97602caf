"""Situations of legs whose place another channel takes: a transfer in the bridge, a masquerade before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shared.asterisk import events
from shared.asterisk.events import EventType
from shared.call.calls import Call
from shared.call.states import State
from simulator import channels
from tests.simulation.asterisks import NAMING, AgentPlan, Asterisk
from tests.simulation.callers import Caller
from tests.simulation.environment import Environment
from tests.simulation.faults import Fault
from tests.simulation.situations import CONNECTION, connect, deliver, ends_well, only, states, without


def pbx(environment: Environment) -> Asterisk:
    return environment.asterisks["pbx1"]


def replace_leg(environment: Environment, caller: Caller, *, is_told_late: bool = False) -> channels.Channel:
    """Let another channel take the place of a caller's leg, which is the caller from then on."""
    successor = pbx(environment).leg_is_replaced(caller.channel, is_told_late=is_told_late)
    assert successor is not None
    caller.channel = successor
    return successor


def pass_time(environment: Environment, seconds: float) -> None:
    environment.world.run(environment.world.now + seconds)


def follows(environment: Environment, before: Call, successor: channels.Channel) -> None:
    """Check that the one call goes on with this leg, the same agent and the same run."""
    call = only(environment)
    assert (call.state, call.leg_id, call.workflow_run_id) == (State.CONNECTED, successor.id, before.workflow_run_id)
    bridge = pbx(environment).bridges[NAMING.bridge_id(before)]
    assert set(bridge.channel_ids) == {successor.id, NAMING.media_id(before)}
    assert len(environment.runs.rows) == 1


def test_a_call_follows_its_leg_and_ends_with_it(environment: Environment) -> None:
    caller = connect(environment)
    before, old = only(environment), caller.channel
    successor = replace_leg(environment, caller)
    pass_time(environment, 3.0)
    follows(environment, before, successor)
    assert not pbx(environment).is_alive(old), "who has transferred the call is still up in silence"
    # Some resyncs see it.
    pass_time(environment, 60.0)
    follows(environment, before, successor)
    pbx(environment).caller_hangs_up(successor)
    pass_time(environment, 1.0)
    assert states(environment) == [State.ENDED]
    ends_well(environment)


def test_a_replacement_that_no_event_tells_of_is_found_by_a_resync(environment: Environment) -> None:
    caller = connect(environment)
    before = only(environment)
    environment.listeners[0].passes = without(EventType.STASIS_START, EventType.STASIS_END)
    successor = replace_leg(environment, caller)
    pass_time(environment, 4.0)
    assert only(environment).leg_id == before.leg_id
    environment.ask_resyncs("a test", full=True)
    pass_time(environment, 1.0)
    follows(environment, before, successor)
    ends_well(environment)


def test_the_end_of_a_replaced_leg_may_be_handled_before_its_replacement(environment: Environment) -> None:
    """As when another listener has the socket by then."""
    caller = connect(environment)
    before, old = only(environment), caller.channel
    kept: list[events.Event] = []
    environment.listeners[0].passes = without(EventType.STASIS_START, EventType.STASIS_END, kept_in=kept)
    successor = replace_leg(environment, caller)
    pbx(environment).caller_hangs_up(old)
    start, end = kept
    assert (start.replaces, end.leg.id, end.cause) == (old.id, old.id, None)
    environment.handle("leg_ended", connection=CONNECTION, event=end)
    pass_time(environment, 0.5)
    follows(environment, before, successor)
    environment.handle("caller_entered", connection=CONNECTION, at_ms=int(environment.world.wall() * 1000), event=start)
    environment.handle("leg_ended", connection=CONNECTION, event=replace(end, cause=16))
    pass_time(environment, 0.5)
    follows(environment, before, successor)
    ends_well(environment)


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
@pytest.mark.parametrize("operation", ["save LegReplaced", "note media"])
def test_a_worker_that_dies_while_a_leg_is_replaced_is_followed_by_another(
    environment: Environment, operation: str, fault: Fault
) -> None:
    caller = connect(environment)
    before = only(environment)
    environment.world.script(operation, fault)
    successor = replace_leg(environment, caller)
    pass_time(environment, 12.0)
    follows(environment, before, successor)
    ends_well(environment)


@pytest.mark.parametrize("seconds", [0.0005, 0.004, 0.006, 0.5, 2.2])
def test_a_caller_who_is_handed_over_before_the_agent_is_on_the_line_gets_the_agent(
    make_environment: Callable[..., Environment], seconds: float
) -> None:
    """A masquerade: at each moment of the set-up."""
    environment = make_environment(plan_agent=lambda _leg: AgentPlan(accepts_after_seconds=1.5))
    environment.open()
    pass_time(environment, 0.3)
    caller = environment.callers.call_in(environment.tenants[0])
    pass_time(environment, seconds)
    successor = replace_leg(environment, caller)
    pass_time(environment, 6.0)
    assert pbx(environment).is_with_agent(successor)
    assert (states(environment), only(environment).leg_id) == ([State.CONNECTED], successor.id)
    assert len(environment.runs.rows) == 1
    ends_well(environment)


@pytest.mark.parametrize("is_in_order", [True, False])
@pytest.mark.parametrize("seconds_between", [0.0, 0.1])
def test_a_caller_who_was_replaced_before_late_events_are_handled_gets_an_agent(
    environment: Environment, seconds_between: float, *, is_in_order: bool
) -> None:
    """The event of the one before finds that leg gone: the caller has not hung up, and is another channel."""
    kept: list[events.Event] = []
    environment.listeners[0].passes = without(EventType.STASIS_START, EventType.STASIS_END, kept_in=kept)
    caller, at_ms = environment.callers.call_in(environment.tenants[0]), environment.broker.redis_ms() or 0
    pass_time(environment, 0.5)
    number = caller.channel.extension
    successor = replace_leg(environment, caller)
    pass_time(environment, 2.6)
    assert states(environment) == []
    environment.listeners[0].passes = lambda _event: True
    starts = [event for event in kept if event.type is EventType.STASIS_START]
    for event in starts if is_in_order else reversed(starts):
        deliver(environment, event, at_ms=at_ms)
        pass_time(environment, seconds_between)
    pass_time(environment, 2.0)
    assert states(environment) == [State.ENDED, State.CONNECTED]
    assert pbx(environment).is_with_agent(successor)
    (run,) = environment.runs.rows.values()
    assert [row.call.called_number for row in environment.store.rows.values()] == [number, number]
    assert [row.call.workflow_run_id for row in environment.store.rows.values()] == [None, run.run_id]
    ends_well(environment)


def test_a_channel_that_comes_once_its_call_is_over_is_hung_up(environment: Environment) -> None:
    caller = connect(environment)
    successor = replace_leg(environment, caller, is_told_late=True)
    pass_time(environment, 1.0)
    assert states(environment) == [State.ENDED]
    assert not pbx(environment).is_alive(successor)
    assert len(environment.runs.rows) == 1
    ends_well(environment)
