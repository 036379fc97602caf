"""Situations of transfers: the platform swaps the media leg for a destination that it has originated."""

from __future__ import annotations

import pytest

from shared.asterisk import events
from shared.call.states import State
from simulator import channels
from tests.simulation.callers import Caller
from tests.simulation.environment import Environment
from tests.simulation.situations import connect, ends_well, only, states, without


def transfer(environment: Environment) -> tuple[Caller, channels.Channel]:
    """Let the platform transfer a caller, and both talk."""
    caller = connect(environment)
    channel_id = environment.callers.transfer(caller, "100")
    environment.world.run(environment.world.now + 1.0)
    destination = environment.asterisks["pbx1"].channels[channel_id]
    assert environment.asterisks["pbx1"].is_with_agent(destination)
    return caller, destination


def test_a_transferred_call_goes_on_and_ends_with_its_caller(environment: Environment) -> None:
    caller, destination = transfer(environment)
    assert (states(environment), only(environment).destination_id) == ([State.CONNECTED], destination.id)
    environment.world.run(environment.world.now + 90.0)
    assert states(environment) == [State.CONNECTED]
    environment.asterisks["pbx1"].caller_hangs_up(caller.channel)
    environment.world.run(environment.world.now + 1.0)
    assert states(environment) == [State.ENDED]
    assert not environment.asterisks["pbx1"].is_alive(destination)
    ends_well(environment)


def test_a_transferred_call_ends_with_its_destination(environment: Environment) -> None:
    caller, destination = transfer(environment)
    environment.asterisks["pbx1"].caller_hangs_up(destination)
    environment.world.run(environment.world.now + 1.0)
    assert states(environment) == [State.ENDED]
    assert not environment.asterisks["pbx1"].is_alive(caller.channel)
    ends_well(environment)


@pytest.mark.parametrize("number", ["busy", "ring", "reject"])
def test_a_transfer_that_is_not_answered_leaves_the_call_with_its_agent(environment: Environment, number: str) -> None:
    caller = connect(environment)
    environment.callers.transfer(caller, number)
    environment.world.run(environment.world.now + 30.0)
    assert states(environment) == [State.CONNECTED]
    assert only(environment).destination_id is None
    ends_well(environment)


def test_a_swap_that_no_event_tells_of_is_found_and_spared_by_a_resync(environment: Environment) -> None:
    environment.listeners[0].passes = without(events.EventType.STASIS_END, events.EventType.CHANNEL_DESTROYED)
    caller, destination = transfer(environment)
    assert only(environment).destination_id is None
    environment.world.run(environment.world.now + 4.0)
    environment.ask_resyncs("a test", full=True)
    environment.world.run(environment.world.now + 1.0)
    assert (states(environment), only(environment).destination_id) == ([State.CONNECTED], destination.id)
    environment.asterisks["pbx1"].caller_hangs_up(destination)
    environment.world.run(environment.world.now + 4.0)
    environment.ask_resyncs("a test", full=True)
    environment.world.run(environment.world.now + 2.0)
    assert states(environment) == [State.ENDED]
    assert not environment.asterisks["pbx1"].is_alive(caller.channel)
    ends_well(environment)
