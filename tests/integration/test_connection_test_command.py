"""`arictl connection test`: what the doctor checks, of one connection, as values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.process import sealing
from shared.storage import database
from tests import arictl_program
from tests.arictl_program import Arictl, failed
from tests.canned_asterisk import PASSWORD, Canned, client

pytestmark = pytest.mark.services

KEY = "a key for arictl's tests"


@pytest.fixture
def canned() -> Iterator[Canned]:
    with Canned() as made:
        made.answers["GET /asterisk/config/dynamic/websocket_client/websocket_client/media"] = client("ws://agent")
        yield made


@pytest.fixture
def db(database_url: str, canned: Canned) -> Iterator[database.Database]:
    """Organization 1 and its connection; connection 2 has lost its configuration."""
    with arictl_program.filled(database_url) as made, made.connection() as connection:
        value = {
            "provider": "ari", "ari_endpoint": canned.url, "app_name": "voiceai", "app_password": PASSWORD,
            "ws_client_name": "media", "inbound_workflow_id": 5,
        }  # fmt: skip
        connection.execute(
            "INSERT INTO organization_configurations (organization_id, key, value)"
            " VALUES (1, 'TELEPHONY_CONFIGURATION', %s)",
            [json.dumps(value)],
        )
        connection.execute(
            "INSERT INTO ari.connections (source_id, organization_id, state, version)"
            " SELECT id, 1, 'active', 1 FROM organization_configurations UNION ALL SELECT 77, 2, 'active', 1"
        )
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password,"
            " socket_state, socket_since) SELECT connection_id, 1, %s, 'voiceai', 'voiceai', %s, 'connected', now()"
            " FROM ari.connections",
            [canned.url, sealing.Sealer((KEY,)).seal(PASSWORD)],
        )
        yield made


@pytest.fixture
def arictl(database_url: str, redis_url: str, tmp_path: Path, db: database.Database) -> Arictl:
    run = arictl_program.runner(database_url, tmp_path)
    return lambda *words, **given: run(*words, **({"REDIS_URL": redis_url, "SECRET_KEY": KEY} | given))


def test_one_connection_is_tested(arictl: Arictl, canned: Canned) -> None:
    done = arictl("connection", "test", "1", "--json")
    assert "hunter2" not in done.stdout + done.stderr
    (tested,) = json.loads(done.stdout)["connections"]
    assert tested["connection_id"] == 1
    levels = {finding["what"]: finding["level"] for finding in tested["findings"]}
    assert levels["event socket"] == "ok", levels
    assert {"inbound workflow", "version"} <= set(levels), levels
    assert done.returncode == (1 if "wrong" in levels.values() else 0)
    canned.answers["GET /applications/voiceai"] = (401, {"message": "no"})
    done = arictl("connection", "test", "-o", "1")
    assert done.returncode == 1
    assert "connection 1" in done.stdout
    assert "  wrong " in done.stdout


def test_one_without_a_configuration_says_so(arictl: Arictl) -> None:
    done = arictl("connection", "test", "2")
    assert done.returncode == 1
    assert "the platform has none for it" in done.stdout
    failed(arictl("connection", "test", "9"), "no connection 9: arictl connection list")
    failed(arictl("connection", "test"), "name a connection, or --organization")
