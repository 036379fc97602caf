"""Calls that are asked for, in a real Postgres: one request is one call, whatever its connection has come to since."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from shared import errors, outbound_calls
from shared.call import commands
from shared.call.call_requests import CallRequest
from shared.call.limits import Limits
from shared.platform import dograh
from shared.storage import connections, database
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls

pytestmark = pytest.mark.services

REQUEST = CallRequest(organization_id=1, number="+4930123", request_id="campaign 7, row 12", workflow_id=1)


class CommandQueue:
    """Remembers what was ordered."""

    def __init__(self) -> None:
        self.given: list[commands.Command] = []

    def enqueue(self, orders: Sequence[commands.Command], *, connection_id: int) -> None:
        self.given += orders


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
    """The organization's configuration is written anew, and its connection is another one from here on."""
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
def orders() -> CommandQueue:
    return CommandQueue()


@pytest.fixture
def placing(db: database.Database, orders: CommandQueue) -> outbound_calls.OutboundCalls:
    writer = CallWriter(PostgresCalls(db, who="test", prefix="aip-"), orders, Limits(), who="test")
    return outbound_calls.OutboundCalls(
        writer,
        dograh.Routes(db),
        dograh.Runs(db),
        connections.Connections(db),
        slots=lambda _organization_id: None,
        prefix="aip-",
    )


def test_a_request_is_the_same_call_when_another_connection_has_taken_its_connection_s_place(
    db: database.Database, placing: outbound_calls.OutboundCalls, orders: CommandQueue
) -> None:
    placed = placing.place(REQUEST)
    assert placed.workflow_run_id is not None
    connect(db)
    again = placing.place(REQUEST)
    assert (again.call_id, again.connection_id) == (placed.call_id, 1)
    assert orders.given == [commands.OriginateLeg(call_id=placed.call_id)]
    with db.connection() as connection:
        assert connection.execute("SELECT 1 FROM workflow_runs").rowcount == 1


def test_a_request_is_the_same_call_when_its_connection_is_cut_off(
    db: database.Database, placing: outbound_calls.OutboundCalls
) -> None:
    placed = placing.place(REQUEST)
    with db.connection() as connection:
        connection.execute("UPDATE ari.connection_versions SET socket_state = 'connecting'")
    assert placing.place(REQUEST).call_id == placed.call_id


def test_a_request_does_not_name_a_call_to_another_number(placing: outbound_calls.OutboundCalls) -> None:
    placing.place(REQUEST)
    other = CallRequest(organization_id=1, number="+4930999", request_id=REQUEST.request_id, workflow_id=1)
    with pytest.raises(errors.InvalidRequest, match=r"'campaign 7, row 12' names a call to \+4930123 already"):
        placing.place(other)


def test_a_request_waits_for_an_event_socket_and_not_for_a_connection_that_is_gone(
    db: database.Database, placing: outbound_calls.OutboundCalls, orders: CommandQueue
) -> None:
    with db.connection() as connection:
        connection.execute("UPDATE ari.connection_versions SET socket_state = 'connecting', last_error = 'no route'")
    with pytest.raises(errors.NotConnected, match="connection 1 of organization 1 cannot place calls: no route"):
        placing.place(REQUEST)
    with db.connection() as connection:
        connection.execute("UPDATE ari.connections SET state = 'refused', reason = 'app_name is missing'")
    with pytest.raises(errors.InvalidRequest, match="cannot place calls: app_name is missing"):
        placing.place(REQUEST)
    with db.connection() as connection:
        connection.execute("UPDATE ari.connections SET state = 'removed'")
    with pytest.raises(errors.InvalidRequest, match="organization 1 has no connection"):
        placing.place(REQUEST)
    assert orders.given == []
