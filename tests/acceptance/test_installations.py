"""Two installations, each with its database, Redis and app, on one Asterisk: neither touches what is the other's."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import requests

from devstack.pipeline import ROOT, Pipeline, wait_until
from devstack.tenants import PASSWORD, closing_tenant
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk
from tests.acceptance.environment import Deploy, Deployment

pytestmark = pytest.mark.services

#: Some of each installation; one resync of four has one.
LOOKS = 6


@dataclass(frozen=True, kw_only=True)
class Installation:
    """An installation that serves one app of the Asterisk."""

    app: str
    deployment: Deployment
    asterisk: SimulatedAsterisk

    @property
    def pipeline(self) -> Pipeline:
        return self.deployment.pipeline

    def connect(self) -> str:
        leg = self.asterisk.control.dial(self.app, channel_id=f"caller-{uuid.uuid4().hex[:12]}")
        wait_until(lambda: self.pipeline.state(leg) == "connected", seconds=10, what=lambda: self.pipeline.story(leg))
        return leg

    def made(self, leg: str) -> set[str]:
        """Return the ids of the media leg and the bridge that it has made for a call."""
        (attempt,) = self.pipeline.query(
            "SELECT media_id, bridge_id FROM ari.attempts JOIN ari.calls USING (call_id) WHERE channel_id = %s", leg
        )
        return set(attempt.values())

    def create_bridge(self, name: str) -> None:
        url, auth = f"{self.asterisk.url}/ari/bridges/{name}", (self.app, PASSWORD)
        requests.post(url, params={"type": "mixing"}, auth=auth, timeout=5).raise_for_status()

    def draw(self) -> None:
        """Draw another prefix, and restart the worker, as the command says."""
        subprocess.run(
            [sys.executable, "-m", "arictl.main", "installation", "draw"],
            check=True, capture_output=True, timeout=60, env={"DATABASE_URL": self.pipeline.database_url}, cwd=ROOT,
        )  # fmt: skip
        self.pipeline.stop("worker")
        self.pipeline.start("worker")


@pytest.fixture(scope="module")
def both(deploy: Deploy) -> Iterator[tuple[Installation, Installation]]:
    with contextlib.ExitStack() as stack:
        deployments = [stack.enter_context(deploy(name, RESYNC_SECONDS="0.2")) for name in ("production", "staging")]
        asterisk = stack.enter_context(
            SimulatedAsterisk(
                Settings(audio=False, media_urls={"staging": deployments[1].agent.url}),
                users={"production": PASSWORD, "staging": PASSWORD},
                media_url=deployments[0].agent.url,
            )
        )
        made: list[Installation] = []
        for app, deployment in zip(("production", "staging"), deployments, strict=True):
            tenant = stack.enter_context(closing_tenant(deployment.database_url, app))
            tenant.configure(asterisk.url, app=app, ws_client_name="staging" if made else "media")
            made.append(Installation(app=app, deployment=deployment, asterisk=asterisk))
        for one in made:
            one.pipeline.wait_connected()
        yield made[0], made[1]


def wait_looks(asterisk: SimulatedAsterisk) -> None:
    """Wait until both have looked at all bridges several times."""

    def looks() -> int:
        return len(asterisk.control.requests("GET", "/bridges"))

    before = looks()
    wait_until(lambda: looks() >= before + LOOKS, seconds=20, what="they look at all bridges")


def left(asterisk: SimulatedAsterisk) -> set[str]:
    return {one["id"] for one in (*asterisk.control.channels(), *asterisk.control.bridges())}


def test_nothing_of_the_other_is_touched(both: tuple[Installation, Installation]) -> None:
    ours, theirs = both
    legs = [ours.connect(), theirs.connect()]
    assert ours.pipeline.id_prefix != theirs.pipeline.id_prefix
    made = ours.made(legs[0]) | theirs.made(legs[1])
    wait_looks(ours.asterisk)
    assert {*legs, *made} <= left(ours.asterisk)
    assert [ours.pipeline.state(legs[0]), theirs.pipeline.state(legs[1])] == ["connected", "connected"]
    # Without a call of its own each has orphans to look for, and the other's bridge to leave alone.
    ours.asterisk.control.hang_up(legs[0])
    wait_until(lambda: left(ours.asterisk) == {legs[1], *theirs.made(legs[1])}, seconds=10, what="ours is gone")
    wait_looks(ours.asterisk)
    assert theirs.pipeline.state(legs[1]) == "connected"
    theirs.asterisk.control.hang_up(legs[1])
    wait_until(lambda: not left(ours.asterisk), seconds=10, what="theirs is gone")


def test_calls_outlast_another_prefix_and_what_they_leave_is_removed(both: tuple[Installation, Installation]) -> None:
    ours, _ = both
    ends, forgotten = ours.connect(), ours.connect()
    before, made = ours.pipeline.id_prefix, ours.made(ends) | ours.made(forgotten)
    ours.draw()
    assert ours.pipeline.id_prefix != before
    later = ours.connect()
    assert all(name.startswith(ours.pipeline.id_prefix) for name in ours.made(later))
    wait_looks(ours.asterisk)
    assert made <= left(ours.asterisk), "calls under the earlier prefix go on"
    ours.asterisk.control.hang_up(ends)
    wait_until(lambda: not ours.made(ends) & left(ours.asterisk), seconds=10, what="the teardown removes its legs")
    ours.asterisk.control.hang_up(forgotten)
    wait_until(lambda: ours.pipeline.state(forgotten) == "ended", seconds=10, what="it ends")
    # As if its removal had been lost; a bridge of a call that our database does not know, under either prefix.
    orphan = next(name for name in ours.made(forgotten) if name.endswith("-b1"))
    unknown = {prefix: f"{prefix}{uuid.uuid4().hex}-b1" for prefix in (before, ours.pipeline.id_prefix)}
    for name in (orphan, *unknown.values()):
        ours.create_bridge(name)
    kept = {later, unknown[before], *ours.made(later)}
    wait_until(lambda: left(ours.asterisk) == kept, seconds=10, what=lambda: f"{left(ours.asterisk)} is not {kept}")
    wait_looks(ours.asterisk)
    assert left(ours.asterisk) == kept, "with the earlier prefix, an unknown call may be another installation's"
    ours.asterisk.control.hang_up(later)
    wait_until(lambda: left(ours.asterisk) == {unknown[before]}, seconds=10, what="ours is gone")
