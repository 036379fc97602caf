"""Two installations on one real Asterisk: each removes what its own calls have left, and nothing of the other's."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from devstack.asterisk import RealAsterisk
from devstack.asterisk_config import Client, Configuration
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD, closing_tenant
from tests.acceptance.environment import Deploy, Deployment

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

#: The app of each, which is also the dialplan's context of its callers and the name of its websocket client.
APPS = ("production", "staging")
#: Several looks at all bridges: one resync of four has one.
RESYNCS_SECONDS = 4.0


@pytest.fixture
def deployments(deploy: Deploy) -> Iterator[list[Deployment]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(deploy(f"real-{app}")) for app in APPS]


@pytest.fixture
def both(deployments: list[Deployment]) -> list[Pipeline]:
    return [deployment.pipeline for deployment in deployments]


@pytest.fixture
def asterisk(
    make_asterisk: Callable[[Configuration], RealAsterisk], deployments: list[Deployment]
) -> Iterator[RealAsterisk]:
    clients = {app: Client(uri=one.agent.url) for app, one in zip(APPS, deployments, strict=True)}
    made = make_asterisk(
        Configuration(contexts={app: app for app in APPS}, users=dict.fromkeys(APPS, PASSWORD), clients=clients)
    )
    with contextlib.ExitStack() as stack:
        for app, deployment in zip(APPS, deployments, strict=True):
            tenant = stack.enter_context(closing_tenant(deployment.database_url, app))
            tenant.configure(made.url, app=app, ws_client_name=app)
        for deployment in deployments:
            deployment.pipeline.wait_connected(seconds=30)
        yield made


def connect(pipeline: Pipeline, asterisk: RealAsterisk, app: str) -> str:
    leg = asterisk.dial(app)
    wait_until(lambda: pipeline.state(leg) == "connected", seconds=20, what=lambda: pipeline.story(leg))
    return leg


def left(asterisk: RealAsterisk) -> set[str]:
    return {one["id"] for one in (*asterisk.channels(), *asterisk.bridges())}


def made(pipeline: Pipeline, leg: str) -> set[str]:
    """Return the ids of the media leg and the bridge that an installation has made for a call."""
    (attempt,) = pipeline.query(
        "SELECT media_id, bridge_id FROM ari.attempts JOIN ari.calls USING (call_id) WHERE channel_id = %s", leg
    )
    return set(attempt.values())


def test_nothing_of_the_other_is_touched(both: list[Pipeline], asterisk: RealAsterisk) -> None:
    ours, theirs = both
    legs = [connect(pipeline, asterisk, app) for app, pipeline in zip(APPS, both, strict=True)]
    assert ours.id_prefix != theirs.id_prefix
    all_made = [made(pipeline, leg) for pipeline, leg in zip(both, legs, strict=True)]
    # As if a removal of ours had been lost: it shows that the resyncs look.
    orphan = f"{ours.id_prefix}{uuid.uuid4().hex}-b1"
    asterisk.request("POST", f"/bridges/{orphan}", type="mixing").raise_for_status()
    wait_until(lambda: orphan not in left(asterisk), seconds=20, what="the orphan is removed")
    time.sleep(RESYNCS_SECONDS)
    assert {*legs, *all_made[0], *all_made[1]} <= left(asterisk)
    assert [ours.state(legs[0]), theirs.state(legs[1])] == ["connected", "connected"]
    # Without a call of its own an installation has the other's legs and bridge to leave alone.
    asterisk.request("DELETE", f"/channels/{legs[0]}").raise_for_status()
    wait_until(lambda: not all_made[0] & left(asterisk), seconds=20, what="ours is gone")
    time.sleep(RESYNCS_SECONDS)
    assert {legs[1], *all_made[1]} <= left(asterisk)
    assert theirs.state(legs[1]) == "connected"
    asterisk.request("DELETE", f"/channels/{legs[1]}").raise_for_status()
    wait_until(lambda: not all_made[1] & left(asterisk), seconds=20, what="theirs is gone")
