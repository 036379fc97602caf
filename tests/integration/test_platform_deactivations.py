"""Configurations of the newest layout are deactivated and taken up again by the platform's columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from devstack.tenants import Tenant, closing_tenant
from scheduler.reconciler import Reconciler
from shared.call.states import State
from shared.platform import dograh
from shared.platform.dograh import deactivations
from shared.process import sealing
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests.dograh_tables import execute, one
from tests.support import calls

pytestmark = [pytest.mark.services, pytest.mark.parametrize("layout", ["newest"], indirect=True)]

REASON = "ari-401: wrong ARI user or password (401)"


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=4)
    made.open()
    yield made
    made.close()


@pytest.fixture
def tenant(database_url: str) -> Iterator[Tenant]:
    with closing_tenant(database_url) as made:
        yield made


def reconciler(db: database.Database) -> Reconciler:
    return Reconciler(db, dograh.Configurations(db), sealing.Sealer(("a key",)))


def deactivate(db: database.Database, tenant: Tenant, row_id: int, reason: str = REASON) -> bool:
    return dograh.Configurations(db).deactivate(
        source_id=-row_id, organization_id=tenant.organization_id, reason=reason
    )


def row(db: database.Database, row_id: int) -> dict[str, Any]:
    columns = "inactive, inactive_reason, inactive_since IS NOT NULL AS since, updated_at > created_at AS is_updated"
    return one(db, f"SELECT {columns} FROM telephony_configurations WHERE id = %s", row_id)


def state(db: database.Database) -> str:
    return str(one(db, "SELECT state FROM ari.connections")["state"])


def reactivate(db: database.Database, row_id: int, **credentials: str) -> None:
    """Do what the platform does for an owner who reactivates a configuration."""
    execute(
        db,
        "UPDATE telephony_configurations SET inactive = false, inactive_since = NULL, inactive_reason = NULL,"
        " credentials = (credentials::jsonb || %s::jsonb)::json WHERE id = %s",
        json.dumps(credentials),
        row_id,
    )


def new_call(db: database.Database, in_state: State) -> None:
    connection = one(db, "SELECT connection_id, version, organization_id FROM ari.connections")
    call = replace(
        calls.RECEIVED,
        state=in_state,
        connection_id=connection["connection_id"],
        connection_version=connection["version"],
        organization_id=connection["organization_id"],
    )
    assert PostgresCalls(db, who="test", prefix="aip-").insert(call, [], None)


def test_a_configuration_is_deactivated_as_the_platform_does_it_and_taken_up_when_it_is_reactivated(
    db: database.Database, tenant: Tenant
) -> None:
    row_id = tenant.configure("http://pbx.example")
    running = reconciler(db)
    running.reconcile()
    assert deactivate(db, tenant, row_id)
    assert row(db, row_id) == {"inactive": True, "inactive_reason": REASON, "since": True, "is_updated": True}
    assert not deactivate(db, tenant, row_id), "it is inactive"
    running.reconcile()
    assert state(db) == "removed"
    reactivate(db, row_id)
    running.reconcile()
    assert state(db) == "active"
    assert one(db, "SELECT count(*) AS it FROM ari.connections")["it"] == 1


@pytest.mark.parametrize("in_state", [State.RECEIVED, State.PREPARED, State.JOINING, State.RINGING])
def test_no_configuration_is_deactivated_under_a_call_that_is_being_set_up(
    db: database.Database, tenant: Tenant, in_state: State
) -> None:
    """Its media socket would be refused by the platform, which looks for the configuration."""
    row_id = tenant.configure("http://pbx.example")
    reconciler(db).reconcile()
    new_call(db, in_state)
    assert not deactivate(db, tenant, row_id)
    assert not row(db, row_id)["inactive"]
    execute(db, "UPDATE ari.calls SET state = 'connected'")
    assert deactivate(db, tenant, row_id)


def test_a_configuration_of_another_organization_is_not_deactivated(db: database.Database, tenant: Tenant) -> None:
    row_id = tenant.configure("http://pbx.example")
    done = dograh.Configurations(db).deactivate(
        source_id=-row_id, organization_id=tenant.organization_id + 1, reason=REASON
    )
    assert not done
    assert not row(db, row_id)["inactive"]


def test_a_long_reason_is_cut_to_what_the_platform_keeps(db: database.Database, tenant: Tenant) -> None:
    row_id = tenant.configure("http://pbx.example")
    assert deactivate(db, tenant, row_id, "ari-connection: " + "x" * 300)
    assert len(row(db, row_id)["inactive_reason"]) == 255


@pytest.mark.parametrize("name", ["", None])
def test_a_configuration_without_a_websocket_client_is_deactivated_at_once(
    db: database.Database, tenant: Tenant, name: str | None
) -> None:
    row_id = tenant.configure("http://pbx.example", ws_client_name=name)
    running = reconciler(db)
    running.reconcile()
    assert row(db, row_id)["inactive_reason"] == deactivations.NO_MEDIA_CLIENT
    running.reconcile()
    assert state(db) == "removed"
    reactivate(db, row_id, ws_client_name="media")
    running.reconcile()
    assert (state(db), row(db, row_id)["inactive"]) == ("active", False)


def test_one_that_could_not_be_deactivated_yet_is_tried_again(db: database.Database, tenant: Tenant) -> None:
    row_id = tenant.configure("http://pbx.example")
    running = reconciler(db)
    running.reconcile()
    new_call(db, State.PREPARED)
    tenant.configure("http://pbx.example", ws_client_name="")
    running.reconcile()
    assert (state(db), row(db, row_id)["inactive"]) == ("active", False)
    execute(db, "UPDATE ari.calls SET state = 'ended'")
    running.reconcile()
    assert row(db, row_id)["inactive"]


@pytest.mark.parametrize("missing", ["ari_endpoint", "app_name", "app_password"])
def test_one_without_an_endpoint_or_credentials_is_refused_and_not_deactivated(
    db: database.Database, tenant: Tenant, missing: str
) -> None:
    row_id = (
        tenant.configure("http://pbx.example", ws_client_name="", **{missing: ""}) if missing != "ari_endpoint" else 0
    )
    row_id = row_id or tenant.configure("", ws_client_name="")
    reconciler(db).reconcile()
    assert (state(db), row(db, row_id)["inactive"]) == ("refused", False)
