"""The newest layout: by which of an organization's connections a call of ours goes out. Contract points 8 and 15."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from shared import errors, outbound_calls
from shared.call.call_requests import CallRequest
from shared.call.limits import Limits
from shared.platform import dograh
from shared.storage import connections, database
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure, execute, one, publish
from tests.support.flows import CommandQueue

pytestmark = [pytest.mark.services, pytest.mark.parametrize("layout", ["newest"], indirect=True)]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    """An organization with two connected configurations, of which the second one is its default."""
    with dograh_tables.filled(database_url) as made:
        publish(made)
        for name in ("first", "second"):
            configure(made, json.dumps(VALUE | {"inbound_workflow_id": None}), name=name)
        execute(made, "UPDATE telephony_configurations SET is_default_outbound = true WHERE id = 2")
        execute(
            made,
            "WITH made AS (INSERT INTO ari.connections (source_id, organization_id, state, version)"
            " SELECT -id, 1, 'active', 1 FROM telephony_configurations ORDER BY id RETURNING connection_id)"
            " INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
            " socket_state) SELECT connection_id, 1, 'http://a', 'a' || connection_id, 'a', 'x', 'connected' FROM made",
        )
        yield made


def through(db: database.Database, workflow_run_id: int | None = None) -> int:
    """Return the configuration by which a call goes out, and that its run names."""
    writer = CallWriter(PostgresCalls(db, who="test", prefix="aip-"), CommandQueue(), Limits(), who="test")
    routes, runs, known = dograh.Routes(db), dograh.Runs(db), connections.Connections(db)
    outbound = outbound_calls.OutboundCalls(writer, routes, runs, known, slots=lambda _: None, prefix="aip-")
    workflow_id = 1 if workflow_run_id is None else None
    call = outbound.request(
        CallRequest(
            organization_id=1,
            number="+4930123",
            request_id="row 12",
            workflow_id=workflow_id,
            workflow_run_id=workflow_run_id,
        )
    )
    row = one(db, "SELECT -source_id AS it FROM ari.connections WHERE connection_id = %s", call.connection_id)
    if workflow_run_id is None:
        assert call.workflow_run_id is not None
        initial = dograh_tables.run(db, call.workflow_run_id)["initial_context"]
        assert initial["telephony_configuration_id"] == row["it"]
    return int(row["it"])


def test_a_call_goes_out_by_the_default_configuration(db: database.Database) -> None:
    assert through(db) == 2


def test_while_the_default_one_is_not_connected_or_not_active_another_one_serves(db: database.Database) -> None:
    execute(db, "UPDATE ari.connection_versions SET socket_state = 'connecting' WHERE connection_id = 2")
    assert through(db) == 1


@pytest.mark.parametrize(("initial", "configuration"), [({"telephony_configuration_id": 1}, 1), ({}, 2), (5, 2)])
def test_a_call_for_a_run_goes_out_by_the_configuration_that_it_names(
    db: database.Database, initial: object, configuration: int
) -> None:
    run_id = one(
        db,
        "INSERT INTO workflow_runs (name, workflow_id, mode, call_type, usage_info, cost_info, initial_context,"
        " gathered_context, annotations, definition_id)"
        " VALUES ('WR', 1, 'ari', 'outbound', '{}', '{}', %s, '{}', '{}', 1) RETURNING id",
        json.dumps(initial),
    )["id"]
    assert through(db, workflow_run_id=run_id) == configuration


def test_another_organization_s_run_names_nothing(db: database.Database) -> None:
    execute(
        db,
        "INSERT INTO workflow_runs (name, workflow_id, mode, call_type, usage_info, cost_info, initial_context,"
        " gathered_context, annotations, definition_id)"
        " VALUES ('WR', 2, 'ari', 'outbound', '{}', '{}', '{\"telephony_configuration_id\": 1}', '{}', '{}', 1)",
    )
    assert dograh.Routes(db).preferred(1, 1) == 2
    with pytest.raises(errors.InvalidRequest):
        through(db, workflow_run_id=1)
