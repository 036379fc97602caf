"""Situations of transfers: the platform swaps the media leg for a destination that it has originated."""

from __future__ import annotations

import pytest

from shared.asterisk import events
from shared.call.states import State
from simulator import channels
from tests.simulation.callers import Caller
from tests.simulation.environment import Environment
from tests.simulation.faults import Fault
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


def test_a_destination_that_answers_when_its_caller_has_left_is_hung_up(environment: Environment) -> None:
    caller = connect(environment)
    channel_id = environment.callers.transfer(caller, "100")
    # It is dialled, and nothing has been heard of it yet.
    environment.world.run(environment.world.now + 0.001)
    environment.asterisks["pbx1"].caller_hangs_up(caller.channel)
    environment.world.run(environment.world.now + 5.0)
    assert states(environment) == [State.ENDED]
    assert channel_id not in environment.asterisks["pbx1"].channels
    ends_well(environment)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_an_api_that_dies_in_a_swap_leaves_neither_party_alone(environment: Environment, steps: int) -> None:
    caller = connect(environment)
    channel_id = environment.callers.transfer(caller, "100", api_dies_after=steps)
    environment.world.run(environment.world.now + 6.0)
    asterisk = environment.asterisks["pbx1"]
    if steps == 0:
        assert states(environment) == [State.ENDED]
        assert not {caller.channel.id, channel_id} & asterisk.channels.keys()
    else:
        assert states(environment) == [State.CONNECTED]
        assert asterisk.is_with_agent(asterisk.channels[channel_id])
    ends_well(environment)


def test_a_swap_that_is_found_between_two_looks_is_spared(environment: Environment) -> None:
    """The look that tells of the answer asks for the leg's call, stalls, and asks for its caller's."""
    caller = connect(environment)
    world, asterisk = environment.world, environment.asterisks["pbx1"]
    # A resync judges a call that was not changed lately.
    world.run(world.now + 3.0)
    environment.listeners[0].passes = without(events.EventType.STASIS_END, events.EventType.CHANNEL_DESTROYED)
    channel_id = environment.callers.transfer(caller, "100", forgotten_after_seconds=60.0)
    while not asterisk.channels.get(channel_id) or not asterisk.is_with_agent(asterisk.channels[channel_id]):
        world.run(world.now + 0.01)
    world.script("read a transfer", Fault.FROZEN_BEFORE)
    world.run(world.now + 0.15)
    environment.ask_resyncs("a test", full=True)
    world.run(world.now + 45.0)
    assert (states(environment), only(environment).destination_id) == ([State.CONNECTED], channel_id)
    assert asterisk.is_with_agent(caller.channel)
    ends_well(environment)


def test_a_destination_of_which_the_platform_cannot_be_told_is_hung_up(environment: Environment) -> None:
    environment.platform_redis.is_away = True
    caller = connect(environment)
    channel_id = environment.callers.transfer(caller, "100")
    environment.world.run(environment.world.now + 20.0)
    assert channel_id not in environment.asterisks["pbx1"].channels
    assert environment.asterisks["pbx1"].is_with_agent(caller.channel)
    ends_well(environment)


def test_a_destination_whose_answer_no_listener_heard_is_found_by_a_resync(environment: Environment) -> None:
    caller = connect(environment)
    environment.listeners[0].passes = without(events.EventType.STASIS_START)
    channel_id = environment.callers.transfer(caller, "100")
    environment.world.run(environment.world.now + 3.0)
    environment.ask_resyncs("a test", full=True)
    environment.world.run(environment.world.now + 2.0)
    assert only(environment).destination_id == channel_id
    ends_well(environment)
