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
from tests import arictl_program, dograh_tables

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


def test_no_statement_reads_more_when_there_are_more_ended_calls(database_url: str, log: Path, tmp_path: Path) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for _ in history.fill(connection, SIZE):
            pass
        connection.execute("VACUUM ANALYZE")
    plans = Plans(database_url, log)
    db = database.Database(database_url, size=1)
    db.open()
    run = arictl_program.runner(database_url, tmp_path)

    def arictl(*words: str) -> None:
        done = run(*words)
        assert done.returncode == 0, done.stderr

    seen: dict[str, list[Plan]] = {}
    for name, read in history.readers(db, SIZE, arictl).items():
        # Prepared: from the sixth time on, Postgres may go by a plan for any value.
        for _ in range(7 if name.startswith("calls: ") else 1):
            read()
        seen[name] = plans.new()
    db.close()
    assert all(seen.values())
    assert [
        (name, plan) for name, some in seen.items() for plan in some if plan.scanned & GROWING or plan.read > FEW
    ] == []
    asked = {name for name in seen if name.startswith("calls: ")}
    used = set().union(*(plan.indexes for name in asked for plan in seen[name]))
    assert used >= {"calls_by_caller", "calls_by_called", "calls_by_outcome", "calls_by_fault"}, "each is needed"
    for name in ("calls: of a channel", "arictl trace, by channel"):
        reads = {plan.read for plan in seen[name] if "calls_by_channel" in plan.indexes}
        assert reads, name
        assert max(reads) < 5, "it asks no connection"
    (minutes,) = (plan for plan in seen["minutes of the largest tenant, first look"] if plan.indexes)
    assert minutes.indexes == {"calls_minutes"}, "it has all that is summed up"


#: Runs that wait for calls of the platform, as many of each organization.
_RUNS = """
INSERT INTO workflow_runs (name, workflow_id, mode, call_type, is_completed, gathered_context, initial_context,
                           usage_info, cost_info, annotations)
SELECT 'WR', 1 + n %% 2, 'ari', 'outbound', false, json_build_object('call_id', 'leg-' || n, 'provider', 'ari'), '{}',
       '{}', '{}', '{}'
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


#: 500 organizations with two configurations and twenty numbers each, and their connections.
_ROUTES = """
INSERT INTO organizations (id, provider_id) SELECT 100 + n, 'many' || n FROM generate_series(1, 500) AS n;
INSERT INTO telephony_configurations (id, organization_id, name, provider, credentials)
SELECT 2 * o.id + n, o.id, 'c' || n, 'ari', '{"ws_client_name": "media"}'
FROM organizations o, generate_series(0, 1) AS n WHERE o.id > 100;
INSERT INTO telephony_phone_numbers (organization_id, telephony_configuration_id, address, address_normalized,
                                     address_type, inbound_workflow_id)
SELECT c.organization_id, c.id, '+4930' || 10000 * (c.id % 2) + n, '+4930' || 10000 * (c.id % 2) + n, 'pstn', 1
FROM telephony_configurations c, generate_series(10001, 10010) AS n;
INSERT INTO ari.connections (source_id, organization_id, state)
SELECT -id, organization_id, 'active' FROM telephony_configurations ORDER BY id
"""


@pytest.mark.parametrize("layout", ["newest"], indirect=True)
@pytest.mark.parametrize("is_analyzed", [True, False])
def test_the_route_of_a_number_is_read_by_indexes_however_many_configurations_and_numbers_there_are(
    database_url: str, log: Path, *, is_analyzed: bool
) -> None:
    with dograh_tables.filled(database_url), psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_ROUTES)
        if is_analyzed:
            connection.execute("ANALYZE")
    plans = Plans(database_url, log)
    db = database.Database(database_url, size=1)
    db.open()
    routes = dograh.Routes(db)
    for connection_id in range(500, 507):
        with db.connection() as read:
            sent = routes.send_inbound(read, connection_id, "+493010005")
        sent()
    db.close()
    made = [plan for plan in plans.new() if "address_normalized" in plan.query]
    assert len(made) == 7
    small = {"organization_configurations", "workflows", "workflow_definitions"}
    assert set().union(*(plan.scanned for plan in made)) <= small
    assert max(plan.read for plan in made) < 60
