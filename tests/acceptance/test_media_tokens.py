"""The media token, from the worker's settings to the agent: without a valid one no media socket is opened."""

from __future__ import annotations

from typing import Any

import pytest

from devstack.pipeline import wait_until
from tests.acceptance.environment import Deploy

pytestmark = pytest.mark.services

OFF = "media tokens are off: anyone who can reach the voice agent can open a media socket"


@pytest.mark.parametrize(
    ("given", "served", "said"),
    [
        ({}, True, "media tokens are signed by a secret derived from the first SECRET_KEY"),
        ({"MEDIA_TOKEN_SECRET": "not the agent's secret"}, False, ""),
        ({"MEDIA_TOKEN": "off"}, False, OFF),
    ],
    ids=["as the agent's", "another secret", "off"],
)
def test_the_agent_takes_no_media_leg_without_its_token(
    deploy: Deploy,
    given: dict[str, Any],
    *,
    served: bool,
    said: str,
) -> None:
    with (
        deploy(f"media-tokens-{'-'.join(given) or 'default'}", **given) as deployment,
        deployment.environment() as env,
    ):
        leg = env.dial()
        if served:
            env.wait_state(leg, "connected")
            assert deployment.agent.refusals == []
            env.end(leg)
        else:
            env.wait_state(leg, "ended", seconds=20)
            assert env.pipeline.call(leg)["reason"].startswith("voice agent not reached"), env.describe()
            assert set(deployment.agent.refusals) == {"403 wrong token"}
            assert deployment.agent.sessions == {}
        log = deployment.pipeline.logs / "worker.log"
        assert (OFF in log.read_text()) is (said == OFF)
        assert said in log.read_text()
        # At every start, not only the first one.
        deployment.pipeline.stop("worker")
        deployment.pipeline.start("worker")
        wait_until(lambda: log.read_text().count("worker started") == 2, seconds=10, what="the worker starts again")
        assert log.read_text().count(OFF) == (2 if said == OFF else 0)
