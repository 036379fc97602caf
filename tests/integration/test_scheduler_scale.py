"""A scheduler at rest: its statements and the rows that it fetches do not grow with the number of connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.plans import Plan, Plans
from devstack import servers
from scheduler.resyncs import Resyncs
from tests.support import scheduler_harness
from tests.support.scheduler_harness import SchedulerHarness

pytestmark = pytest.mark.services


@pytest.fixture
def log(postgres_server: object) -> Path:
    """The log of the test run's Postgres."""
    if not isinstance(postgres_server, servers.Postgres):
        pytest.skip("the log of another Postgres cannot be read")
    return postgres_server.folder / "log"


def rest(harness: SchedulerHarness, plans: Plans, job: Callable[[], None]) -> Counter[str]:
    """Return how often each statement of a job at rest is sent, and in all how many rows they fetch."""
    for _ in range(3):
        job()
    plans.new()
    job()
    sent: list[Plan] = plans.new()
    return Counter(plan.query for plan in sent) + Counter(rows=sum(plan.rows for plan in sent))


def test_a_scheduler_at_rest_fetches_no_more_of_many_connections_than_of_few(
    database_url: str, redis_url: str, log: Path
) -> None:
    plans = Plans(database_url, log)
    with scheduler_harness.running(database_url, redis_url) as harness:
        harness.listeners.beat("l1")
        seen = []
        for size in (2, 60):
            harness.configure(size)
            harness.tick(2)
            harness.listeners.report_all("l1")
            harness.listeners.beat("l1")
            seen.append([rest(harness, plans, job) for job in (harness.reconcile, harness.assigner.tick)])
        assert seen[0] == seen[1]
        told = "a fingerprint each, and that this scheduler leads; the platform's is played"
        assert [job["rows"] for job in seen[0]] == [2, 2], told


def test_resyncs_are_requested_by_two_statements_and_by_the_hundred(
    database_url: str, redis_url: str, log: Path
) -> None:
    plans = Plans(database_url, log)
    with scheduler_harness.running(database_url, redis_url) as harness:
        harness.configure(250)
        harness.execute("UPDATE ari.connection_versions SET socket_state = 'connected'")
        resyncs = Resyncs(harness.db, harness.commands, seconds=15)
        resyncs.request_resyncs()
        harness.broker.flush("resync")
        harness.execute("UPDATE ari.resyncs SET due_at = clock_timestamp()")
        plans.new()
        harness.client.config_resetstat()
        resyncs.request_resyncs()
        assert [plan.rows for plan in plans.new()] == [250, 0], "those that are due, and when they are due next"
        requests = harness.client.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert requests == 3, "one for each hundred"
        assert harness.broker.count(["resync"])["resync"].waiting == 250
