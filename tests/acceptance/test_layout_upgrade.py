"""The platform upgrades its database from the layout 2026-02 to the newest while calls are up and callers come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from devstack import platform_tables
from devstack.tenants import NUMBERS
from tests.acceptance.environment import APP, Deploy, Deployment, Environment

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    # On the newest layout the platform's limit holds for callers, too, from the upgrade on.
    with deploy("layout-upgrade", layout="2026-02", RESYNC_SECONDS="2", DEFAULT_ORG_CONCURRENCY_LIMIT="100") as made:
        yield made


@pytest.fixture(scope="module")
def second_deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("half-done-upgrade", layout="2026-02", RESYNC_SECONDS="2") as made:
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        # The platform's upgrade makes a phone number of each; without one, no caller has a route afterwards.
        made.tenant.configure(made.asterisk.url, from_numbers=list(NUMBERS))
        yield made


def versions(env: Environment) -> list[dict[str, Any]]:
    return env.pipeline.query(
        "SELECT connection_id, v.version, v.socket_state, v.reconnects, c.state FROM ari.connections c"
        " JOIN ari.connection_versions v USING (connection_id) WHERE c.organization_id = %s",
        env.tenant.organization_id,
    )


def test_no_call_is_lost_and_callers_from_the_upgrade_on_are_served_by_the_new_rules(env: Environment) -> None:
    (talking,) = env.connect()
    before, sockets = versions(env), env.control.sockets(APP)
    legs: list[str] = []
    stop = threading.Event()

    def callers() -> None:
        while not stop.wait(0.1):
            legs.append(env.dial())

    dialling = threading.Thread(target=callers)
    dialling.start()
    try:
        time.sleep(0.5)
        platform_tables.upgrade(env.pipeline.database_url)
        time.sleep(1)
    finally:
        stop.set()
        dialling.join()
    last = env.dial()
    for leg in [*legs, last]:
        env.wait_state(leg, "connected")
    assert env.run(last)["initial_context"]["telephony_configuration_id"] == 1
    assert env.run(talking)["initial_context"].get("telephony_configuration_id") is None
    env.until(lambda: env.pipeline.value("SELECT max(source_id) FROM ari.connections") == -1, seconds=10, what="moved")
    # Resyncs, sweeps and the assigner have had their turn.
    time.sleep(3)
    assert (versions(env), env.control.sockets(APP)) == (before, sockets), "the same version, by the same socket"
    assert env.is_joined(talking), env.describe()
    unknown = env.dial(called="200")
    env.wait_state(unknown, "ended")
    assert "no active phone number 200" in env.pipeline.call(unknown)["reason"]
    env.end(talking, last, *legs)
    assert env.run(talking)["is_completed"]
    assert "the platform's layout has changed" in env.pipeline.log_tail()


#: What the platform's migrations have committed when they are half done: each is a transaction of its own. The columns
#: of inactive configurations and the numbers' workflows come by later ones.
_HALF_DONE = """
CREATE TABLE telephony_configurations (
    id serial PRIMARY KEY, organization_id integer NOT NULL, name varchar(64) NOT NULL, provider varchar(32) NOT NULL,
    credentials json NOT NULL, is_default_outbound boolean NOT NULL DEFAULT false, created_at timestamptz,
    updated_at timestamptz);
CREATE TABLE telephony_phone_numbers (
    id serial PRIMARY KEY, organization_id integer NOT NULL, telephony_configuration_id integer NOT NULL,
    address varchar(255) NOT NULL, address_normalized varchar(255) NOT NULL, address_type varchar(16) NOT NULL,
    inbound_workflow_id integer, is_active boolean NOT NULL DEFAULT true,
    is_default_caller_id boolean NOT NULL DEFAULT false, created_at timestamptz, updated_at timestamptz);
INSERT INTO telephony_configurations (organization_id, name, provider, credentials)
SELECT organization_id, 'Default', 'ari', (value::jsonb - ARRAY['provider', 'from_numbers'])::json
FROM organization_configurations WHERE key = 'TELEPHONY_CONFIGURATION';
"""


def execute(env: Environment, statements: str) -> None:
    with psycopg.connect(env.pipeline.database_url, options="-c search_path=public") as connection:
        connection.execute(statements.encode())


def test_a_caller_who_comes_while_the_upgrade_is_half_done_is_served_once_it_is_done(
    second_deployment: Deployment,
) -> None:
    with second_deployment.environment() as env:
        env.tenant.configure(env.asterisk.url, from_numbers=list(NUMBERS))
        (talking,) = env.connect()
        before, sockets = versions(env), env.control.sockets(APP)
        execute(env, _HALF_DONE)
        waiting = env.dial()
        # The configurations are read again meanwhile.
        time.sleep(4)
        assert env.is_joined(talking), env.describe()
        assert env.pipeline.state(waiting) == "received"
        execute(env, "DROP TABLE telephony_phone_numbers, telephony_configurations")
        platform_tables.upgrade(env.pipeline.database_url)
        env.wait_state(waiting, "connected")
        env.until(
            lambda: env.pipeline.value("SELECT max(source_id) FROM ari.connections") == -1, seconds=12, what="moved"
        )
        assert (versions(env), env.control.sockets(APP)) == (before, sockets), "the same version, by the same socket"
        env.end(talking, waiting)
