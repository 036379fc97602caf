"""One app instance with several connections: its calls, its owner and its credentials, on a real Postgres."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.states import Direction, State
from shared.storage import database, migrations
from shared.storage.connections import Connections
from shared.storage.postgres_calls import PostgresCalls

pytestmark = pytest.mark.services

#: Beside connection 1 of organization 3: one of the same organization, one of another, and one of another app.
MORE = """
WITH made AS (
    INSERT INTO ari.connections (source_id, organization_id, state, version)
    VALUES (11, 3, 'active', 1), (12, 4, 'active', 1), (13, 3, 'active', 1) RETURNING connection_id, source_id
)
INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password, accepted_at)
SELECT connection_id, 1, 'http://a', CASE source_id WHEN 13 THEN 'b' ELSE 'a' END, 'a', 'of ' || source_id, now()
FROM made RETURNING connection_id
"""


@pytest.fixture
def others(db: database.Database) -> tuple[int, int, int]:
    """The connections of the same organization, of another one, and of another app; connection 1 has version 1."""
    with db.connection() as connection:
        connection.execute("UPDATE ari.connections SET version = 1")
        same, another, elsewhere = (row["connection_id"] for row in connection.execute(MORE).fetchall())
    return same, another, elsewhere


def execute(db: database.Database, query: str, *values: object) -> None:
    with db.connection() as connection:
        connection.execute(query, values)


def of(call: Call, connection_id: int, **changes: Any) -> Call:
    """Return a call of the same entry, by another connection."""
    return replace(call, call_id=uuid.uuid4(), connection_id=connection_id, connection_version=1, **changes)


def test_an_entry_of_a_channel_has_one_open_call(
    db: database.Database, store: PostgresCalls, make: Callable[..., Call], others: tuple[int, int, int]
) -> None:
    same, another, elsewhere = others
    call = make("1.1")
    for connection_id in (same, another):
        assert not store.insert(of(call, connection_id), [], None)
    assert store.insert(of(call, elsewhere), [], None)
    assert store.insert(of(call, same, entry=2), [], None)
    execute(db, "UPDATE ari.calls SET state = 'ended' WHERE call_id = %s", call.call_id)
    assert not store.insert(of(call, same), [], None), "a late event of an entry that is over is no new call"
    assert store.insert(of(call, another, organization_id=4), [], None)
    assert not store.insert(of(call, same), [], None)


def test_calls_are_found_by_their_app_instance_within_the_organization(
    store: PostgresCalls, make: Callable[..., Call], others: tuple[int, int, int]
) -> None:
    same, another, elsewhere = others
    call = make("1.1")
    dialled = make("o1", request_id="r", direction=Direction.OUTBOUND, channel_created="")
    transferred = make("1.2", state=State.CONNECTED, destination_id="d1")
    for connection_id in (1, same):
        assert store.last_entry(connection_id, "1.1", "c") == call
        assert store.originated(connection_id, "o1") == dialled
        assert store.transferred(connection_id, "d1") == transferred
        assert store.originated_all(connection_id, ["o1"]) == {"o1": dialled}
        found = store.open_calls(ConnectionVersion(connection_id, 1))
        assert {one.call.call_id for one in found} == {call.call_id, dialled.call_id, transferred.call_id}
    for connection_id in (another, elsewhere):
        assert store.last_entry(connection_id, "1.1", "c") is None
        assert store.originated(connection_id, "o1") is None
        assert store.transferred(connection_id, "d1") is None
        assert store.originated_all(connection_id, ["o1"]) == {}
        assert store.open_calls(ConnectionVersion(connection_id, 1)) == []


def test_a_call_that_was_written_without_an_app_instance_is_found_and_is_the_only_one_of_its_connection(
    db: database.Database, store: PostgresCalls, make: Callable[..., Call], others: tuple[int, int, int]
) -> None:
    call = make("1.1")
    execute(db, "UPDATE ari.calls SET app_instance = NULL")
    for connection_id in (1, others[0]):
        assert store.last_entry(connection_id, "1.1", "c") == call
    assert not store.insert(of(call, 1), [], None)


@pytest.mark.parametrize(
    ("state", "served_by", "is_anothers"),
    [("active", "itself", False), ("removed", "the other", False), ("refused", "the other", False)],
)
def test_new_callers_of_a_connection_are_for_the_one_that_followed_it(
    db: database.Database, others: tuple[int, int, int], state: str, served_by: str, *, is_anothers: bool
) -> None:
    execute(db, "UPDATE ari.connections SET state = %s WHERE connection_id = 1", state)
    target = Connections(db).inbound_target(ConnectionVersion(1, 1))
    assert target is not None
    owner = 1 if served_by == "itself" else others[0]
    assert (target.served_by, target.is_anothers) == (ConnectionVersion(owner, 1), is_anothers)
    assert target.organization_id == 3


def test_new_callers_of_an_app_instance_that_is_another_organization_s_are_not_ours(
    db: database.Database, others: tuple[int, int, int]
) -> None:
    same, another, _ = others
    execute(db, "UPDATE ari.connections SET state = 'removed' WHERE connection_id IN (1, %s)", same)
    target = Connections(db).inbound_target(ConnectionVersion(1, 1))
    assert target is not None
    assert (target.served_by, target.is_anothers, target.organization_id) == (None, True, 3)
    # Until its Asterisk has accepted it, it may be a wrong guess: callers are refused, and not left in silence.
    execute(db, "UPDATE ari.connection_versions SET accepted_at = NULL WHERE connection_id = %s", another)
    target = Connections(db).inbound_target(ConnectionVersion(1, 1))
    assert target is not None
    assert (target.served_by, target.is_anothers, target.reason) == (None, False, "connection removed: ")


def test_connections_of_one_organization_share_an_app(db: database.Database, others: tuple[int, int, int]) -> None:
    same, another, elsewhere = others
    connections = Connections(db)
    assert [connections.share_an_app(1, other) for other in (1, same, another, elsewhere)] == [True, True, False, False]


def test_a_call_uses_the_credentials_of_the_connection_that_is_connected(
    db: database.Database, others: tuple[int, int, int]
) -> None:
    same, another, _ = others
    connections = Connections(db)
    execute(db, "UPDATE ari.connection_versions SET socket_state = 'connected' WHERE connection_id = %s", another)
    found = connections.details(ConnectionVersion(1, 1))
    assert found is not None
    assert (found.sealed_password, found.credentials_of) == ("x", 1)
    execute(db, "UPDATE ari.connection_versions SET socket_state = 'connected' WHERE connection_id = %s", same)
    found = connections.details(ConnectionVersion(1, 1))
    assert found is not None
    assert (found.sealed_password, found.credentials_of) == ("of 11", 0)


def test_two_calls_of_an_entry_that_are_there_already_do_not_stop_the_migration(
    empty_database_url: str,
) -> None:
    migrations.upgrade(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER calls_app_instance ON ari.calls")
        connection.execute("DROP INDEX ari.calls_open_entry, ari.calls_by_channel")
        connection.execute("ALTER TABLE ari.calls DROP COLUMN app_instance")
        connection.execute("UPDATE ari.alembic_version SET version_num = '0006_installation'")
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 3, 'removed'), (2, 3, 'active')"
        )
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " VALUES (1, 1, 'http://a', 'a', 'a', 'x'), (2, 1, 'http://a', 'a', 'a', 'x')"
        )
        db = database.Database(empty_database_url, size=1)
        db.open()
        store = PostgresCalls(db, who="test", prefix="")
        now = store.now()
        call = Call(
            call_id=uuid.uuid4(), connection_id=1, connection_version=1, organization_id=3, channel_id="1.1",
            channel_created="c", entry=1, direction=Direction.INBOUND, state=State.CONNECTED, received_at=now,
            state_since=now, deadline_at=now + timedelta(hours=1),
        )  # fmt: skip
        later = of(call, 2)
        assert store.insert(call, [], None)
        assert store.insert(later, [], None)
        migrations.upgrade(empty_database_url)
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ari.calls_open_entry'::regclass"
        assert connection.execute(valid).fetchone() == (True,)
        # Both go on, and each is found.
        assert store.load(call.call_id) == call
        assert store.last_entry(2, "1.1", "c") in {call, later}
        db.close()
