"""The one table of steps, and what derives from it: states, commands, queues, actors."""

from __future__ import annotations

from typing import Any, cast

import pytest
from dramatiq.brokers import stub

from shared import messages
from shared.broker import retries
from shared.call import commands, states, steps
from shared.call.commands import Command
from shared.call.states import State
from shared.call.steps import STEPS, Step
from tests.support.calls import CALLS
from workers import actors, wiring

#: The states in which a call waits for something else than a step.
WAITING = {State.RINGING, State.CONNECTED, State.ENDED}


class Anything:
    """Stands for every adapter: wiring only passes them on."""

    def __getattr__(self, name: str) -> Anything:
        return self


def all_commands() -> set[type[Command]]:
    """Return the commands that can be given."""
    kinds = {kind for kind in vars(commands).values() if isinstance(kind, type) and issubclass(kind, Command)}
    return kinds - {Command, commands.AttemptCommand}


def test_each_step_has_one_state_and_each_state_with_work_one_step() -> None:
    assert set(STEPS) == set(Step)
    in_work = [row.state for row in STEPS.values()]
    assert len(set(in_work)) == len(in_work)
    assert set(State) - set(in_work) == WAITING
    assert {State.ENDING, State.ENDED}.isdisjoint(states.LIVE)


@pytest.mark.parametrize("state", State)
def test_a_state_leads_to_its_step_and_back(state: State) -> None:
    step = steps.step_of(state)
    if step is None:
        assert state in WAITING
    else:
        assert STEPS[step].state is state
        assert steps.state_of(STEPS[step].command.of(CALLS[state])) is state


def test_every_command_has_an_actor_of_its_own() -> None:
    assert set(steps.ACTORS) == all_commands()
    names = [actor for actor, _ in steps.ACTORS.values()]
    assert len(set(names)) == len(names)


def test_a_command_that_starts_no_step_is_due_in_any_state() -> None:
    starting = {row.command for row in STEPS.values()}
    for kind in all_commands() - starting:
        assert steps.state_of(kind.of(CALLS[State.CONNECTED])) is None


def test_queues_are_those_of_the_steps_in_the_order_of_need() -> None:
    assert messages.QUEUES == ("bridge", "media", "runs", "admission", "originate", "teardown", "resync", "apps")
    assert set(messages.ACTORS.values()) == set(messages.QUEUES)


def test_an_actor_works_on_the_queue_of_the_step_it_is_named_for() -> None:
    for step, row in STEPS.items():
        assert messages.ACTORS[row.actor] == step


def test_every_actor_has_a_handler_and_a_reader() -> None:
    handlers = wiring.handlers(cast(Any, Anything()), serves=frozenset(Step), tag=str)
    assert set(handlers) == set(messages.ACTORS)
    broker = stub.StubBroker(middleware=[retries.Retries()])
    actors.declare(broker, handlers)
    assert broker.get_declared_actors() == set(messages.ACTORS)


def test_every_step_is_wired_to_what_carries_it_out() -> None:
    assert set(wiring._steps(cast(Any, Anything()), str)) == set(Step)
