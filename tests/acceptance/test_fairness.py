"""Tenants beside tenants: one whose Asterisk is dead or slow costs its own calls only. Real processes, simulators.

What is looked at is the mechanism, never how fast it was: `bench/fairness.py` measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import servers
from shared.asterisk import circuit_breaker
from tests import databases
from tests.acceptance.sites import Product, Site, running_product

pytestmark = pytest.mark.services

#: Of the worker that sets calls up, and of one that tears them down; what one tenant has of them at most.
THREADS, SHARE = 4, 3


@pytest.fixture(scope="module")
def product(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> Iterator[Product]:
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        running_product(
            folder=stack_folder,
            logs=all_logs / "fairness",
            database_url=database_url,
            # An agent that was slow to answer takes the leg that is tried again.
            agent_database=False,
            WORKER_THREADS=str(THREADS),
            TEARDOWN_THREADS=str(THREADS),
            # Nothing that hangs here is given up before the test lets it go.
            READ_SECONDS="30",
        ) as made,
    ):
        yield made


@pytest.fixture
def ours(product: Product) -> Iterator[Site]:
    with product.site() as made:
        yield made


@pytest.fixture
def theirs(product: Product) -> Iterator[Site]:
    with product.site() as made:
        yield made


def noted(site: Site, name: str) -> int:
    """How often a breaker's change was noted of the site's connection."""
    return sum(note.startswith(f"{name}:") for note in site.notes())


def test_a_caller_outlasts_an_open_breaker_and_no_attempt_is_spent_on_it(ours: Site) -> None:
    (connected,) = ours.connect()
    ours.control.fault("*", "/*", "before", status=503)
    ours.until(lambda: noted(ours, circuit_breaker.OPENED), seconds=10, what="the breaker opens")
    leg = ours.dial()
    ours.wait_state(leg, "prepared")
    # The sweep has ordered the step again by then.
    ours.until(lambda: ours.pipeline.call(leg)["step_retries"] >= 1, seconds=5, what="the step was ordered once more")
    assert ours.pipeline.call(leg)["attempt"] == 0, ours.tell()
    assert ours.pipeline.state(connected) == "connected"
    ours.control.clear()
    ours.wait_state(leg, "connected")
    assert ours.pipeline.call(leg)["attempt"] == 1, ours.tell()
    assert ours.asked("POST", "/channels/externalMedia")[-1].status == 200
    assert ours.count("POST", "/channels/externalMedia") == 2, "one for each call"
    ours.until(lambda: noted(ours, circuit_breaker.CLOSED), seconds=5, what="the breaker closes")
    ours.end(connected, leg)


def test_an_asterisk_that_hangs_leaves_threads_to_the_others(ours: Site, theirs: Site) -> None:
    """Calls enough to hold every thread of the worker that sets them up, twice."""
    with ours.control.hold("POST", "/channels/externalMedia", "before") as gate:
        waiting = [ours.dial() for _ in range(2 * THREADS)]
        gate.wait_arrived()
        served = theirs.connect(2 * THREADS)
        # It holds its share and nothing above, and nobody waited for its answer.
        assert 1 <= gate.waiting() <= SHARE, ours.tell()
        assert not any(ours.pipeline.state(leg) == "connected" for leg in waiting)
    theirs.end(*served)
    for leg in waiting:
        ours.wait_state(leg, "connected", "ended", seconds=20)
    connected = [leg for leg in waiting if ours.pipeline.state(leg) == "connected"]
    assert connected, ours.tell()
    ours.end(*connected)


def test_an_asterisk_that_hangs_delays_no_teardown_of_others(ours: Site, theirs: Site) -> None:
    hang_up, others = ours.connect(2 * THREADS), theirs.connect(THREADS)
    with ours.control.hold("DELETE", "/channels/*", "before") as gate:
        for leg in hang_up:
            ours.control.hang_up(leg)
        gate.wait_arrived()
        theirs.end(*others)
        assert 1 <= gate.waiting() <= SHARE, ours.tell()
    for leg in hang_up:
        ours.wait_state(leg, "ended", seconds=20)
    ours.wait_empty()
