"""The platform's organizations and users: limits, and what calls are paid from."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from shared import errors
from shared.platform import dograh
from shared.platform.ports import Account
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import execute

pytestmark = pytest.mark.services


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        yield made


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ('{"value": 2}', 2),
        ('{"value": "10"}', 10),
        ('{"value": 0}', 0),
        ('{"value": -1}', None),
        ('{"value": true}', None),
        ('{"value": 2.5}', None),
        ('{"value": null}', None),
        ('{"value": "many"}', None),
        ('{"value": 99999999999}', None),
        ('{"other": 2}', None),
        ("{}", None),
        ("5", None),
        ("[2]", None),
        ("null", None),
        ("[" * 3000 + "]" * 3000, None),
    ],
)
def test_the_platform_s_limit_of_concurrent_calls(db: database.Database, text: str, limit: int | None) -> None:
    accounts = dograh.Accounts(db)
    assert accounts.concurrent_calls(1) is None
    query = "INSERT INTO organization_configurations (organization_id, key, value) VALUES (%s, %s, %s)"
    execute(db, query, 1, "CONCURRENT_CALL_LIMIT", text)
    execute(db, query, 1, "ANOTHER_KEY", '{"value": 77}')
    assert accounts.concurrent_calls(1) == limit
    assert accounts.concurrent_calls(2) is None, "another organization's"


OWN = {"provider": "dograh", "api_key": "mps-1"}


@pytest.mark.parametrize(
    ("configuration", "keys"),
    [
        (None, ()),
        ({}, ()),
        ({"llm": None, "stt": "x", "tts": []}, ()),
        ({"llm": {"provider": "openai", "api_key": "sk"}}, ()),
        ({"llm": OWN}, ("mps-1",)),
        ({"llm": OWN, "stt": OWN, "tts": OWN}, ("mps-1",)),
        ({"tts": OWN | {"api_key": "b"}, "stt": {"provider": "x"}, "llm": OWN | {"api_key": "a"}}, ("a", "b")),
        ({"embeddings": OWN}, ()),
    ],
)
def test_a_user_s_service_keys_are_those_of_the_platform_s_own_services(
    db: database.Database, configuration: object, keys: tuple[str, ...]
) -> None:
    if configuration is not None:
        execute(
            db,
            "INSERT INTO user_configurations (user_id, configuration) VALUES (1, %s)",
            json.dumps(configuration),
        )
    assert dograh.Accounts(db).account(1) == Account(provider_id="u1", service_keys=keys)


@pytest.mark.parametrize(
    "text",
    ["null", "[]", "5", '"x"', "[" * 3000 + "]" * 3000, '{"stt": {"provider": "dograh"}}',
     '{"stt": {"provider": "dograh", "api_key": ""}}', '{"stt": {"provider": "dograh", "api_key": ["hunter2"]}}'],
)  # fmt: skip
def test_a_user_s_configuration_that_cannot_be_read_is_an_error_without_a_secret(
    db: database.Database, text: str
) -> None:
    execute(db, "INSERT INTO user_configurations (user_id, configuration) VALUES (1, '{}'), (1, %s)", text)
    with pytest.raises(errors.InvalidConfiguration) as caught:
        dograh.Accounts(db).account(1)
    assert "hunter2" not in str(caught.value)


def test_there_may_be_no_such_user_or_organization(db: database.Database) -> None:
    with pytest.raises(errors.InvalidConfiguration, match="there is no user 9"):
        dograh.Accounts(db).account(9)
    with pytest.raises(errors.InvalidConfiguration, match="there is no organization 9"):
        dograh.Accounts(db).require_organization(9)
    dograh.Accounts(db).require_organization(1)
