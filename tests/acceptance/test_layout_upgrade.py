"""The platform upgrades its database to a layout that this release does not serve, while a call is up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.environment import APP, Deploy, Deployment, Environment

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("layout-upgrade", RESYNC_SECONDS="2") as made:
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        yield made


def connection(env: Environment) -> dict[str, Any]:
    (found,) = env.pipeline.query(
        "SELECT state, reason FROM ari.connections WHERE organization_id = %s", env.tenant.organization_id
    )
    return found


def test_callers_from_the_upgrade_on_are_refused_and_calls_that_are_up_go_on(env: Environment) -> None:
    (caller,) = env.connect()
    env.pipeline.execute("CREATE TABLE public.telephony_configurations (id serial PRIMARY KEY)")
    try:
        refused = env.dial()
        env.wait_state(refused, "ended")
        call = env.pipeline.call(refused)
        assert call["outcome"] == "refused"
        assert "newer layout" in call["reason"]
        env.until(lambda: connection(env)["state"] == "refused", seconds=15, what="the scheduler has noticed it")
        assert "newer layout" in connection(env)["reason"]
        # Resyncs, sweeps and the assigner have had their turn.
        time.sleep(5)
        assert env.is_joined(caller), env.describe()
        assert env.control.sockets(APP), "the socket of a connection with calls stays"
        assert env.runs() == 1
        env.control.hang_up(caller)
        env.wait_state(caller, "ended")
        assert env.run(caller)["is_completed"]
        env.wait_empty()
        env.until(lambda: not env.control.sockets(APP), seconds=15, what="the socket goes with the last call")
        assert "no call can be served" in env.pipeline.log_tail()
    finally:
        env.pipeline.execute("DROP TABLE public.telephony_configurations")
