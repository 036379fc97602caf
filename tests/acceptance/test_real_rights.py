"""An ARI user that may only read, on a real Asterisk: what it cannot remove is over when it is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import Tenant
from tests import arictl_program

pytestmark = [pytest.mark.asterisk, pytest.mark.services]


def reach(pipeline: Pipeline, leg: str, *states: str, seconds: float) -> None:
    wait_until(lambda: pipeline.state(leg) in states, seconds=seconds, what=lambda: f"{states}\n{pipeline.story(leg)}")


def restrict(asterisk: RealAsterisk, *users: str) -> None:
    asterisk.configuration.read_only = set(users)
    asterisk.reload()


def listed(pipeline: Pipeline, folder: Path) -> str:
    return " ".join(arictl_program.runner(pipeline.database_url, folder)("connection", "list").stdout.split())


def test_calls_end_when_their_legs_have_gone_by_themselves_and_the_list_says_what_is_wrong(
    pipeline: Pipeline, tenant: Tenant, asterisk: RealAsterisk, agent: Agent, tmp_path: Path
) -> None:
    tenant.configure(asterisk.url)
    pipeline.start(RESYNC_SECONDS="2")
    pipeline.wait_connected()
    talks = asterisk.dial()
    reach(pipeline, talks, "connected", seconds=15)
    restrict(asterisk, "voiceai")
    # Its media leg cannot be made, and itself not be hung up.
    comes = asterisk.dial()
    reach(pipeline, comes, "ending", seconds=15)
    asterisk.hang_up_caller(comes)
    reach(pipeline, comes, "ended", seconds=20)
    # Its bridge stays, until the user may remove it.
    asterisk.hang_up_caller(talks)
    agent.close_all()
    reach(pipeline, talks, "ending", seconds=5)
    denied = "requests are denied (403 Write access denied): is the ARI user read_only?"
    wait_until(lambda: denied in listed(pipeline, tmp_path), seconds=10, what="the list says what is wrong")
    assert [bridge["id"] for bridge in asterisk.bridges()] == [pipeline.own_id(pipeline.call(talks), "b")]
    restrict(asterisk)
    reach(pipeline, talks, "ended", seconds=20)
    assert not asterisk.channels()
    assert not asterisk.bridges()
