"""What `arictl doctor` says of the platform beside us, in each layout."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from devstack import platform_tables
from shared.operator.checks import connection_checks, platform_checks
from shared.operator.checks.findings import Level
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import NUMBER, VALUE, configure, connect, execute, number, publish
from tests.support import round_trips

pytestmark = pytest.mark.services


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made)
        yield made


def said(db: database.Database, *, run_completion: str = "auto") -> dict[str, tuple[Level, str]]:
    found = platform_checks.check(db, "auto", run_completion=run_completion)
    assert all(finding.todo for finding in found if finding.level is not Level.OK)
    return {finding.what: (finding.level, finding.seen) for finding in found}


@pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True)
def test_layout_and_revision_are_said_and_nothing_is_wrong_of_itself(
    db: database.Database, layout: platform_tables.Layout
) -> None:
    findings = said(db)
    assert {level for level, _ in findings.values()} == {Level.OK}
    shown = {
        "stand-alone": "2026-02, found, the tables of an installation without the platform",
        "2026-02": f"2026-02, found, the platform's revision {platform_tables.FEBRUARY_REVISION}",
        "newest": f"newest, found, the platform's revision {platform_tables.NEWEST_REVISION}",
    }
    assert findings["layout"][1] == shown[layout]


@pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True)
@pytest.mark.parametrize("setting", ["auto", "ours", "platform"])
def test_who_completes_runs_is_said_and_the_wrong_one_with_what_it_would_do(
    db: database.Database, layout: platform_tables.Layout, setting: str
) -> None:
    level, seen = said(db, run_completion=setting)["runs of connected calls"]
    right = "ours" if layout == "stand-alone" else "platform"
    assert level is (Level.OK if setting in ("auto", right) else Level.WRONG)
    assert f"RUN_COMPLETION={setting}" in seen
    assert ("by us" in seen) is ((right if setting == "auto" else setting) == "ours")


@pytest.mark.parametrize("layout", ["2026-02"], indirect=True)
def test_tables_of_which_nothing_tells_whose_they_are_are_named(db: database.Database) -> None:
    execute(db, "DROP TABLE public.alembic_version")
    assert said(db)["runs of connected calls"][0] is Level.WARNING
    assert said(db, run_completion="platform")["runs of connected calls"][0] is Level.OK


@pytest.mark.parametrize("layout", ["2026-02"], indirect=True)
def test_rows_that_the_platform_s_upgrade_has_left_behind_are_said(db: database.Database, database_url: str) -> None:
    configure(db, json.dumps(VALUE))
    platform_tables.upgrade(database_url)
    assert said(db)["stale configurations"][1].startswith("1 of the layout before")


@pytest.mark.parametrize("layout", ["newest"], indirect=True)
def test_rows_by_which_callers_are_refused_are_said(db: database.Database) -> None:
    source_id = configure(db, json.dumps(VALUE))
    number(db, -source_id, 4, address="Reception")
    configure(db, json.dumps(VALUE | {"inbound_workflow_id": None}), 2)
    execute(
        db,
        "UPDATE telephony_configurations SET inactive = true, inactive_reason = 'ari-missing-ws-client-name: Set it.'"
        " WHERE organization_id = 2",
    )
    findings = said(db)
    assert findings["workflow definitions"] == (Level.WRONG, "none for 1 workflows of phone numbers: 4")
    assert findings["phone numbers"][0] is Level.WRONG
    assert findings["phone numbers"][1].endswith(": Reception")
    assert findings["inactive configurations"] == (
        Level.WARNING,
        "1: 2 of organization 2 (ari-missing-ws-client-name: Set it.)",
    )


@pytest.mark.parametrize("layout", ["newest"], indirect=True)
def test_two_configurations_of_one_organization_that_name_one_app_are_said(db: database.Database) -> None:
    configure(db, json.dumps(VALUE))
    configure(db, json.dumps(VALUE | {"inbound_workflow_id": None}), name="second")
    for checked in connection_checks.examine(db, None, 1):
        assert checked.findings[0].seen == "the same endpoint and app as organization 1"


@pytest.mark.parametrize("layout", ["newest"], indirect=True)
def test_the_route_of_each_number_of_a_connection_is_said(db: database.Database) -> None:
    source_id = configure(db, json.dumps(VALUE))
    connect(db, source_id)
    number(db, -source_id, None, address="2078")
    (checked,) = connection_checks.examine(db, None, 1)
    findings = {finding.what: finding for finding in checked.findings}
    assert findings[f"number {NUMBER}"].seen == "workflow 1, websocket client media"
    assert findings["number 2078"].seen == "phone number 2078 has no inbound workflow"
    execute(db, "DELETE FROM telephony_phone_numbers")
    (checked,) = connection_checks.examine(db, None, 1)
    (finding,) = (finding for finding in checked.findings if finding.what == "phone numbers")
    assert (finding.level, finding.seen) == (Level.WARNING, "none that is active: every caller is refused")


@pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True)
def test_the_routes_of_many_connections_take_as_many_statements_as_those_of_one(
    db: database.Database, layout: platform_tables.Layout
) -> None:
    """On the newest layout an organization has many, on the others each has one."""
    asked = []
    for each in range(30 if layout == "newest" else 2):
        organization_id = 1 if layout == "newest" else each + 1
        value = VALUE | {"app_name": f"app{each}", "inbound_workflow_id": None if layout == "newest" else 1}
        source_id = configure(db, json.dumps(value), organization_id, name=f"name {each}")
        connect(db, source_id, organization_id)
        if layout == "newest":
            number(db, -source_id, 1, address=f"30{each}")
        with round_trips.recorded() as trips:
            found = connection_checks.examine(db, None, None)
        asked.append(len(trips))
    assert len(set(asked)) == 1
    assert len(found) == len(asked)
    routes = [finding.seen for one in found for finding in one.findings if finding.what.startswith(("number", "inb"))]
    assert len(routes) == len(asked)
    assert set(routes) <= {"workflow 1, websocket client media", "inbound workflow belongs to another organization"}


@pytest.mark.parametrize(
    ("layout", "odd"),
    [
        ("2026-02", '"inbound_workflow_id": "1"'),
        ("2026-02", '"inbound_workflow_id": "0000000001"'),
        ("2026-02", '"note": "\\u0000"'),
        ("newest", '"note": "\\u0000"'),
    ],
    indirect=["layout"],
)
def test_a_route_that_takes_further_statements_is_judged_by_itself(db: database.Database, odd: str) -> None:
    """An odd spelling of the workflow's id; a text that Postgres cannot look into."""
    connect(db, configure(db, json.dumps(VALUE)[:-1] + f", {odd}}}"))
    (checked,) = connection_checks.examine(db, None, 1)
    routes = [finding.seen for finding in checked.findings if finding.what in ("inbound workflow", f"number {NUMBER}")]
    assert routes == ["workflow 1, websocket client media"]
