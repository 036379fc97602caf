"""Requests for outbound calls on a real Postgres: one request is one call, even if its connection is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shared import errors, outbound_calls
from shared.call import commands
from shared.call.call_requests import CallRequest
from shared.call.limits import Limits
from shared.platform import dograh
from shared.storage import connections, database
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from tests.support.flows import CommandQueue

pytestmark = pytest.mark.services

REQUEST = CallRequest(organization_id=1, number="+4930123", request_id="campaign 7, row 12", workflow_id=1)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=4)
    made.open()
    with made.connection() as connection:
        connection.execute("INSERT INTO organizations (provider_id, created_at) VALUES ('o1', now())")
        connection.execute("INSERT INTO users (provider_id, created_at) VALUES ('u1', now())")
        connection.execute(
            "INSERT INTO workflows (name, user_id, organization_id, workflow_definition, template_context_variables,"
            " call_disposition_codes) VALUES ('w', 1, 1, '{}', '{}', '{}')"
        )
    connect(made)
    yield made
    made.close()


def connect(db: database.Database) -> None:
    """Write the organization's configuration again: from here on it has another connection."""
    with db.transaction() as connection:
        connection.execute("UPDATE ari.connections SET state = 'removed', reason = 'configuration removed'")
        connection.execute("DELETE FROM organization_configurations")
        connection.execute(
            "INSERT INTO organization_configurations (organization_id, key, value, created_at) VALUES"
            ' (1, \'TELEPHONY_CONFIGURATION\', \'{"provider": "ari", "ws_client_name": "media"}\', now())'
        )
        connection.execute(
            "WITH made AS (INSERT INTO ari.connections (source_id, organization_id, state, version)"
            " SELECT max(id), 1, 'active', 1 FROM organization_configurations RETURNING connection_id)"
            " INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
            " socket_state) SELECT connection_id, 1, 'http://a', 'a', 'a', 'x', 'connected' FROM made"
        )


@pytest.fixture
def outbound(db: database.Database, queue: CommandQueue) -> outbound_calls.OutboundCalls:
    writer = CallWriter(PostgresCalls(db, who="test", prefix="aip-"), queue, Limits(), who="test")
    return outbound_calls.OutboundCalls(
        writer,
        dograh.Routes(db),
        dograh.Runs(db),
        connections.Connections(db),
        slots=lambda _organization_id: None,
        prefix="aip-",
    )


def test_a_request_is_the_same_call_after_its_connection_was_replaced(
    db: database.Database, outbound: outbound_calls.OutboundCalls, queue: CommandQueue
) -> None:
    requested = outbound.request(REQUEST)
    assert requested.workflow_run_id is not None
    connect(db)
    again = outbound.request(REQUEST)
    assert (again.call_id, again.connection_id) == (requested.call_id, 1)
    assert queue.enqueued == [commands.OriginateLeg(call_id=requested.call_id)]
    with db.connection() as connection:
        assert connection.execute("SELECT 1 FROM workflow_runs").rowcount == 1


def test_a_request_is_the_same_call_while_its_connection_is_down(
    db: database.Database, outbound: outbound_calls.OutboundCalls
) -> None:
    requested = outbound.request(REQUEST)
    with db.connection() as connection:
        connection.execute("UPDATE ari.connection_versions SET socket_state = 'connecting'")
    assert outbound.request(REQUEST).call_id == requested.call_id


def test_a_request_that_two_workers_have_at_once_is_one_call_whatever_connection_each_takes(
    db: database.Database, outbound: outbound_calls.OutboundCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them stands still, counts as dead, and goes on when another one has served the request."""
    route = dograh.Routes.outbound
    served: list[Any] = []

    def after_the_other(routes: dograh.Routes, *, connection_id: int, workflow_id: int) -> Any:
        if not served:
            served.append(None)
            connect(db)
            served.append(outbound.request(REQUEST))
        return route(routes, connection_id=connection_id, workflow_id=workflow_id)

    monkeypatch.setattr(dograh.Routes, "outbound", after_the_other)
    assert outbound.request(REQUEST) == served[1]
    with db.connection() as connection:
        assert connection.execute("SELECT 1 FROM ari.calls").rowcount == 1
        assert connection.execute("SELECT 1 FROM workflow_runs").rowcount == 1


def test_a_request_does_not_name_a_call_to_another_number(outbound: outbound_calls.OutboundCalls) -> None:
    outbound.request(REQUEST)
    other = CallRequest(organization_id=1, number="+4930999", request_id=REQUEST.request_id, workflow_id=1)
    with pytest.raises(errors.InvalidRequest, match=r"'campaign 7, row 12' names a call to \+4930123 already"):
        outbound.request(other)


def test_a_request_waits_for_an_event_socket_and_not_for_a_connection_that_is_gone(
    db: database.Database, outbound: outbound_calls.OutboundCalls, queue: CommandQueue
) -> None:
    with db.connection() as connection:
        connection.execute("UPDATE ari.connection_versions SET socket_state = 'connecting', last_error = 'no route'")
    with pytest.raises(errors.NotConnected, match="connection 1 of organization 1 cannot place calls: no route"):
        outbound.request(REQUEST)
    with db.connection() as connection:
        connection.execute("UPDATE ari.connections SET state = 'refused', reason = 'app_name is missing'")
    with pytest.raises(errors.InvalidRequest, match="cannot place calls: app_name is missing"):
        outbound.request(REQUEST)
    with db.connection() as connection:
        connection.execute("UPDATE ari.connections SET state = 'removed'")
    with pytest.raises(errors.InvalidRequest, match="organization 1 has no connection"):
        outbound.request(REQUEST)
    assert queue.enqueued == []
