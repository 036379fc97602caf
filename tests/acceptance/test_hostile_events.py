"""A tenant whose Asterisk sends more events than are served: bounded in Redis, and none of its callers is lost.

Real processes. `bench/hostile_broker.py` measures what a flood takes up.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared import keys
from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

#: The least that the setting allows.
MOST = 100


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("hostile-events", GROUP_MESSAGES=str(MOST)) as made:
        yield made


@pytest.fixture
def ours(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        yield made


@pytest.fixture
def theirs(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        yield made


def test_what_does_not_fit_is_found_by_a_resync_and_another_tenant_is_served(
    deployment: Deployment, ours: Environment, theirs: Environment
) -> None:
    with deployment.queue() as client:
        deployment.wait_idle(client)

        def counted(env: Environment) -> int:
            # Two of the fields are no messages.
            return max(0, client.hlen(f"{keys.NAMESPACE}:bounded:{env.connection['connection_id']}") - 2)

        assert deployment.pipeline.stop("worker") == 0
        flood = [theirs.dial() for _ in range(MOST + 15)]
        theirs.until(lambda: counted(theirs) == MOST, seconds=10, what="their events are at the bound")
        leg = ours.dial()
        ours.until(lambda: counted(ours) == 1, seconds=5, what="our event is accepted")
        assert counted(theirs) == MOST
        deployment.pipeline.start("worker")
        ours.wait_state(leg, "connected", seconds=20)
        for caller in flood:
            # One whose event was read too long ago is refused.
            theirs.wait_state(caller, "connected", "ended", seconds=60)
        theirs.end(*(caller for caller in flood if theirs.pipeline.state(caller) == "connected"))
        ours.end(leg)
        deployment.wait_idle(client, seconds=20)
        assert (counted(ours), counted(theirs)) == (0, 0)
