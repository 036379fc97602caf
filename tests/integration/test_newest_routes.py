"""The newest layout's routes: contract points 5, 7 and 26. Each miss has its own reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from shared.call import call_settings
from shared.call.states import Cause
from shared.platform import dograh
from shared.platform.dograh import workflows
from shared.platform.ports import NoRoute, Route
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import NUMBER, VALUE, configure, connect, execute, number, one, publish

pytestmark = [pytest.mark.services, pytest.mark.parametrize("layout", ["newest"], indirect=True)]

SETTINGS = call_settings.CallSettings(
    media_client="media", call_seconds=None, dial_template="PJSIP/{number}", caller_id=None
)
#: Without a limit of its own an organization has the platform's default.
SERVED = Route(workflow_id=1, user_id=1, settings=SETTINGS, concurrent_calls=10, shares_slots=True)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        for workflow_id in (1, 2, 3, 4):
            publish(made, workflow_id)
        yield made


def routed(db: database.Database, connection_id: int, called: str = NUMBER) -> Route | NoRoute:
    """Return the route of a call. Read along with the connection it is the same, with an id for a run if it is one."""
    routes = dograh.Routes(db)
    route = routes.inbound(connection_id, called)
    with db.connection() as connection:
        sent = routes.send_inbound(connection, connection_id, called)
    quick = sent()
    if isinstance(quick, Route):
        assert quick.reserved_run_id
        quick = replace(quick, reserved_run_id=None)
    assert quick == route
    return route


def refused(db: database.Database, connection_id: int, called: str = NUMBER) -> tuple[str, int]:
    route = routed(db, connection_id, called)
    assert isinstance(route, NoRoute)
    return route.reason, route.hangup_cause


@pytest.fixture
def connection_id(db: database.Database) -> int:
    return connect(db, configure(db, json.dumps(VALUE)))


def test_a_call_is_routed_by_the_canonical_number(db: database.Database, connection_id: int) -> None:
    number(db, 1, 1, address="+4930123456")
    number(db, 1, 1, address="reception")
    for called in (NUMBER, "+49 (30) 123-456", "4930123456", "Reception"):
        assert routed(db, connection_id, called) == SERVED


def test_two_numbers_of_one_configuration_have_a_workflow_each(db: database.Database, connection_id: int) -> None:
    second = one(
        db,
        "INSERT INTO workflows (name, user_id, organization_id, workflow_definition, template_context_variables,"
        " call_disposition_codes, workflow_uuid) VALUES ('more', 1, 1, '{}', '{}', '{}', 'u') RETURNING id",
    )["id"]
    publish(db, second)
    number(db, 1, second, address="2078")
    assert routed(db, connection_id) == SERVED
    assert routed(db, connection_id, "2078") == replace(SERVED, workflow_id=second)


def test_a_number_that_is_not_there_or_not_active_has_no_route(db: database.Database, connection_id: int) -> None:
    reason = "no active phone number {} in this organization"
    assert refused(db, connection_id, "2078") == (reason.format("2078"), Cause.UNALLOCATED)
    assert refused(db, connection_id, "") == (reason.format("unknown"), Cause.UNALLOCATED)
    execute(db, "UPDATE telephony_phone_numbers SET is_active = false")
    assert refused(db, connection_id) == (reason.format(NUMBER), Cause.UNALLOCATED)


def test_the_number_of_another_configuration_has_no_route_here(db: database.Database, connection_id: int) -> None:
    other = -configure(db, json.dumps(VALUE | {"inbound_workflow_id": None}), name="other")
    execute(db, "UPDATE telephony_phone_numbers SET telephony_configuration_id = %s", other)
    assert refused(db, connection_id) == (
        f"phone number {NUMBER} belongs to another configuration, {other}",
        Cause.NOT_ALLOWED,
    )


def test_a_connection_whose_configuration_was_removed_does_not_take_the_one_of_another_connection(
    db: database.Database, connection_id: int
) -> None:
    other = configure(db, json.dumps(VALUE | {"inbound_workflow_id": None}), name="other")
    connect(db, other)
    number(db, -other, 1, address="2078")
    execute(db, "DELETE FROM telephony_configurations WHERE id <> %s", -other)
    assert refused(db, connection_id, "2078") == ("configuration removed", Cause.NETWORK_OUT_OF_ORDER)
    assert dograh.Routes(db).outbound(connection_id=connection_id, workflow_id=1) == workflows.REMOVED


def test_the_number_of_another_organization_has_no_route_here(db: database.Database, connection_id: int) -> None:
    other = -configure(db, json.dumps(VALUE | {"inbound_workflow_id": None}), 2)
    number(db, other, 2, address="2078", organization_id=2)
    assert refused(db, connection_id, "2078")[0] == "no active phone number 2078 in this organization"


def test_a_number_without_a_workflow_has_no_route(db: database.Database, connection_id: int) -> None:
    execute(db, "UPDATE telephony_phone_numbers SET inbound_workflow_id = NULL")
    assert refused(db, connection_id) == (f"phone number {NUMBER} has no inbound workflow", Cause.UNALLOCATED)


@pytest.mark.parametrize(
    ("workflow_id", "reason", "cause"),
    [
        (2, "inbound workflow belongs to another organization", Cause.NOT_ALLOWED),
        (3, "inbound workflow is archived", Cause.UNALLOCATED),
        (4, "inbound workflow has no user", Cause.NOT_ALLOWED),
    ],
)
def test_a_workflow_that_may_not_serve_it_is_told(
    db: database.Database, connection_id: int, workflow_id: int, reason: str, cause: Cause
) -> None:
    execute(db, "UPDATE telephony_phone_numbers SET inbound_workflow_id = %s", workflow_id)
    before = one(db, "SELECT last_value AS it FROM workflow_runs_id_seq")["it"]
    assert refused(db, connection_id) == (reason, cause)
    assert one(db, "SELECT last_value AS it FROM workflow_runs_id_seq")["it"] == before, "no id is used up"


def test_a_workflow_without_a_definition_is_refused_since_its_run_would_be_ended_at_once(
    db: database.Database, connection_id: int
) -> None:
    execute(db, "UPDATE workflows SET released_definition_id = NULL")
    execute(db, "UPDATE workflow_definitions SET is_current = false, status = 'draft'")
    assert refused(db, connection_id) == ("inbound workflow has no definition: publish it", Cause.UNALLOCATED)
    execute(db, "UPDATE workflow_definitions SET is_current = true")
    assert routed(db, connection_id) == SERVED


def test_an_inactive_configuration_has_no_route(db: database.Database, connection_id: int) -> None:
    execute(db, "UPDATE telephony_configurations SET inactive = true")
    assert refused(db, connection_id) == ("configuration inactive", Cause.NETWORK_OUT_OF_ORDER)


def test_a_configuration_that_was_removed_has_no_route(db: database.Database, connection_id: int) -> None:
    execute(db, "DELETE FROM telephony_configurations")
    assert refused(db, connection_id) == ("configuration removed", Cause.NETWORK_OUT_OF_ORDER)


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        ("[]", "configuration unreadable"),
        ('{"ws_client_name": ""}', "ws_client_name is missing"),
        ('{"ws_client_name": "a\\u0000"}', "ws_client_name is not printable text"),
    ],
)
def test_credentials_that_cannot_be_used_are_told(
    db: database.Database, connection_id: int, credentials: str, reason: str
) -> None:
    execute(db, "UPDATE telephony_configurations SET credentials = %s", credentials)
    assert refused(db, connection_id) == (reason, Cause.NETWORK_OUT_OF_ORDER)


def test_a_nul_in_the_credentials_keeps_no_call_from_its_route(db: database.Database, connection_id: int) -> None:
    text = json.dumps(VALUE | {"note": "\x00"})
    execute(db, "UPDATE telephony_configurations SET credentials = %s", text)
    assert routed(db, connection_id) == SERVED


def test_a_configuration_saved_anew_serves_before_its_row_was_read(db: database.Database, connection_id: int) -> None:
    execute(db, "DELETE FROM telephony_configurations")
    configure(db, json.dumps(VALUE))
    assert routed(db, connection_id) == SERVED


def test_the_platform_s_limit_and_the_caller_s_treatment_are_read_along(
    db: database.Database, connection_id: int
) -> None:
    execute(
        db,
        "INSERT INTO organization_configurations (organization_id, key, value)"
        " VALUES (1, 'CONCURRENT_CALL_LIMIT', '{\"value\": 5}')",
    )
    execute(
        db,
        "UPDATE telephony_configurations SET credentials = %s",
        json.dumps(VALUE | {"ari_on_refusal": "continue"}),
    )
    limited = replace(SERVED, concurrent_calls=5, continue_in_dialplan=True)
    assert routed(db, connection_id) == limited
    assert dograh.Routes(db).outbound(connection_id=connection_id, workflow_id=1) == limited
    unlimited = dograh.Routes(db, limits=dograh.CallLimits(setting="off"))
    assert unlimited.inbound(connection_id, NUMBER) == replace(limited, concurrent_calls=None)


@pytest.mark.parametrize(
    ("credentials", "template"),
    [
        ({"dial_string_template": "PJSIP/{number}@trunk"}, "PJSIP/{number}@trunk"),
        ({"dial_string_template": "PJSIP/{number}@a", "ari_dial_template": "PJSIP/{number}@b"}, "PJSIP/{number}@b"),
        ({"dial_string_template": ""}, "PJSIP/{number}"),
    ],
)
def test_an_outbound_call_goes_by_its_connection_s_configuration(
    db: database.Database, connection_id: int, credentials: dict[str, Any], template: str
) -> None:
    execute(db, "UPDATE telephony_configurations SET credentials = %s", json.dumps(VALUE | credentials))
    execute(db, "UPDATE telephony_phone_numbers SET is_default_caller_id = true")
    other = connect(
        db, configure(db, json.dumps(VALUE | {"ws_client_name": "other", "inbound_workflow_id": None}), name="other")
    )
    settings = replace(SETTINGS, dial_template=template, caller_id=NUMBER)
    routes = dograh.Routes(db)
    assert routes.outbound(connection_id=connection_id, workflow_id=1) == replace(SERVED, settings=settings)
    through_other = routes.outbound(connection_id=other, workflow_id=1)
    assert isinstance(through_other, Route)
    assert through_other.settings.media_client == "other"
