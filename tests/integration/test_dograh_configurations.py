"""The platform's telephony configurations, and values in them that cannot be expected."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from shared import errors
from shared.platform import dograh
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure, execute, one

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("layout", ["stand-alone", "2026-02"], indirect=True),
]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        yield made


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        '"ari"',
        "5",
        "{}",
        '["ari"]',
        '{"provider":"twilio"}',
        '{"provider":null}',
        '{"provider":"\\u0000"}',
    ],
)
def test_other_values_do_not_keep_ours_from_being_read(db: database.Database, text: str) -> None:
    configure(db, text, 2)
    source_id = configure(db, json.dumps(VALUE))
    (row,) = dograh.Configurations(db).all()
    assert row == dograh.ConfigurationRow(source_id=source_id, organization_id=1, value=VALUE)


def test_values_that_postgres_can_store_and_jsonb_cannot_are_read(db: database.Database) -> None:
    configure(db, '{"provider":"ari","app_name":"a\\u0000b","app_password":"\\ud800","app_password":"last"}')
    (row,) = dograh.Configurations(db).all()
    assert row.value == {"provider": "ari", "app_name": "a\x00b", "app_password": "last"}


def test_rows_of_other_keys_are_not_configurations(db: database.Database) -> None:
    execute(
        db,
        "INSERT INTO organization_configurations (organization_id, key, value) VALUES (1, 'OTHER', %s)",
        json.dumps(VALUE),
    )
    assert dograh.Configurations(db).all() == []


def test_a_change_of_any_configuration_changes_the_fingerprint_and_nothing_else_does(db: database.Database) -> None:
    configurations = dograh.Configurations(db)
    seen = [configurations.fingerprint()]
    for value in (VALUE, VALUE | {"app_password": "other"}, VALUE):
        configurations.write(1, value, replace=True)
        seen.append(configurations.fingerprint())
    configure(db, '{"provider":"ari","x":"\\u0000"}', 2)
    seen.append(configurations.fingerprint())
    assert seen[1] == seen[3]
    assert len(set(seen)) == 4
    execute(db, "INSERT INTO organization_configurations (organization_id, key, value) VALUES (1, 'OTHER', '{}')")
    assert configurations.fingerprint() == seen[-1]


def test_a_configuration_is_written_once_unless_replaced(db: database.Database) -> None:
    configurations = dograh.Configurations(db)
    configurations.write(1, VALUE, replace=False)
    with pytest.raises(errors.InvalidConfiguration, match="already has a configuration"):
        configurations.write(1, VALUE | {"app_name": "x"}, replace=False)
    assert configurations.all()[0].value == VALUE
    configurations.write(1, VALUE | {"app_name": "x"}, replace=True)
    assert configurations.all()[0].value == VALUE | {"app_name": "x"}
    assert one(db, "SELECT created_at FROM organization_configurations")["created_at"] is not None
    with pytest.raises(errors.InvalidConfiguration, match="no organization 99"):
        configurations.write(99, VALUE, replace=False)


def test_only_our_configuration_is_removed(db: database.Database) -> None:
    configurations = dograh.Configurations(db)
    configure(db, '{"provider":"twilio","x":"\\u0000"}', 2)
    for organization_id in (1, 2):
        with pytest.raises(errors.InvalidConfiguration, match="has no ARI configuration"):
            configurations.remove(organization_id)
    configure(db, '{"provider":"ari","x":"\\u0000"}', 1)
    configurations.remove(1)
    assert configurations.all() == []
    assert one(db, "SELECT count(*) AS left FROM organization_configurations")["left"] == 1


def test_in_this_layout_there_is_nothing_to_deactivate(db: database.Database) -> None:
    source_id = configure(db, json.dumps(VALUE | {"ws_client_name": ""}))
    (row,) = dograh.Configurations(db).all()
    assert row.deactivation is None
    assert not dograh.Configurations(db).deactivate(source_id=source_id, organization_id=1, reason="ari-401: x")
