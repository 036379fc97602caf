"""The layout of the platform's tables is told by what is there, also while it changes, and served by its rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from devstack import platform_tables
from scheduler.reconciler import Reconciler
from shared import errors
from shared.call.stasis_args import RunArgs
from shared.platform import dograh
from shared.platform.dograh import layouts
from shared.platform.dograh.layouts import Layout
from shared.platform.ports import NoRoute, Route
from shared.process import sealing
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure, connect, execute, one, publish
from tests.support.calls import RECEIVED

pytestmark = pytest.mark.services

NUMBER = "+4930123456"
CONFIGURED = json.dumps(VALUE | {"from_numbers": [NUMBER]})


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> str:
    """Unless a test is parametrized."""
    return str(getattr(request, "param", "2026-02"))


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made)
        yield made


def reconciler(db: database.Database) -> Reconciler:
    return Reconciler(db, dograh.Configurations(db), sealing.Sealer(("a key",)))


def connections(db: database.Database) -> list[tuple[str, str, int]]:
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT state, reason, version FROM ari.connections ORDER BY connection_id"
        ).fetchall()
    return [(row["state"], row["reason"], row["version"]) for row in rows]


def open_versions(db: database.Database) -> int:
    query = "SELECT count(*) AS it FROM ari.connection_versions WHERE superseded_at IS NULL"
    return int(one(db, query)["it"])


def test_the_layout_is_told_by_the_new_table_and_not_by_the_old_rows(db: database.Database, database_url: str) -> None:
    assert str(layouts.find(db)) == f"2026-02, found, the platform's revision {platform_tables.FEBRUARY_REVISION}"
    configure(db, CONFIGURED)
    platform_tables.upgrade(database_url)
    found = layouts.find(db)
    assert (found.layout, found.unserved, found.platform_completes_runs) == (Layout.NEWEST, None, True)
    assert str(found) == f"newest, found, the platform's revision {platform_tables.NEWEST_REVISION}"
    assert one(db, "SELECT count(*) AS it FROM organization_configurations")["it"] == 1, "it stays behind"


def test_a_role_that_may_not_read_the_revision_serves_calls_all_the_same(db: database.Database) -> None:
    execute(db, "CREATE ROLE blind")
    try:
        with db.transaction() as connection:
            connection.execute("SET LOCAL ROLE blind")
            found = layouts.find_by(connection)
    finally:
        execute(db, "DROP ROLE blind")
    assert (found.revision, found.unserved, found.platform_completes_runs) == ("not readable by this role", None, True)


@pytest.mark.parametrize("layout", ["stand-alone"], indirect=True)
def test_the_tables_of_an_installation_without_the_platform_are_told_whatever_else_is_in_the_database(
    db: database.Database,
) -> None:
    found = layouts.find(db)
    assert (found.layout, found.is_ours, found.platform_completes_runs) == (Layout.FEBRUARY_2026, True, False)
    # Another program's, which uses the same library.
    execute(db, "CREATE TABLE public.alembic_version (version_num varchar(32) NOT NULL)")
    execute(db, "INSERT INTO public.alembic_version VALUES ('abc')")
    found = layouts.find(db)
    assert (found.revision, found.is_ours, found.platform_completes_runs) == ("abc", True, False)


@pytest.mark.parametrize("what", ["TABLE workflow_definitions CASCADE", "TABLE organization_configurations CASCADE"])
def test_a_layout_without_what_we_use_is_refused_by_name(db: database.Database, what: str) -> None:
    execute(db, f"DROP {what}")
    assert f"there is no {what.split()[1]}." in (layouts.find(db).unserved or "")
    assert layouts.find(db, "2026-02").unserved is None, "the setting says so"


def test_a_newest_layout_without_what_we_use_is_refused_by_name(db: database.Database, database_url: str) -> None:
    platform_tables.upgrade(database_url)
    execute(db, "ALTER TABLE workflows DROP COLUMN released_definition_id")
    assert "there is no workflows.released_definition_id" in (layouts.find(db).unserved or "")


def test_beside_an_unknown_layout_no_socket_is_opened_until_the_setting_says_to(db: database.Database) -> None:
    """Also noticed while it runs, although no configuration has changed."""
    configure(db, CONFIGURED)
    running = reconciler(db)
    running.reconcile()
    execute(db, "ALTER TABLE workflow_runs RENAME COLUMN mode TO kind")
    running.reconcile()
    ((state, reason, _),) = connections(db)
    assert (state, open_versions(db)) == ("refused", 0)
    assert "there is no workflow_runs.mode" in reason
    watch = dograh.Watch(db, "2026-02")
    Reconciler(db, dograh.Configurations(db, watch=watch), sealing.Sealer(("a key",))).reconcile()
    assert [state for state, _, _ in connections(db)] == ["active"]


def test_a_half_done_upgrade_changes_no_connection_and_its_callers_are_tried_again(
    db: database.Database, database_url: str
) -> None:
    """Each of the platform's migrations is committed by itself: the columns of inactive configurations come late."""
    configure(db, CONFIGURED)
    running, watch = reconciler(db), dograh.Watch(db)
    running.reconcile()
    before = connections(db)
    routes, runs = dograh.Routes(db, watch=watch), dograh.Runs(db, watch=watch)
    assert isinstance(routes.inbound(1, NUMBER), Route)
    platform_tables.upgrade(database_url)
    execute(db, "ALTER TABLE telephony_configurations DROP inactive, DROP inactive_since, DROP inactive_reason")
    with pytest.raises(errors.PlatformUnserved, match=r"there is no telephony_configurations\.inactive"):
        running.reconcile()
    assert (connections(db), open_versions(db)) == (before, 1)
    with pytest.raises(errors.PlatformUnserved):
        routes.inbound(1, NUMBER)
    with pytest.raises(errors.PlatformUnserved):
        routes.outbound(connection_id=1, workflow_id=1)
    with db.connection() as connection:
        assert routes.send_inbound(connection, 1, NUMBER)() is None, "it is asked for again"
    call = replace(RECEIVED, connection_id=1, organization_id=1)
    with pytest.raises(errors.PlatformUnserved), db.connection() as connection:
        runs.attach(connection, call, RunArgs(workflow_run_id=1, workflow_id=1, user_id=None))
    execute(
        db,
        "ALTER TABLE telephony_configurations ADD inactive boolean NOT NULL DEFAULT false,"
        " ADD inactive_since timestamptz, ADD inactive_reason varchar(255)",
    )
    running.reconcile()
    assert (connections(db), open_versions(db)) == (before, 1)
    assert isinstance(routes.inbound(1, NUMBER), Route)


def test_the_setting_overrides_what_is_found(db: database.Database, database_url: str) -> None:
    connection_id = connect(db, configure(db, CONFIGURED))
    platform_tables.upgrade(database_url)
    execute(db, "DELETE FROM telephony_phone_numbers")
    found = layouts.find(db, "2026-02")
    assert (found.is_set, found.layout) == (True, Layout.FEBRUARY_2026)
    set_to = dograh.Watch(db, "2026-02")
    assert isinstance(dograh.Routes(db, watch=set_to).inbound(connection_id, NUMBER), Route)
    with db.connection() as connection:
        sent = dograh.Routes(db, watch=set_to).send_inbound(connection, connection_id, NUMBER)
    assert isinstance(sent(), Route)
    assert isinstance(dograh.Routes(db).inbound(connection_id, NUMBER), NoRoute)
    assert [row.source_id for row in dograh.Configurations(db, watch=set_to).all()] == [1]
    assert [row.source_id for row in dograh.Configurations(db).all()] == [-1]


def test_no_socket_is_opened_for_a_stale_configuration(db: database.Database, database_url: str) -> None:
    configure(db, CONFIGURED)
    platform_tables.upgrade(database_url)
    execute(db, "DELETE FROM telephony_configurations")
    reconciler(db).reconcile()
    assert connections(db) == []


def test_an_upgrade_moves_each_connection_to_its_new_row_with_the_same_socket(
    db: database.Database, database_url: str
) -> None:
    """Also where the new row has the id that another connection's old row had."""
    configure(db, json.dumps(VALUE | {"app_name": "second"}), 2)
    configure(db, CONFIGURED)
    running = reconciler(db)
    running.reconcile()
    before = one(db, "SELECT array_agg((connection_id, version, state) ORDER BY connection_id)::text AS it"
                     " FROM ari.connections")  # fmt: skip
    platform_tables.upgrade(database_url)
    for step in ("id + 10", "13 - id"):
        execute(db, "DELETE FROM telephony_phone_numbers")
        execute(db, f"UPDATE telephony_configurations SET id = {step}")
    running.reconcile()
    after = one(db, "SELECT array_agg((connection_id, version, state) ORDER BY connection_id)::text AS it"
                    " FROM ari.connections")  # fmt: skip
    assert after == before
    rows = one(
        db,
        "SELECT bool_and(c.organization_id = t.organization_id) AS it, count(*) AS number FROM ari.connections c"
        " JOIN telephony_configurations t ON t.id = -c.source_id",
    )
    assert (rows["it"], rows["number"]) == (True, 2)
    assert open_versions(db) == 2


def test_from_the_upgrade_on_every_call_is_served_by_the_new_rules_whatever_the_scheduler_has_done(
    db: database.Database, database_url: str
) -> None:
    """Each route is read with the layout, in the same statement."""
    watch = dograh.Watch(db)
    routes, runs = dograh.Routes(db, watch=watch), dograh.Runs(db, watch=watch)
    connection_id = connect(db, configure(db, CONFIGURED))
    with db.connection() as connection:
        sent = routes.send_inbound(connection, connection_id, "elsewhere")
    assert isinstance(sent(), Route)
    platform_tables.upgrade(database_url)
    with db.connection() as connection:
        stale = routes.send_inbound(connection, connection_id, NUMBER)
    assert stale() is None, "the rows that were read are of the layout before"
    route = routes.inbound(connection_id, NUMBER)
    assert isinstance(route, Route)
    with db.connection() as connection:
        sent = routes.send_inbound(connection, connection_id, "030 123456")
        call = replace(RECEIVED, organization_id=1, connection_id=connection_id, workflow_id=1)
    elsewhere = sent()
    assert isinstance(elsewhere, NoRoute)
    with db.transaction() as connection:
        run_id = runs.create(connection, call)
    assert dograh_tables.run(db, run_id)["initial_context"]["telephony_configuration_id"] == 1
    execute(db, "UPDATE workflow_runs SET call_type = 'outbound'")
    with db.transaction() as connection:
        attached = runs.attach(connection, call, RunArgs(workflow_run_id=run_id, workflow_id=1))
    assert isinstance(attached, Route)


def test_what_the_platform_has_undone_is_noticed_as_well(db: database.Database, database_url: str) -> None:
    connection_id = connect(db, configure(db, CONFIGURED))
    execute(db, "CREATE TABLE telephony_configurations (LIKE organization_configurations)")
    routes = dograh.Routes(db)
    with db.connection() as connection:
        assert routes.send_inbound(connection, connection_id, NUMBER)() is None
    execute(db, "DROP TABLE telephony_configurations")
    assert isinstance(routes.inbound(connection_id, NUMBER), Route)


def test_the_layout_is_logged_at_the_start_and_when_it_changes(db: database.Database, database_url: str) -> None:
    watch = dograh.Watch(db)
    with capture_logs() as logs:
        watch.look()
        watch.try_to_look()
    assert [line["event"] for line in logs] == ["the platform's layout"]
    platform_tables.upgrade(database_url)
    with capture_logs() as logs:
        watch.try_to_look()
        watch.look()
    assert [line["event"] for line in logs] == ["the platform's layout has changed"]
    execute(db, "ALTER TABLE workflow_runs RENAME COLUMN mode TO kind")
    with capture_logs() as logs:
        watch.look()
    assert [line["log_level"] for line in logs] == ["info", "error"]


def test_what_was_seen_some_seconds_ago_is_looked_at_again(
    db: database.Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = dograh.Watch(db)
    assert watch.found().layout is Layout.FEBRUARY_2026
    platform_tables.upgrade(database_url)
    assert watch.found().layout is Layout.FEBRUARY_2026
    monkeypatch.setattr(layouts, "_SECONDS", 0.0)
    assert watch.found().layout is Layout.NEWEST


def test_while_postgres_is_away_nothing_is_said(database_url: str) -> None:
    away = database.Database(database_url + "_gone", size=1)
    away.open()
    with capture_logs() as logs:
        dograh.Watch(away).try_to_look()
    assert [line for line in logs if "layout" in line] == []
    away.close()
