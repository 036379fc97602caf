"""The newest layout's runs: contract points 6, 7, 8, 9 and 15."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shared.call.calls import Call
from shared.call.stasis_args import RunArgs
from shared.call.states import Cause
from shared.platform import dograh
from shared.platform.ports import NoRoute, Route
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure, connect, execute, one, publish, run
from tests.support.calls import RECEIVED

pytestmark = pytest.mark.services

ARGS = RunArgs(workflow_run_id=1, workflow_id=1)


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> str:
    """Unless a test is parametrized."""
    return str(getattr(request, "param", "newest"))


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made)
        yield made


@pytest.fixture
def call(db: database.Database) -> Call:
    """A call of the organization's second configuration."""
    if not dograh_tables.is_newest(db):
        return replace(RECEIVED, organization_id=1, workflow_id=1, user_id=1)
    configure(db, json.dumps(VALUE | {"inbound_workflow_id": None}))
    second = configure(db, json.dumps(VALUE | {"stasis_app_name": "second"}), name="second")
    return replace(
        RECEIVED, organization_id=1, connection_id=connect(db, second), workflow_id=1, user_id=1, called_number="2077"
    )


def created(db: database.Database, call: Call, *, reserved_id: int | None = None) -> int:
    with db.transaction() as connection:
        return dograh.Runs(db).create(connection, call, reserved_id=reserved_id)


@pytest.mark.parametrize("reserved_id", [None, 77])
def test_a_run_is_written_as_the_platform_reads_it(db: database.Database, call: Call, reserved_id: int | None) -> None:
    row = run(db, created(db, call, reserved_id=reserved_id))
    assert row.pop("id") == (reserved_id or 1)
    assert abs(row.pop("created_at") - datetime.now(UTC)) < timedelta(seconds=10)
    assert row == {
        "name": f"ARI Inbound {call.caller_number}",
        "workflow_id": 1,
        "definition_id": 1,
        "mode": "ari",
        "call_type": "inbound",
        "state": "initialized",
        "is_completed": False,
        "storage_backend": "s3",
        "usage_info": {},
        "cost_info": {},
        "initial_context": {
            "caller_number": call.caller_number,
            "called_number": "2077",
            "direction": "inbound",
            "provider": "ari",
            "telephony_configuration_id": 2,
            "external_pbx_call": None,
        },
        "gathered_context": {"call_id": call.channel_id, "provider": "ari", "channel_name": call.channel_name},
        "logs": {},
        "annotations": {},
        "extra": {},
        "campaign_id": None,
        "queued_run_id": None,
        "recording_url": None,
        "transcript_url": None,
        "public_access_token": None,
    }


def test_a_run_pins_the_released_definition_before_the_current_one(db: database.Database, call: Call) -> None:
    released = publish(db)
    execute(db, "UPDATE workflow_definitions SET is_current = (id <> %s)", released)
    assert run(db, created(db, call))["definition_id"] == released
    execute(db, "UPDATE workflows SET released_definition_id = NULL")
    assert run(db, created(db, call))["definition_id"] == 1


def test_a_caller_and_a_number_that_are_missing_are_unknown(db: database.Database, call: Call) -> None:
    initial = run(db, created(db, replace(call, caller_number="unknown", called_number="")))["initial_context"]
    assert (initial["caller_number"], initial["called_number"]) == ("unknown", "unknown")


def waiting(db: database.Database, definition_id: int | None) -> None:
    """A run as the platform's API begins one for a call that it originates."""
    execute(
        db,
        "INSERT INTO workflow_runs (name, workflow_id, mode, call_type, is_completed, usage_info, cost_info,"
        " initial_context, gathered_context, annotations, definition_id) VALUES ('WR', 1, 'ari', 'outbound', %s, '{}',"
        " '{}', '{\"provider\": \"ari\", \"telephony_configuration_id\": 2}', '{}', '{}', %s)",
        None,
        definition_id,
    )


def attached(db: database.Database, call: Call) -> Route | NoRoute:
    with db.transaction() as connection:
        return dograh.Runs(db).attach(connection, call, ARGS)


def test_a_leg_without_a_user_gets_its_run_and_the_settings_of_the_configuration_it_came_by(
    db: database.Database, call: Call
) -> None:
    waiting(db, 1)
    execute(
        db,
        "UPDATE telephony_configurations SET credentials = %s WHERE id = 2",
        json.dumps(VALUE | {"ws_client_name": "second"}),
    )
    route = attached(db, call)
    assert isinstance(route, Route)
    assert (route.workflow_id, route.user_id, route.settings.media_client) == (1, 1, "second")
    row = run(db, 1)
    assert row["gathered_context"]["call_id"] == call.channel_id
    assert row["initial_context"] == {"provider": "ari", "telephony_configuration_id": 2}, "it is the API's"


@pytest.mark.parametrize(
    ("initial", "numbers"),
    [
        ({"caller_number": "+4930222", "called_number": "+4930111"}, ("+4930222", "+4930111")),
        ({"phone_number": "+4930111"}, (None, "+4930111")),
        ({"called_number": 5, "caller_number": "no\u0000 number", "phone_number": "x" * 100}, (None, None)),
        ({}, (None, None)),
        ([], (None, None)),
    ],
)
def test_the_numbers_of_a_call_of_the_platform_are_those_that_its_run_names(
    db: database.Database, call: Call, initial: object, numbers: tuple[str | None, str | None]
) -> None:
    waiting(db, 1)
    execute(db, "UPDATE workflow_runs SET initial_context = %s", json.dumps(initial))
    route = attached(db, call)
    assert isinstance(route, Route)
    assert (route.caller_number, route.called_number) == numbers


def test_a_run_of_a_draft_is_served_as_it_is(db: database.Database, call: Call) -> None:
    """The platform's test calls: nothing is published yet."""
    execute(db, "UPDATE workflows SET released_definition_id = NULL")
    execute(db, "UPDATE workflow_definitions SET is_current = false, status = 'draft'")
    waiting(db, 1)
    assert isinstance(attached(db, call), Route)
    assert run(db, 1)["definition_id"] == 1


def test_a_run_without_a_definition_is_refused(db: database.Database, call: Call) -> None:
    waiting(db, None)
    assert attached(db, call) == NoRoute(
        reason="run 1 has no definition: the voice agent would end its call", hangup_cause=Cause.REJECTED
    )


def test_a_run_waits_for_its_call_by_the_channel_that_the_platform_wrote(db: database.Database, call: Call) -> None:
    waiting(db, 1)
    execute(db, 'UPDATE workflow_runs SET gathered_context = \'{"call_id": "leg"}\'')
    with db.transaction() as connection:
        assert dograh.Runs(db).waiting(connection, organization_id=1, channel_id="leg") == 1
        assert dograh.Runs(db).waiting(connection, organization_id=2, channel_id="leg") is None


@pytest.mark.parametrize("layout", ["stand-alone", "2026-02", "newest"], indirect=True)
def test_connected_runs_are_completed_by_whom_the_tables_name_unless_it_is_set(
    db: database.Database, call: Call, layout: str
) -> None:
    talked = replace(call, connected_at=call.received_at, workflow_run_id=created(db, call))
    dograh.Runs(db).end(talked, media_id="m", bridge_id="b")
    assert one(db, "SELECT is_completed AS it FROM workflow_runs")["it"] is (layout == "stand-alone")
    dograh.Runs(db, run_completion="ours").end(talked, media_id="m", bridge_id="b")
    assert one(db, "SELECT is_completed AS it FROM workflow_runs")["it"] is True
