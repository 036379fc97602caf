"""The newest layout's configurations: contract points 1 to 4."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from scheduler.reconciler import Reconciler
from shared import errors
from shared.asterisk.endpoint import Configuration
from shared.platform import dograh
from shared.process import sealing
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure, execute, one
from tests.support import round_trips

pytestmark = [pytest.mark.services, pytest.mark.parametrize("layout", ["newest"], indirect=True)]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        yield made


def reconciler(db: database.Database) -> Reconciler:
    return Reconciler(db, dograh.Configurations(db), sealing.Sealer(("a key",)))


def test_every_active_row_of_an_asterisk_is_a_configuration_and_the_stale_rows_are_none(db: database.Database) -> None:
    execute(
        db,
        "INSERT INTO organization_configurations (organization_id, key, value)"
        " VALUES (1, 'TELEPHONY_CONFIGURATION', %s)",
        json.dumps(VALUE),
    )
    first, second = configure(db, json.dumps(VALUE)), configure(db, "{}", name="second")
    third = configure(db, "[5]", 2, name="third")
    other = configure(db, "{}", 2, name="twilio")
    inactive = configure(db, "{}", 2, name="inactive")
    execute(db, "UPDATE telephony_configurations SET provider = 'twilio' WHERE id = %s", -other)
    execute(db, "UPDATE telephony_configurations SET inactive = true WHERE id = %s", -inactive)
    rows = dograh.Configurations(db).all()
    assert [(row.source_id, row.organization_id) for row in rows] == [(first, 1), (second, 1), (third, 2)]
    assert rows[0].read().app == "voiceai"
    for row in rows[1:]:
        with pytest.raises(errors.InvalidConfiguration, match=r"ari_endpoint|app_name|object"):
            row.read()


@pytest.mark.parametrize("stasis_app", ["second", "", None])
def test_the_ari_user_and_the_stasis_app_may_have_different_names(
    db: database.Database, stasis_app: str | None
) -> None:
    configure(db, json.dumps(VALUE | {"stasis_app_name": stasis_app}))
    (row,) = dograh.Configurations(db).all()
    assert row.read() == Configuration(
        endpoint="http://pbx.example", app=stasis_app or "voiceai", user="voiceai", password="hunter2"
    )


def test_configurations_of_one_organization_on_one_asterisk_are_connections_by_their_apps(
    db: database.Database,
) -> None:
    for app in ("one", "two", "three"):
        configure(db, json.dumps(VALUE | {"stasis_app_name": app, "inbound_workflow_id": None}), name=app)
    running = reconciler(db)
    running.reconcile()
    with db.connection() as connection:
        rows = connection.execute(
            "SELECT v.app, v.ari_user, c.source_id, c.state FROM ari.connections c"
            " JOIN ari.connection_versions v USING (connection_id, version) ORDER BY c.connection_id"
        ).fetchall()
    assert sorted((row["app"], row["ari_user"], row["state"]) for row in rows) == [
        ("one", "voiceai", "active"), ("three", "voiceai", "active"), ("two", "voiceai", "active"),
    ]  # fmt: skip


def test_a_row_that_becomes_inactive_is_disconnected_and_one_that_is_active_again_goes_on(
    db: database.Database,
) -> None:
    configure(db, json.dumps(VALUE))
    configure(db, json.dumps(VALUE | {"stasis_app_name": "two", "inbound_workflow_id": None}), name="two")
    running = reconciler(db)
    running.reconcile()
    execute(db, "UPDATE telephony_configurations SET inactive = true WHERE id = 1")
    running.reconcile()
    state = "SELECT state, version, connection_id FROM ari.connections WHERE source_id = -1"
    assert one(db, state)["state"] == "removed"
    execute(db, "UPDATE telephony_configurations SET inactive = false, inactive_reason = NULL WHERE id = 1")
    running.reconcile()
    assert one(db, state) == {"state": "active", "version": 1, "connection_id": one(db, state)["connection_id"]}
    assert one(db, "SELECT count(*) AS it FROM ari.connections")["it"] == 2


def test_another_configuration_does_not_take_the_place_of_one_that_is_inactive(db: database.Database) -> None:
    """It is the only active one of its organization, and the inactive one is to be reactivated."""
    configure(db, json.dumps(VALUE))
    running = reconciler(db)
    running.reconcile()
    execute(db, "UPDATE telephony_configurations SET inactive = true WHERE id = 1")
    running.reconcile()
    configure(db, json.dumps(VALUE | {"stasis_app_name": "two", "inbound_workflow_id": None}), name="two")
    running.reconcile()
    execute(db, "UPDATE telephony_configurations SET inactive = false, inactive_reason = NULL WHERE id = 1")
    running.reconcile()
    with db.connection() as connection:
        rows = connection.execute("SELECT connection_id, source_id, state FROM ari.connections ORDER BY 1").fetchall()
    assert [tuple(row.values()) for row in rows] == [(1, -1, "active"), (2, -2, "active")]


def test_of_several_rows_saved_anew_each_connection_goes_on_under_the_one_of_its_app(db: database.Database) -> None:
    for app in ("one", "two"):
        configure(db, json.dumps(VALUE | {"stasis_app_name": app, "inbound_workflow_id": None}), name=app)
    running = reconciler(db)
    running.reconcile()
    apps = "SELECT json_object_agg(v.app, connection_id) AS it FROM ari.connection_versions v"
    before = one(db, apps)["it"]
    execute(db, "DELETE FROM telephony_configurations")
    for app in ("two", "one"):
        configure(db, json.dumps(VALUE | {"stasis_app_name": app, "inbound_workflow_id": None}), name=app)
    running.reconcile()
    assert one(db, apps)["it"] == before
    rows = one(
        db,
        "SELECT json_object_agg(t.credentials->>'stasis_app_name', c.connection_id) AS it FROM ari.connections c"
        " JOIN telephony_configurations t ON t.id = -c.source_id",
    )
    assert rows["it"] == before


def test_a_thousand_configurations_of_five_hundred_organizations_are_read_by_one_statement(
    db: database.Database,
) -> None:
    execute(
        db,
        "INSERT INTO organizations (provider_id) SELECT 'many' || n FROM generate_series(1, 500) n",
    )
    execute(
        db,
        "INSERT INTO telephony_configurations (organization_id, name, provider, credentials) SELECT o.id, app, 'ari',"
        " json_build_object('ari_endpoint', 'http://pbx' || o.id, 'app_name', 'u', 'stasis_app_name', app,"
        " 'app_password', 'p', 'ws_client_name', 'm') FROM organizations o, unnest(ARRAY['a', 'b']) AS app"
        " WHERE o.provider_id LIKE 'many%%'",
    )
    running = reconciler(db)
    running.reconcile()
    assert one(db, "SELECT count(*) AS it FROM ari.connections WHERE state = 'active'")["it"] == 1000
    # What it wrote itself is read once more; then nothing has changed.
    with round_trips.recorded() as trips:
        running.reconcile()
    assert len(trips) <= 10
    with round_trips.recorded() as trips:
        running.reconcile()
    assert len(trips) <= 5
    execute(db, "UPDATE telephony_configurations SET name = name || 'x'")
    execute(db, "UPDATE telephony_configurations SET credentials = %s WHERE id = 1", json.dumps(VALUE))
    with round_trips.recorded() as trips:
        running.reconcile()
    assert len(trips) <= 15, "one row has changed"


def test_a_configuration_is_written_with_its_numbers_and_the_first_one_is_the_default(db: database.Database) -> None:
    configurations = dograh.Configurations(db)
    value = VALUE | {"from_numbers": ["+49 30 123456", "Reception"]}
    configurations.write(1, value, replace=False)
    row = one(db, "SELECT * FROM telephony_configurations")
    assert (row["name"], row["provider"], row["is_default_outbound"], row["inactive"]) == (
        "Default",
        "ari",
        True,
        False,
    )
    assert row["credentials"] == {
        name: VALUE[name] for name in ("ari_endpoint", "app_name", "app_password", "ws_client_name")
    }
    with db.connection() as connection:
        numbers = connection.execute(
            "SELECT address, address_normalized, address_type, inbound_workflow_id, is_default_caller_id"
            " FROM telephony_phone_numbers ORDER BY id"
        ).fetchall()
    assert [tuple(number.values()) for number in numbers] == [
        ("+49 30 123456", "+4930123456", "pstn", 1, True),
        ("Reception", "reception", "sip_extension", 1, False),
    ]
    (read,) = configurations.all()
    assert configurations.numbers([read]) == {read.source_id: ["+4930123456", "reception"]}


def test_a_configuration_is_written_once_unless_replaced_or_named_otherwise(db: database.Database) -> None:
    configurations = dograh.Configurations(db)
    configurations.write(1, VALUE, replace=False)
    with pytest.raises(errors.InvalidConfiguration, match="already has a configuration 'Default'"):
        configurations.write(1, VALUE, replace=False)
    execute(db, "UPDATE telephony_configurations SET inactive = true, inactive_reason = 'x', inactive_since = now()")
    configurations.write(1, VALUE | {"app_name": "again"}, replace=True)
    row = one(db, "SELECT credentials->>'app_name' AS app, inactive, inactive_reason FROM telephony_configurations")
    assert row == {"app": "again", "inactive": False, "inactive_reason": None}
    configurations.write(1, VALUE | {"stasis_app_name": "two"}, replace=False, name="second")
    assert one(db, "SELECT count(*) FILTER (WHERE is_default_outbound) AS it FROM telephony_configurations")["it"] == 1
    with pytest.raises(errors.InvalidConfiguration, match="several configurations: --name 'Default', 'second'"):
        configurations.remove(1)
    configurations.remove(1, name="second")
    configurations.remove(1)
    with pytest.raises(errors.InvalidConfiguration, match="no ARI configuration"):
        configurations.remove(1)


def test_a_replaced_configuration_keeps_the_fields_that_are_the_platform_s_own(db: database.Database) -> None:
    configurations = dograh.Configurations(db)
    configurations.write(1, VALUE | {"ari_on_refusal": "continue"}, replace=False)
    theirs = {"dial_string_template": "PJSIP/{number}@trunk", "ari_on_refusal": "continue"}
    execute(db, "UPDATE telephony_configurations SET credentials = %s", json.dumps(theirs))
    configurations.write(1, VALUE, replace=True)
    kept = json.loads(one(db, "SELECT credentials::text AS it FROM telephony_configurations")["it"])
    assert kept["dial_string_template"] == theirs["dial_string_template"]
    assert kept["app_password"] == VALUE["app_password"]
    assert "ari_on_refusal" not in kept, "it is ours, and was left out"
    # What cannot be read is replaced.
    for unreadable in ("[]", '{"dial_string_template": "\\u0000"}'):
        execute(db, "UPDATE telephony_configurations SET credentials = %s", unreadable)
        configurations.write(1, VALUE, replace=True)
        row = one(db, "SELECT credentials::text AS it FROM telephony_configurations")
        assert json.loads(row["it"]) == {name: kept[name] for name in kept if name != "dial_string_template"}


def test_neither_another_provider_s_configuration_nor_another_one_s_number_is_taken_over(
    db: database.Database,
) -> None:
    configurations = dograh.Configurations(db)
    configurations.write(1, VALUE | {"from_numbers": ["2077"]}, replace=False)
    with pytest.raises(errors.InvalidConfiguration, match="2077 belongs to another configuration"):
        configurations.write(1, VALUE | {"from_numbers": ["2077"]}, replace=False, name="second")
    assert one(db, "SELECT count(*) AS it FROM telephony_configurations")["it"] == 1
    execute(db, "UPDATE telephony_configurations SET provider = 'twilio'")
    with pytest.raises(errors.InvalidConfiguration, match="if it is one for an Asterisk"):
        configurations.write(1, VALUE, replace=True)


def test_a_configuration_is_not_written_for_another_organization_s_workflow(db: database.Database) -> None:
    with pytest.raises(errors.InvalidConfiguration, match="has no workflow 2"):
        dograh.Configurations(db).write(1, VALUE | {"inbound_workflow_id": 2}, replace=False)
    with pytest.raises(errors.InvalidConfiguration, match="no organization 99"):
        dograh.Configurations(db).write(99, VALUE, replace=False)
