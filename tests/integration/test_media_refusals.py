"""What makes the voice agent refuse a media socket, as far as the platform's rows tell: contract points 11 and 12."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from devstack import platform_tables
from shared.call.calls import Call
from shared.platform import dograh
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure, connect, execute, publish
from tests.support.calls import RECEIVED

pytestmark = [pytest.mark.services, pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True)]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made)
        yield made


@pytest.fixture
def call(db: database.Database) -> Call:
    connection_id = connect(db, configure(db, json.dumps(VALUE)))
    call = replace(RECEIVED, organization_id=1, connection_id=connection_id, workflow_id=1, user_id=1)
    with db.transaction() as connection:
        return replace(call, workflow_run_id=dograh.Runs(db).create(connection, call))


def causes(db: database.Database, call: Call, *, sends_token: bool = True) -> str:
    return dograh.MediaRefusals(db, sends_token=sends_token).causes(call)


def test_of_a_run_that_waits_nothing_is_known(db: database.Database, call: Call, layout: str) -> None:
    assert causes(db, call) == ""
    assert causes(db, call, sends_token=False) == ("no media token was sent" if layout == "newest" else "")


@pytest.mark.parametrize(
    ("change", "cause"),
    [("state = 'running'", "its run is running"), ("is_completed = true", "its run is completed")],
)
def test_a_run_that_does_not_wait_any_more_is_a_cause(
    db: database.Database, call: Call, change: str, cause: str
) -> None:
    execute(db, f"UPDATE workflow_runs SET {change}")
    assert causes(db, call) == cause
    execute(db, "DELETE FROM workflow_runs")
    assert causes(db, call) == "its run is gone"


def test_a_run_without_a_definition_and_a_configuration_that_is_gone_are_causes(
    db: database.Database, call: Call, layout: str
) -> None:
    execute(db, "UPDATE workflow_runs SET definition_id = NULL")
    dograh.Configurations(db).remove(1)
    undefined = "its run has no definition, " if layout == "newest" else ""
    assert causes(db, call) == f"{undefined}configuration removed"
