"""What the situations have in common: looks at the calls, filters for events, a caller with an agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shared import messages
from shared.asterisk import events
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.states import State
from tests.simulation.callers import Caller
from tests.simulation.environment import Environment

CONNECTION = ConnectionVersion(1, 1)


def states(environment: Environment) -> list[State]:
    """Return the state of each call."""
    return [row.call.state for row in environment.store.rows.values()]


def only(environment: Environment) -> Call:
    """Return the one call."""
    (row,) = environment.store.rows.values()
    return row.call


def without(*types: events.EventType, kept_in: list[events.Event] | None = None) -> Callable[[events.Event], bool]:
    """Return a filter that lets every other type of event pass."""

    def passes(event: events.Event) -> bool:
        if event.type in types and kept_in is not None:
            kept_in.append(event)
        return event.type not in types

    return passes


def deliver(environment: Environment, event: events.Event, *, at_ms: int | None = None) -> None:
    """Have a worker handle an event, which was read at this moment of Redis's clock; now by default."""
    read_at = at_ms if at_ms is not None else environment.broker.redis_ms() or 0
    message = messages.of_event(event, connection=CONNECTION, at_ms=read_at)
    assert message is not None
    environment.broker.put(message)


def ends_well(environment: Environment, seconds: float = 3.0) -> None:
    """Let all callers hang up, and check that nothing is left."""
    environment.callers.hang_up_all()
    environment.world.run(environment.world.now + seconds)
    environment.invariants.check_end()
    assert environment.world.violations == []
    assert environment.world.unplayed == []


def connect(environment: Environment) -> Caller:
    """Let a caller call and get an agent."""
    caller = environment.callers.call_in(environment.tenants[0])
    environment.world.run(environment.world.now + 0.5)
    assert states(environment)[-1] is State.CONNECTED
    return caller


def at_attempt(environment: Environment, attempt: int) -> Call:
    """Make the one call look as if it were at this attempt."""
    (row,) = environment.store.rows.values()
    row.call = replace(row.call, attempt=attempt)
    return row.call
