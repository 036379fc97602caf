"""A standby without the last commits takes over: what it has forgotten is found on the Asterisk, or done once more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.call.states import State
from tests.simulation.asterisks import NAMING
from tests.simulation.environment import Environment
from tests.simulation.situations import connect, ends_well, only, states


@pytest.fixture
def stored_step_by_step(make_environment: Callable[..., Environment]) -> Environment:
    """An environment in which each step of a call is a commit of its own."""
    environment = make_environment(is_quota_remote=True)
    environment.workers.always_alone = True
    environment.awaited_legs.capacity = 0
    environment.open()
    environment.world.run(0.3)
    return environment


@pytest.mark.parametrize("lost", range(1, 13))
def test_a_call_goes_on_whatever_a_fail_over_has_forgotten_of_it(stored_step_by_step: Environment, lost: int) -> None:
    """It has an agent, the old one or another; or its caller was hung up, because the agent serves its run once."""
    environment = stored_step_by_step
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(2.0)
    asterisk, call = caller.tenant.asterisk, only(environment)
    assert call.state is State.CONNECTED
    environment.fail_over(call, min(lost, environment.store.log.number_of(call.call_id)))
    environment.world.run(45.0)
    assert environment.world.violations == []
    assert asterisk.is_with_agent(caller.channel) is asterisk.is_alive(caller.channel)
    environment.invariants.check_recovered([], is_faultless=False)
    ends_well(environment)


def test_a_caller_whose_call_is_forgotten_hears_its_agent_until_it_has_another(environment: Environment) -> None:
    caller = connect(environment)
    forgotten = only(environment)
    environment.fail_over(forgotten, environment.store.log.number_of(forgotten.call_id))
    assert states(environment) == []
    alone = []

    def look() -> None:
        if not caller.tenant.asterisk.is_with_agent(caller.channel):
            alone.append(environment.world.now)
        environment.world.after(0.05, look)

    look()
    environment.world.run(16.0)
    assert only(environment).call_id != forgotten.call_id
    assert states(environment) == [State.CONNECTED]
    assert len(alone) <= 1, "in silence for longer than it takes to change the bridge"
    assert NAMING.media_id(forgotten) not in caller.tenant.asterisk.channels
    ends_well(environment)


def test_a_worker_that_knows_a_forgotten_attempt_joins_no_one_with_it(stored_step_by_step: Environment) -> None:
    """The row has another attempt of its number by then: the leg that the worker knows of is removed."""
    environment = stored_step_by_step
    caller = environment.callers.call_in(environment.tenants[0])
    while not environment.store.rows or only(environment).attempt == 0:
        environment.world.run(environment.world.now + 0.001)
    lost = only(environment)
    environment.fail_over(lost, environment.store.log.number_of(lost.call_id) - 1)
    environment.world.run(45.0)
    call = only(environment)
    assert (call.state, call.attempt) == (State.CONNECTED, 1)
    assert call.nonce != lost.nonce
    assert set(caller.tenant.asterisk.bridges) == {NAMING.bridge_id(call)}
    ends_well(environment)
