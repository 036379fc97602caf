"""Servers that answer wrongly, a message that is refused, another controller's calls."""

from __future__ import annotations

from shared.asterisk import events
from shared.call.states import State
from simulator import bridges
from tests.simulation.environment import Environment
from tests.simulation.faults import Fault
from tests.simulation.situations import connect, ends_well, states, without


def test_a_module_that_is_not_loaded_ends_no_call(environment: Environment) -> None:
    """A 404 that does not name the resource proves nothing."""
    connect(environment)
    environment.world.run(5.0)
    for _ in range(3):
        environment.world.script("GET", Fault.MISANSWERED)
    environment.ask_resyncs("test", full=False)
    environment.world.run(8.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment)


def test_a_command_that_cannot_be_enqueued_is_sent_again(environment: Environment) -> None:
    environment.workers.always_alone = True
    environment.world.script("enqueue create_run", Fault.ENQUEUE_FAILED)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(10.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment)


def test_a_caller_in_another_controller_s_bridge_is_left_alone(environment: Environment) -> None:
    environment.listeners[0].passes = without(events.EventType.STASIS_START)
    asterisk = environment.asterisks["pbx1"]
    caller = environment.callers.call_in(environment.tenants[0])
    bridge = bridges.Bridge(id="other")
    asterisk.create_bridge(bridge)
    asterisk.add_to_bridge(bridge, [caller.channel.id])
    environment.ask_resyncs("test", full=True)
    environment.world.run(20.0)
    assert states(environment) == []
    assert bridge.channel_ids == [caller.channel.id]
