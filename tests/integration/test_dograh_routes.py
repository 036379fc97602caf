"""Which workflow serves a call, as the platform's tables are now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from shared import errors
from shared.call import call_settings
from shared.call.states import Cause
from shared.platform import dograh
from shared.platform.ports import NoRoute, Route
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("layout", ["stand-alone", "2026-02"], indirect=True),
]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        yield made


def inbound(db: database.Database, source_id: int) -> Route | NoRoute:
    """Return the route of the organization's calls. Read along with the connection it is the same, or not read."""
    routes = dograh.Routes(db)
    connection_id = dograh_tables.connect(db, source_id)
    route = routes.inbound(connection_id, "5551234")
    try:
        with db.connection() as connection:
            sent = routes.send_inbound(connection, connection_id, "5551234")
        quick = sent()
    except errors.DatabaseRefused:
        return route
    if isinstance(quick, Route):
        assert quick.reserved_run_id
        quick = replace(quick, reserved_run_id=None)
    assert quick in (route, None)
    return route


@pytest.mark.parametrize(
    ("changes", "reason", "cause"),
    [
        ({"inbound_workflow_id": None}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": ""}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": "one"}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": "1; DROP TABLE workflows"}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": "\u0661"}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": -1}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": True}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": [1]}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": 2**31}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": "9" * 5000}, "no inbound workflow configured", Cause.UNALLOCATED),
        ({"inbound_workflow_id": 99}, "inbound workflow does not exist", Cause.UNALLOCATED),
        ({"inbound_workflow_id": 2}, "inbound workflow belongs to another organization", Cause.NOT_ALLOWED),
        ({"inbound_workflow_id": 3}, "inbound workflow is archived", Cause.UNALLOCATED),
        ({"inbound_workflow_id": 4}, "inbound workflow has no user", Cause.NOT_ALLOWED),
        ({"inbound_workflow_id": 5}, "inbound workflow belongs to another organization", Cause.NOT_ALLOWED),
        ({"ws_client_name": None}, "ws_client_name is missing", Cause.NETWORK_OUT_OF_ORDER),
        ({"ws_client_name": ""}, "ws_client_name is missing", Cause.NETWORK_OUT_OF_ORDER),
        ({"ws_client_name": 5}, "ws_client_name is not printable text", Cause.NETWORK_OUT_OF_ORDER),
        ({"ws_client_name": "a\x00"}, "ws_client_name is not printable text", Cause.NETWORK_OUT_OF_ORDER),
        ({"ws_client_name": "\ud800"}, "ws_client_name is not printable text", Cause.NETWORK_OUT_OF_ORDER),
        (
            {"ari_max_call_seconds": "1h"},
            "ari_max_call_seconds is not a number of seconds up to 86400",
            Cause.NETWORK_OUT_OF_ORDER,
        ),
    ],
)
def test_a_call_without_a_route_is_told_why(
    db: database.Database, changes: dict[str, Any], reason: str, cause: Cause
) -> None:
    source_id = configure(db, json.dumps(VALUE | changes))
    route = inbound(db, source_id)
    assert route == NoRoute(reason=reason, hangup_cause=cause)


@pytest.mark.parametrize("workflow_id", [None, "one", 99, 2, 3, 4, 5])
def test_a_call_without_a_workflow_that_may_serve_it_takes_no_id_for_a_run(
    db: database.Database, workflow_id: object
) -> None:
    before = dograh_tables.one(db, "SELECT nextval(pg_get_serial_sequence('workflow_runs', 'id')) AS it")["it"]
    assert isinstance(inbound(db, configure(db, json.dumps(VALUE | {"inbound_workflow_id": workflow_id}))), NoRoute)
    after = dograh_tables.one(db, "SELECT nextval(pg_get_serial_sequence('workflow_runs', 'id')) AS it")["it"]
    assert after == before + 1


@pytest.mark.parametrize("workflow_id", [1, "1", "001"])
def test_a_call_goes_to_the_workflow_configured_now(db: database.Database, workflow_id: object) -> None:
    source_id = configure(db, json.dumps(VALUE | {"inbound_workflow_id": workflow_id}))
    route = inbound(db, source_id)
    terms = call_settings.CallSettings(
        media_client="media", call_seconds=None, dial_template="PJSIP/{number}", caller_id=None
    )
    assert route == Route(workflow_id=1, user_id=1, settings=terms)


def test_a_removed_configuration_has_no_route(db: database.Database) -> None:
    routes = dograh.Routes(db)
    connection_id = dograh_tables.connect(db, configure(db, json.dumps(VALUE)))
    removed = NoRoute(reason="configuration removed", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
    assert routes.inbound(99, "5551234") == removed
    dograh.Configurations(db).remove(1)
    assert routes.inbound(connection_id, "5551234") == removed


def test_a_configuration_saved_anew_serves_before_its_row_was_read(db: database.Database) -> None:
    before = configure(db, json.dumps(VALUE))
    dograh.Configurations(db).remove(1)
    configure(db, json.dumps(VALUE))
    route = inbound(db, before)
    assert isinstance(route, Route), "the connection still has the row that is gone"


@pytest.mark.parametrize("text", ["null", "[]", "5", '"x"'])
def test_an_unreadable_configuration_has_no_route(db: database.Database, text: str) -> None:
    route = inbound(db, configure(db, text))
    assert isinstance(route, NoRoute)
    assert route.reason == "configuration unreadable"
