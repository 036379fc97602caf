"""Situations of a quota that is asked about a run, once there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.call.states import Outcome, State
from tests.simulation.environment import Environment
from tests.simulation.faults import Fault
from tests.simulation.situations import connect, ends_well, only, states


@pytest.fixture
def asked(make_environment: Callable[..., Environment]) -> Environment:
    """Return an environment whose quota is asked about runs, with its event socket connected."""
    made = make_environment(is_quota_about_runs=True)
    made.open()
    made.world.run(0.3)
    return made


def test_a_caller_is_served_once_the_run_is_authorized(asked: Environment) -> None:
    connect(asked)
    assert asked.quota.authorized == {only(asked).workflow_run_id}
    assert list(asked.runs.rows) == [only(asked).workflow_run_id]
    ends_well(asked)


def test_a_caller_whose_run_is_not_authorized_gets_no_agent_and_the_run_is_ended(asked: Environment) -> None:
    asked.quota.refuses_runs = True
    caller = asked.callers.call_in(asked.tenants[0])
    asked.world.run(asked.world.now + 1.0)
    call = only(asked)
    assert (call.state, call.outcome, call.attempt) == (State.ENDED, Outcome.REFUSED, 0)
    assert not caller.tenant.asterisk.is_alive(caller.channel)
    (run,) = asked.runs.rows.values()
    assert (run.run_id, run.is_completed) == (call.workflow_run_id, True)
    ends_well(asked)


@pytest.mark.parametrize("is_alone", [False, True])
@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER, Fault.FROZEN_BEFORE])
def test_a_worker_that_dies_while_it_asks_leaves_one_run_and_another_worker_asks_again(
    asked: Environment, fault: Fault, *, is_alone: bool
) -> None:
    """Also where each step has workers of its own."""
    asked.workers.always_alone = is_alone
    asked.world.script("authorize", fault)
    asked.callers.call_in(asked.tenants[0])
    asked.world.run(asked.world.now + 30.0)
    assert states(asked) == [State.CONNECTED]
    assert asked.quota.authorized == set(asked.runs.rows) == {only(asked).workflow_run_id}
    ends_well(asked)
