"""The statements that read calls and timeline read few rows of them, by an index, however many there are."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from bench import history
from bench.plans import Plan, Plans
from devstack import servers
from shared.platform import dograh
from shared.storage import database
from tests import dograh_tables

pytestmark = pytest.mark.services

SIZE = history.Size(calls=20_000, rows=3, connections=20, open_calls=100, old_calls=200)
#: A tenth of the smallest of the tables that grow with the calls.
FEW = 2_000
GROWING = {"calls", "timeline", "attempts"}


@pytest.fixture
def log(postgres_server: object) -> Path:
    """The log of the test run's Postgres."""
    if not isinstance(postgres_server, servers.Postgres):
        pytest.skip("the log of another Postgres cannot be read")
    return postgres_server.folder / "log"


def test_no_statement_reads_more_when_there_are_more_ended_calls(database_url: str, log: Path) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for _ in history.fill(connection, SIZE):
            pass
        connection.execute("VACUUM ANALYZE")
    plans = Plans(database_url, log)
    db = database.Database(database_url, size=1)
    db.open()
    seen: dict[str, list[Plan]] = {}
    for name, read in history.readers(db, database_url, SIZE).items():
        read()
        seen[name] = plans.new()
    db.close()
    assert all(seen.values())
    assert [
        (name, plan) for name, some in seen.items() for plan in some if plan.scanned & GROWING or plan.read > FEW
    ] == []
    (minutes,) = (plan for plan in seen["minutes of the largest tenant, first look"] if plan.indexes)
    assert minutes.indexes == {"calls_minutes"}, "it has all that is summed up"


#: Runs that wait for calls of the platform, as many of each organization.
_RUNS = """
INSERT INTO workflow_runs (name, workflow_id, mode, call_type, gathered_context)
SELECT 'WR', 1 + n %% 2, 'ari', 'outbound', json_build_object('call_id', 'leg-' || n, 'provider', 'ari')
FROM generate_series(1, %s) AS n
"""


@pytest.mark.parametrize("is_analyzed", [True, False])
def test_the_run_of_an_unanswered_call_is_found_by_its_index_however_many_there_are_and_however_old_it_is(
    database_url: str, log: Path, *, is_analyzed: bool
) -> None:
    with dograh_tables.filled(database_url), psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_RUNS, [30_000])
        if is_analyzed:
            connection.execute("ANALYZE")
    plans = Plans(database_url, log)
    db = database.Database(database_url, size=1)
    db.open()
    runs = dograh.Runs(db)
    # Prepared: from the sixth time on, Postgres may go by a plan for any value.
    for _ in range(7):
        with db.transaction() as connection:
            assert runs.waiting(connection, organization_id=1, channel_id="leg-2") == 2
    db.close()
    made = [plan for plan in plans.new() if "workflow_runs" in plan.query]
    assert len(made) == 7
    assert {plan.indexes & {"idx_workflow_runs_call_id"} for plan in made} == {frozenset({"idx_workflow_runs_call_id"})}
    assert max(plan.read for plan in made) < 10
