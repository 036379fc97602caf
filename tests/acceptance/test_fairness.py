"""Fairness between tenants: a dead or slow Asterisk affects the calls of its own tenant only. Real processes.

These tests check the mechanism; `bench/fairness.py` measures times.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.asterisk import circuit_breaker
from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

#: Threads of the set-up pool and of the teardown pool, and the most of them that one tenant may use.
THREADS, SHARE = 4, 3


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy(
        "fairness",
        # An agent that was slow to answer accepts the leg of the next attempt.
        agent_database=False,
        WORKER_THREADS=str(THREADS),
        TEARDOWN_THREADS=str(THREADS),
        # A request that hangs here has to hang until the test releases it.
        READ_SECONDS="30",
    ) as made:
        yield made


@pytest.fixture
def ours(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        yield made


@pytest.fixture
def theirs(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        yield made


def breaker_entries(env: Environment, name: str) -> int:
    """Return how often a change of the circuit breaker is in the connection's timeline."""
    return sum(entry.startswith(f"{name}:") for entry in env.connection_entries())


def test_a_caller_outlasts_an_open_breaker_and_no_attempt_is_spent_on_it(ours: Environment) -> None:
    (connected,) = ours.connect()
    ours.control.fault("*", "/*", "before", status=503)
    ours.until(lambda: breaker_entries(ours, circuit_breaker.OPENED), seconds=10, what="the breaker opens")
    leg = ours.dial()
    ours.wait_state(leg, "prepared")
    # By then the sweep has dispatched the step again.
    ours.until(lambda: ours.pipeline.call(leg)["step_retries"] >= 1, seconds=5, what="the step was ordered once more")
    assert ours.pipeline.call(leg)["attempt"] == 0, ours.describe()
    assert ours.pipeline.state(connected) == "connected"
    ours.control.clear()
    ours.wait_state(leg, "connected")
    assert ours.pipeline.call(leg)["attempt"] == 1, ours.describe()
    assert ours.asked("POST", "/channels/externalMedia")[-1].status == 200
    assert ours.count("POST", "/channels/externalMedia") == 2, "one for each call"
    ours.until(lambda: breaker_entries(ours, circuit_breaker.CLOSED), seconds=5, what="the breaker closes")
    ours.end(connected, leg)


def test_an_asterisk_that_hangs_leaves_threads_to_the_others(ours: Environment, theirs: Environment) -> None:
    """Makes twice as many calls as the set-up pool has threads."""
    with ours.control.hold("POST", "/channels/externalMedia", "before") as point:
        waiting = [ours.dial() for _ in range(2 * THREADS)]
        point.wait_arrived()
        served = theirs.connect(2 * THREADS)
        # It uses its share and no more, and no other tenant waited for its answer.
        assert 1 <= point.waiting() <= SHARE, ours.describe()
        assert not any(ours.pipeline.state(leg) == "connected" for leg in waiting)
    theirs.end(*served)
    for leg in waiting:
        ours.wait_state(leg, "connected", "ended", seconds=20)
    connected = [leg for leg in waiting if ours.pipeline.state(leg) == "connected"]
    assert connected, ours.describe()
    ours.end(*connected)


def test_an_asterisk_that_hangs_delays_no_teardown_of_others(ours: Environment, theirs: Environment) -> None:
    hang_up, others = ours.connect(2 * THREADS), theirs.connect(THREADS)
    with ours.control.hold("DELETE", "/channels/*", "before") as point:
        for leg in hang_up:
            ours.control.hang_up(leg)
        point.wait_arrived()
        theirs.end(*others)
        assert 1 <= point.waiting() <= SHARE, ours.describe()
    for leg in hang_up:
        ours.wait_state(leg, "ended", seconds=20)
    ours.wait_empty()
