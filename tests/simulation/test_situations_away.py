"""An Asterisk that is away for days: its calls end, and what is left goes when it is back. A pipeline that was away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shared.asterisk.events import Event, EventType
from shared.call.states import ENDING_SLOT_SECONDS, Outcome, State
from tests.simulation.asterisks import NAMING
from tests.simulation.environment import LIMITS, Environment
from tests.simulation.situations import connect, deliver, ends_well, only, states, without

HOUR = 3600.0
DAY = LIMITS.teardown_seconds / HOUR
#: More than a call's set-up and a teardown that is tried for a day write.
MOST_ROWS = 100


def end_while_away(environment: Environment, *, caller_stays: bool, hours: float = DAY) -> None:
    """Connect a call, end it while its Asterisk is away, and let the time pass for which a teardown is tried."""
    caller = connect(environment)
    asterisk, world = environment.asterisks["pbx1"], environment.world
    asterisk.is_away = True
    if caller_stays:
        asterisk.agent_hangs_up(asterisk.channels[NAMING.media_id(only(environment))])
    else:
        asterisk.caller_hangs_up(caller.channel)
    world.run(world.now + (hours - 1) * HOUR)
    assert only(environment).state is State.ENDING
    assert all(run.is_completed for run in environment.runs.rows.values())
    assert environment.store.slots_used_now(only(environment).organization_id) == 0
    world.run(world.now + 1.1 * HOUR)


@pytest.mark.parametrize(("caller_stays", "hours"), [(True, 3.0), (False, DAY)])
def test_a_call_whose_asterisk_stays_away_ends_unverified_and_is_cleaned_up_when_it_is_back(
    make_environment: Callable[..., Environment], hours: float, *, caller_stays: bool
) -> None:
    environment = make_environment(limits=replace(LIMITS, teardown_seconds=hours * HOUR))
    environment.open()
    environment.world.run(0.3)
    end_while_away(environment, caller_stays=caller_stays, hours=hours)
    over, world = only(environment), environment.world
    assert (over.state, over.unverified, over.outcome) == (State.ENDED, True, Outcome.COMPLETED)
    assert environment.store.timeline_rows[over.call_id] < MOST_ROWS
    assert environment.asterisks["pbx1"].created_by_product(), "legs and bridge are still there"
    environment.asterisks["pbx1"].is_away = False
    world.run(world.now + 120.0)
    assert environment.asterisks["pbx1"].created_by_product() == []
    assert environment.asterisks["pbx1"].callers_in("app1") == []
    over = only(environment)
    assert (over.state, over.unverified) == (State.ENDED, not caller_stays)
    environment.invariants.check_end()
    assert world.violations == []


def test_an_agent_that_hangs_up_while_asterisk_is_away_ends_the_call(environment: Environment) -> None:
    """Asterisk cannot say whether the caller was transferred, and the run says that it was not."""
    connect(environment)
    asterisk, world = environment.asterisks["pbx1"], environment.world
    asterisk.is_away = True
    asterisk.agent_hangs_up(asterisk.channels[NAMING.media_id(only(environment))])
    world.run(world.now + 10.0)
    assert (only(environment).state, only(environment).outcome) == (State.ENDING, Outcome.COMPLETED)
    assert all(run.is_completed for run in environment.runs.rows.values())
    world.run(world.now + ENDING_SLOT_SECONDS)
    assert environment.store.slots_used_now(only(environment).organization_id) == 0


@pytest.mark.parametrize("number", ["100", "busy"])
def test_a_caller_who_is_transferred_while_asterisk_is_away_is_judged_when_it_is_back(
    environment: Environment, number: str
) -> None:
    caller = connect(environment)
    asterisk, world = environment.asterisks["pbx1"], environment.world
    asterisk.is_away = True
    destination = environment.callers.transfer(caller, number)
    world.run(world.now + 1.0)
    if number == "busy":
        environment.runs.transferred.add(caller.channel.id)
        asterisk.agent_hangs_up(asterisk.channels[NAMING.media_id(only(environment))])
    world.run(world.now + 60.0)
    assert (only(environment).state, only(environment).destination_id) == (State.CONNECTED, None)
    asterisk.is_away = False
    # The circuit breaker may be open still at the first one.
    for _ in range(2):
        environment.ask_resyncs("clock", full=False)
        world.run(world.now + 15.0)
    if number == "busy":
        assert (only(environment).state, only(environment).outcome) == (State.ENDED, Outcome.COMPLETED)
    else:
        assert (only(environment).state, only(environment).destination_id) == (State.CONNECTED, destination)
        assert asterisk.is_with_agent(caller.channel)


def test_a_teardown_that_pauses_for_a_minute_goes_on_when_its_asterisk_is_back(environment: Environment) -> None:
    caller = connect(environment)
    asterisk, world = environment.asterisks["pbx1"], environment.world
    asterisk.is_away = True
    asterisk.caller_hangs_up(caller.channel)
    # Two pauses of 64 and 60 s lie ahead.
    world.run(world.now + 70.0)
    assert only(environment).state is State.ENDING
    asterisk.is_away = False
    environment.ask_resyncs("clock", full=False)
    world.run(world.now + 8.0)
    assert only(environment).state is State.ENDED


# ── a pipeline that was away ─────────────────────────────────────────────────────────────────────────────────────────


def test_callers_who_have_hung_up_before_they_are_looked_at_cost_no_run_and_no_request_but_one(
    environment: Environment,
) -> None:
    """After an outage most of the events that wait are theirs, and those who are still there wait behind them."""
    kept: list[Event] = []
    environment.listeners[0].passes = without(EventType.STASIS_START, kept_in=kept)
    at_ms = environment.broker.redis_ms() or 0
    gone, there = (environment.callers.call_in(environment.tenants[0]) for _ in range(2))
    world, asterisk = environment.world, environment.asterisks["pbx1"]
    world.run(world.now + 0.1)
    environment.listeners[0].passes = lambda event: event.type is EventType.STASIS_START
    asterisk.caller_hangs_up(gone.channel)
    world.run(world.now + 2.5)
    assert states(environment) == []
    for event in kept:
        deliver(environment, event, at_ms=at_ms)
    world.run(world.now + 1.0)
    assert sorted(states(environment)) == [State.CONNECTED, State.ENDED]
    assert asterisk.is_with_agent(there.channel)
    assert len(environment.runs.rows) == 1
    environment.listeners[0].passes = lambda _event: True
    ends_well(environment)
