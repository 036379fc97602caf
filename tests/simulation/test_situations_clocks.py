"""The clock of an Asterisk is set while calls go on: its stamps end no call, and keep none from ending."""

from __future__ import annotations

import pytest

from shared.asterisk.events import Event, EventType
from shared.call.states import Outcome, State
from simulator import events as simulator_events
from tests.simulation.callers import Caller
from tests.simulation.environment import Environment
from tests.simulation.situations import deliver, only, states

AHEAD = pytest.mark.parametrize("ahead_seconds", [-3600.0, -2.0, 2.0, 3600.0])


@pytest.fixture
def caller(environment: Environment) -> Caller:
    """A caller with an agent, a second after the call began."""
    made = environment.callers.call_in(environment.tenants[0])
    environment.world.run(1.3)
    assert states(environment) == [State.CONNECTED]
    return made


@AHEAD
def test_a_hang_up_ends_the_call_at_once_with_its_cause(
    environment: Environment, caller: Caller, ahead_seconds: float
) -> None:
    simulator_events.ahead_seconds = ahead_seconds
    caller.tenant.asterisk.caller_hangs_up(caller.channel)
    environment.world.run(2.3)
    assert states(environment) == [State.ENDED]
    assert (only(environment).outcome, only(environment).hangup_cause) == (Outcome.COMPLETED, 16)


@AHEAD
def test_a_caller_who_leaves_for_the_dialplan_ends_the_call_at_once(
    environment: Environment, caller: Caller, ahead_seconds: float
) -> None:
    simulator_events.ahead_seconds = ahead_seconds
    caller.tenant.asterisk.caller_leaves_stasis(caller.channel)
    environment.world.run(2.3)
    assert states(environment) == [State.ENDED]
    assert caller.tenant.asterisk.is_alive(caller.channel)


@AHEAD
@pytest.mark.parametrize("late", [None, EventType.STASIS_END, EventType.STASIS_START])
def test_a_caller_who_comes_back_gets_an_agent_again(
    environment: Environment, caller: Caller, ahead_seconds: float, late: EventType | None
) -> None:
    """Whichever of the two events comes last."""
    kept: list[Event] = []

    def passes(event: Event) -> bool:
        if event.type is late and event.leg.id == caller.channel.id:
            kept.append(event)
        return event not in kept

    environment.listeners[0].passes = passes
    simulator_events.ahead_seconds = ahead_seconds
    environment.callers.come_back(caller, 0.1)
    environment.world.run(1.7)
    for event in kept:
        deliver(environment, event)
    environment.world.run(3.5)
    assert states(environment) == [State.ENDED, State.CONNECTED]
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    assert environment.world.violations == []


@AHEAD
def test_events_that_are_repeated_after_the_clock_was_set_end_no_call(
    environment: Environment, ahead_seconds: float
) -> None:
    """Of the entry before: both its events come once more, when the channel's second call is connected."""
    seen: list[Event] = []

    def passes(event: Event) -> bool:
        seen.append(event)
        return True

    environment.listeners[0].passes = passes
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(1.3)
    simulator_events.ahead_seconds = ahead_seconds
    environment.callers.come_back(caller, 0.1)
    environment.world.run(3.0)
    assert states(environment) == [State.ENDED, State.CONNECTED]
    of_caller = [event for event in seen if event.channel is not None and event.channel.id == caller.channel.id]
    entered, left = (
        next(event for event in of_caller if event.type is kind)
        for kind in (EventType.STASIS_START, EventType.STASIS_END)
    )
    deliver(environment, entered)
    deliver(environment, left)
    environment.world.run(5.0)
    assert states(environment) == [State.ENDED, State.CONNECTED]
    assert caller.tenant.asterisk.is_with_agent(caller.channel)
    assert environment.world.violations == []
