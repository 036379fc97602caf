"""What the simulated broker does with a message's affinity, and with a push that is lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from shared import messages
from tests.simulation import faults
from tests.simulation.environment import Environment
from tests.simulation.faults import Fault
from tests.simulation.situations import CONNECTION


def test_a_message_goes_to_the_worker_of_its_tag_while_it_is_up(environment: Environment) -> None:
    workers = environment.workers
    first, second = workers.processes
    assert workers.pick() is first, "the calm choice"
    assert workers.pick(workers.tag_of(second)) is second
    second.kill(0.0)
    assert workers.pick(workers.tag_of(second)) is first


def test_an_affinity_is_missed_now_and_then(environment: Environment) -> None:
    workers = environment.workers
    first, second = workers.processes
    environment.world.choices.one_of = lambda options: options[-1]  # type: ignore[method-assign]
    assert workers.pick(workers.tag_of(first)) is second


def test_a_push_that_is_lost_is_found(make_environment: Callable[..., Environment]) -> None:
    """Or the worker it was pushed to dies, and another one gets it."""
    for dies in (False, True):
        environment = make_environment()
        environment.open()
        environment.world.run(0.3)
        environment.world.fault = lambda kinds, *_: Fault.PUSH_LOST if kinds == faults.OF_MESSAGES else None  # type: ignore[method-assign]
        environment.broker.put(messages.of_resync(connection=CONNECTION, reason="test", full=True))
        del environment.world.fault
        environment.world.run(0.35)
        assert environment.broker.is_waiting
        if dies:
            environment.workers.processes[0].kill(environment.world.now)
        environment.world.run(8.0)
        assert not environment.broker.is_waiting


def test_of_a_connection_one_resync_waits(environment: Environment) -> None:
    environment.open()
    broker = environment.broker
    broker.flush()
    for reason in (messages.RESYNC_CLOCK, "test", "another", messages.RESYNC_CLOCK):
        broker.put(messages.of_resync(connection=CONNECTION, reason=reason, full=True), timedelta(seconds=5))
    (waiting,) = broker._entries
    assert '"another"' in waiting.body
    environment.world.run(8.0)
    assert not broker.is_waiting
