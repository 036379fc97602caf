"""A layout of the platform's tables that this release does not serve is refused aloud, also while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

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
from tests.dograh_tables import VALUE, configure, execute, one
from tests.support.calls import RECEIVED

pytestmark = pytest.mark.services

NEWER = "newer layout"


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        yield made


def upgrade(db: database.Database) -> None:
    """Do what the platform's own upgrade does: copy the configurations to a new table, and leave the rows behind."""
    execute(
        db,
        "CREATE TABLE telephony_configurations (id serial PRIMARY KEY, organization_id integer NOT NULL,"
        " name varchar(64) NOT NULL, provider varchar(32) NOT NULL, credentials json NOT NULL,"
        " is_default_outbound boolean NOT NULL DEFAULT false, inactive boolean NOT NULL DEFAULT false)",
    )
    execute(
        db,
        "INSERT INTO telephony_configurations (organization_id, name, provider, credentials)"
        " SELECT organization_id, 'Default', 'ari', value FROM organization_configurations",
    )


def reconciler(db: database.Database) -> Reconciler:
    return Reconciler(db, dograh.Configurations(db), sealing.Sealer(("a key",)))


def connections(db: database.Database) -> list[tuple[str, str, int]]:
    with db.connection() as connection:
        rows = connection.execute("SELECT state, reason, version FROM ari.connections ORDER BY source_id").fetchall()
    return [(row["state"], row["reason"], row["version"]) for row in rows]


def open_versions(db: database.Database) -> int:
    query = "SELECT count(*) AS it FROM ari.connection_versions WHERE superseded_at IS NULL"
    return int(one(db, query)["it"])


def test_the_layout_is_told_by_the_new_table_and_not_by_the_old_rows(db: database.Database) -> None:
    assert layouts.find(db).layout is Layout.FEBRUARY_2026
    assert layouts.find(db).unserved is None
    execute(db, "CREATE TABLE public.alembic_version (version_num varchar(32) NOT NULL)")
    execute(db, "INSERT INTO public.alembic_version VALUES ('abc')")
    configure(db, json.dumps(VALUE))
    assert str(layouts.find(db)) == "2026-02, found, the platform's revision abc"
    upgrade(db)
    found = layouts.find(db)
    assert found.layout is Layout.NEWEST
    assert NEWER in (found.unserved or "")


@pytest.mark.parametrize("what", ["TABLE workflow_definitions CASCADE", "TABLE organization_configurations CASCADE"])
def test_a_layout_without_what_we_use_is_unknown_and_refused_by_name(db: database.Database, what: str) -> None:
    execute(db, f"DROP {what}")
    found = layouts.find(db)
    assert found.layout is Layout.UNKNOWN
    assert f"there is no {what.split()[1]}." in (found.unserved or "")


def test_beside_an_unknown_layout_no_socket_is_opened_until_the_setting_says_to(db: database.Database) -> None:
    """Also noticed while it runs, although no configuration has changed."""
    configure(db, json.dumps(VALUE))
    running = reconciler(db)
    running.reconcile()
    execute(db, "ALTER TABLE workflow_runs RENAME COLUMN mode TO kind")
    running.reconcile()
    ((state, reason, _),) = connections(db)
    assert (state, open_versions(db)) == ("refused", 0)
    assert "there is no workflow_runs.mode" in reason
    Reconciler(db, dograh.Configurations(db, layout="2026-02"), sealing.Sealer(("a key",))).reconcile()
    assert [state for state, _, _ in connections(db)] == ["active"]


@pytest.mark.parametrize(("setting", "is_served"), [("2026-02", True), ("newest", False), ("auto", True)])
def test_the_setting_overrides_what_is_found(
    db: database.Database, setting: layouts.Setting, *, is_served: bool
) -> None:
    found = layouts.find(db, setting)
    assert (found.is_set, found.unserved is None) == (setting != "auto", is_served)
    configure(db, json.dumps(VALUE))
    route = dograh.Routes(db, layout=setting).inbound(1)
    assert isinstance(route, Route) is is_served
    (row,) = dograh.Configurations(db, layout=setting).all()
    assert (row.unserved is None) is is_served


def test_no_socket_is_opened_for_a_stale_configuration(db: database.Database) -> None:
    configure(db, json.dumps(VALUE))
    upgrade(db)
    with capture_logs() as logs:
        reconciler(db).reconcile()
    ((state, reason, version),) = connections(db)
    assert (state, version) == ("refused", 0)
    assert NEWER in reason
    assert any(NEWER in str(line.get("reason", "")) for line in logs)


def test_an_upgrade_while_we_run_is_noticed_and_a_socket_with_calls_is_not_cut(db: database.Database) -> None:
    """Its version is superseded: it keeps its socket until its calls have ended."""
    configure(db, json.dumps(VALUE))
    running = reconciler(db)
    running.reconcile()
    assert connections(db) == [("active", "", 1)]
    upgrade(db)
    running.reconcile()
    ((state, reason, _),) = connections(db)
    assert (state, NEWER in reason, open_versions(db)) == ("refused", True, 0)
    assert one(db, "SELECT retired_at FROM ari.connection_versions")["retired_at"] is None
    execute(db, "DROP TABLE telephony_configurations")
    running.reconcile()
    assert [state for state, _, _ in connections(db)] == ["active"]


def test_every_way_to_a_call_refuses_it_from_the_upgrade_on(db: database.Database) -> None:
    """Whatever the scheduler has done by then: each route is read with the layout, in the same statement."""
    source_id = configure(db, json.dumps(VALUE))
    routes, runs = dograh.Routes(db), dograh.Runs(db)
    execute(db, "INSERT INTO ari.connections (source_id, organization_id, state) VALUES (%s, 1, 'active')", source_id)
    connection_id = one(db, "SELECT max(connection_id) AS it FROM ari.connections")["it"]
    upgrade(db)
    with db.connection() as connection:
        sent = routes.send_inbound(connection, connection_id)
    refused = [
        sent(),
        routes.inbound(1),
        routes.outbound(organization_id=1, workflow_id=1),
    ]
    with db.transaction() as connection:
        args = RunArgs(workflow_run_id=1, workflow_id=1)
        refused.append(runs.attach(connection, replace(RECEIVED, organization_id=1), args))
    for route in refused:
        assert isinstance(route, NoRoute)
        assert NEWER in route.reason
    assert one(db, "SELECT count(*) AS it FROM workflow_runs")["it"] == 0


def test_a_configuration_is_not_written_where_the_platform_does_not_read_it(db: database.Database) -> None:
    upgrade(db)
    with pytest.raises(errors.InvalidConfiguration, match=NEWER):
        dograh.Configurations(db).write(1, VALUE, replace=False)
    assert one(db, "SELECT count(*) AS it FROM organization_configurations")["it"] == 0


def test_the_layout_is_logged_at_the_start_and_when_it_changes(db: database.Database) -> None:
    watch = dograh.Watch(db)
    with capture_logs() as logs:
        watch.look()
        watch.try_to_look()
    assert [line["event"] for line in logs] == ["the platform's layout"]
    upgrade(db)
    with capture_logs() as logs:
        watch.try_to_look()
        watch.look()
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("the platform's layout has changed", "info"),
        ("no call can be served", "error"),
    ]


def test_while_postgres_is_away_nothing_is_said(database_url: str) -> None:
    away = database.Database(database_url + "_gone", size=1)
    away.open()
    with capture_logs() as logs:
        dograh.Watch(away).try_to_look()
    assert [line for line in logs if "layout" in line] == []
    away.close()
