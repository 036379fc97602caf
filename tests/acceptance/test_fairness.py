"""Tenants beside tenants: one whose Asterisk is dead or slow costs its own calls only. Real processes, simulators.

What is looked at is the mechanism, never how fast it was: `bench/fairness.py` measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import servers
from shared.core import breaker
from tests.acceptance.sites import Product, Site, own_database, running_product

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def product(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> Iterator[Product]:
    with (
        own_database(postgres_server.url, database_template) as database_url,
        running_product(folder=stack_folder, logs=all_logs / "fairness", database_url=database_url) as made,
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
    ours.until(lambda: noted(ours, breaker.OPENED), seconds=10, what="the breaker opens")
    leg = ours.dial()
    ours.wait_state(leg, "prepared")
    # The sweep has ordered the step again by then.
    ours.until(lambda: ours.pipeline.call(leg)["drives"] >= 1, seconds=5, what="the step was ordered once more")
    assert ours.pipeline.call(leg)["attempt"] == 0, ours.tell()
    assert ours.pipeline.state(connected) == "connected"
    ours.control.clear()
    ours.wait_state(leg, "connected")
    assert ours.pipeline.call(leg)["attempt"] == 1, ours.tell()
    assert ours.asked("POST", "/channels/externalMedia")[-1].status == 200
    assert ours.count("POST", "/channels/externalMedia") == 2, "one for each call"
    ours.until(lambda: noted(ours, breaker.CLOSED), seconds=5, what="the breaker closes")
    ours.end(connected, leg)
