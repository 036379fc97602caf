"""Workers that die, freeze, or count as dead and live: their calls go on, and what they still do is harmless."""

from __future__ import annotations

from datetime import timedelta

import pytest

from shared import messages
from shared.call.states import State
from tests.simulation.environment import Environment
from tests.simulation.faults import Fault
from tests.simulation.situations import connect, ends_well, only, states

#: What is hit, and whether an outbound call is needed for it: each step, in the middle and at its end.
STEPS = (
    "POST /channels/externalMedia",
    "answer",
    "addChannel",
    "save LegsCreated, MediaReady, Joined",
    "enqueue create_run",
)
#: From the death until the call has gone on: as docs/failure-modes.md says.
SECONDS = 5.0
#: A request of an attempt whose worker died may take effect for so long.
UNDOUBTED_SECONDS = 15.0


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
@pytest.mark.parametrize("step", STEPS)
def test_a_caller_whose_worker_is_killed_has_an_agent_soon(environment: Environment, step: str, fault: Fault) -> None:
    environment.workers.always_alone = step == "enqueue create_run"
    environment.world.script(step, fault)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(environment.world.now + 0.5 + SECONDS)
    assert states(environment) == [State.CONNECTED]
    is_in_doubt = step == "POST /channels/externalMedia"
    ends_well(environment, UNDOUBTED_SECONDS if is_in_doubt else 3.0)


@pytest.mark.parametrize("kills", [1, 2])
def test_a_teardown_whose_worker_is_killed_goes_on_soon(environment: Environment, kills: int) -> None:
    caller = connect(environment)
    for _ in range(kills):
        environment.world.script(
            f"DELETE /channels/{environment.invariants.own(only(environment))[0]}", Fault.KILLED_AFTER
        )
    caller.tenant.asterisk.caller_hangs_up(caller.channel)
    environment.world.run(environment.world.now + kills * SECONDS)
    assert states(environment) == [State.ENDED]
    ends_well(environment, UNDOUBTED_SECONDS)


def test_a_call_that_meets_two_deaths_has_an_agent(environment: Environment) -> None:
    """The outcome of two attempts is unknown, and Asterisk is not to blame."""
    for _ in range(3):
        environment.world.script("POST /channels/externalMedia", Fault.KILLED_BEFORE)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(environment.world.now + 0.5 + 3 * SECONDS)
    call = only(environment)
    assert (call.state, call.attempt) == (State.CONNECTED, 4)
    ends_well(environment, UNDOUBTED_SECONDS)


@pytest.mark.parametrize("reason", ["test", messages.RESYNC_CLOCK])
def test_a_resync_whose_worker_is_killed_is_made_again_soon(environment: Environment, reason: str) -> None:
    """It held the connection's lease, and its message may be delivered again before that ends."""
    environment.listeners[0].passes = lambda _event: False
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(environment.world.now + 0.4)
    environment.listeners[0].passes = lambda _event: True
    environment.world.script(f"GET /channels/{caller.channel.id}", Fault.KILLED_BEFORE)
    environment.ask_resyncs(reason, full=True)
    environment.world.run(environment.world.now + 0.5 + SECONDS)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment, UNDOUBTED_SECONDS)


@pytest.mark.parametrize("seconds", [3.0, 6.0])
def test_a_frozen_worker_begins_no_request_once_it_counts_as_dead(environment: Environment, seconds: float) -> None:
    """It wakes up within the time of its claim, between its look at the bridge and the join."""
    environment.awaited_legs.capacity = 0
    environment.world.script("GET /bridges", Fault.FROZEN_AFTER)
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(environment.world.now + 0.2)
    claimed = environment.store.claims_of_others([])
    assert [each.call.state for each in claimed] == [State.JOINING]
    (frozen,) = (worker for worker in environment.workers.processes if worker.name == claimed[0].worker)
    frozen.freeze(environment.world.now, seconds)
    environment.world.run(environment.world.now + seconds - 0.1)
    is_dead = seconds > SECONDS
    assert states(environment) == [State.CONNECTED if is_dead else State.JOINING]
    environment.world.run(environment.world.now + SECONDS)
    assert states(environment) == [State.CONNECTED]
    assert caller.channel.gaps == 0
    assert environment.store.broken_claims == int(is_dead)
    ends_well(environment, UNDOUBTED_SECONDS)


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_that_counts_as_dead_and_lives_on_does_no_harm(environment: Environment, step: str) -> None:
    environment.workers.always_alone = step == "enqueue create_run"
    environment.world.script(step, Fault.FROZEN_BEFORE)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(environment.world.now + 0.35)
    for worker in environment.workers.processes:
        environment.workers.declare_dead(worker)
    environment.world.run(environment.world.now + 60.0)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment, UNDOUBTED_SECONDS)


def test_while_redis_is_away_none_counts_as_dead(environment: Environment) -> None:
    environment.world.script("POST /channels/externalMedia", Fault.KILLED_BEFORE)
    environment.callers.call_in(environment.tenants[0])
    environment.world.run(environment.world.now + 0.3)
    environment.broker.is_away = True
    environment.world.run(environment.world.now + 6.0)
    (row,) = environment.store.rows.values()
    assert row.claim_until is not None
    assert row.claim_until > environment.world.moment() + timedelta(seconds=1)
    environment.broker.is_away = False
    environment.world.run(environment.world.now + 6.0 + SECONDS)
    assert states(environment) == [State.CONNECTED]
    ends_well(environment, UNDOUBTED_SECONDS)
