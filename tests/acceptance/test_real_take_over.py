"""An app that another ARI client has is left to it until an operator takes it over, or until it is gone there."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync import client

from devstack.asterisk import RealAsterisk
from devstack.asterisk_root import Root
from devstack.pipeline import ROOT, Pipeline, wait_until
from devstack.tenants import PASSWORD
from tests import arictl_program
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import APP, RealStack

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

DIALPLAN = """
[human]
exten => 1,1,Answer()
 same => n,Wait(3600)
"""


#: Each test has a stack of its own.
NAMES = (f"take-over-{number}" for number in itertools.count())


@pytest.fixture
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path) -> Iterator[RealStack]:
    """All processes and an Asterisk, whose app no socket of ours was ever open for."""
    often = {"RESYNC_SECONDS": "0.5", "CONFIGURATIONS_SECONDS": "0.5"}
    with real_stack.running(deploy, asterisk_root, stack_folder, next(NAMES), dialplan=DIALPLAN, times=often) as made:
        yield made


@contextlib.contextmanager
def another_process(asterisk: RealAsterisk) -> Iterator[client.ClientConnection]:
    """Another ARI client that has the app."""
    credentials = base64.b64encode(f"{APP}:{PASSWORD}".encode()).decode()
    with client.connect(
        f"{asterisk.url.replace('http', 'ws')}/ari/events?app={APP}",
        additional_headers={"Authorization": f"Basic {credentials}"},
        open_timeout=5,
    ) as socket:
        yield socket


def hears(socket: client.ClientConnection, event: str, *, channel: str = "", seconds: float = 5) -> bool:
    """Return whether an event arrives, of a channel if one is given."""
    ends_at = time.monotonic() + seconds
    with contextlib.suppress(TimeoutError):
        while True:
            heard = json.loads(socket.recv(timeout=max(0.0, ends_at - time.monotonic())))
            if heard["type"] == event and channel in ("", heard.get("channel", {}).get("id")):
                return True
    return False


def socket_state(pipeline: Pipeline) -> str:
    query = "SELECT socket_state FROM ari.connection_versions WHERE retired_at IS NULL"
    return "".join(row["socket_state"] for row in pipeline.query(query))


def arictl(pipeline: Pipeline, *arguments: str) -> str:
    done = arictl_program.runner(pipeline.database_url, ROOT)(*arguments)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def serve_as_the_other(asterisk: RealAsterisk, leg: str, bridge: str) -> set[str]:
    """Connect a caller with another leg in a bridge, as the other process does. Returns both."""
    peer = f"peer-of-{leg}"
    asterisk.request("POST", "/channels", endpoint="Local/1@human", app=APP, channelId=peer).raise_for_status()
    asterisk.request("POST", f"/bridges/{bridge}", type="mixing").raise_for_status()
    legs = {leg, peer}
    wait_until(lambda: legs <= in_app(asterisk), seconds=5)
    asterisk.request("POST", f"/bridges/{bridge}/addChannel", body={"channel": sorted(legs)}).raise_for_status()
    return legs


def in_app(asterisk: RealAsterisk) -> set[str]:
    return {one["id"] for one in asterisk.channels() if one["dialplan"]["app_name"] == "Stasis"}


def in_bridge(asterisk: RealAsterisk, bridge: str) -> set[str]:
    return {leg for one in asterisk.bridges() if one["id"] == bridge for leg in one["channels"]}


def test_an_app_is_left_to_the_process_that_has_it_until_an_operator_takes_it_over(stack: RealStack) -> None:
    pipeline, asterisk, tenant = stack.pipeline, stack.asterisk, stack.tenant
    with another_process(asterisk) as theirs:
        served = asterisk.dial()
        assert hears(theirs, "StasisStart", channel=served)
        legs = serve_as_the_other(asterisk, served, "their-bridge")
        tenant.configure(asterisk.url)
        wait_until(lambda: socket_state(pipeline) == "occupied", seconds=60, what=pipeline.log_tail)
        assert f"held by another process: app {APP} exists" in arictl(pipeline, "connection", "list")
        # It goes on serving: its socket was not replaced, and a caller who comes is its own.
        waiting = asterisk.dial()
        assert hears(theirs, "StasisStart", channel=waiting)
        assert not pipeline.calls()
        arictl(pipeline, "connection", "take-over", "--organization", str(tenant.organization_id))
        assert hears(theirs, "ApplicationReplaced", seconds=20)
        pipeline.wait_connected(seconds=30)
        new = connect(pipeline, asterisk)
        assert not pipeline.calls(waiting), "the other process might have been about to serve it"
        # What it has not bridged by now it never will.
        wait_until(lambda: pipeline.state(waiting) == "connected", seconds=20, what=lambda: pipeline.story(waiting))
        assert not pipeline.calls(*legs), "served by another process"
        assert in_bridge(asterisk, "their-bridge") == legs
    # The other process is gone, its call is not.
    assert in_bridge(asterisk, "their-bridge") == legs
    asterisk.hang_up_caller(served)
    wait_until(lambda: served not in in_app(asterisk), seconds=5)
    assert in_bridge(asterisk, "their-bridge") == legs - {served}, "what is left is not ours to remove"
    assert pipeline.state(new) == pipeline.state(waiting) == "connected"
    for leg in (new, waiting):
        asterisk.hang_up_caller(leg)
        wait_until(lambda leg=leg: pipeline.state(leg) == "ended", seconds=10)  # type: ignore[misc]
    is_not_mistaken_for_another(stack)


def is_not_mistaken_for_another(stack: RealStack) -> None:
    """Neither an emptied Redis, nor a restarted Asterisk, nor a restored database parks what was ours."""
    pipeline, asterisk = stack.pipeline, stack.asterisk
    with stack.deployment.queue() as redis_client:
        redis_client.flushall()
    asterisk.restart()
    pipeline.wait_connected(seconds=30)
    leg = connect(pipeline, asterisk)
    wait_until(lambda: bears_our_filter(asterisk), seconds=5)
    # A database from before the connection was added, while a listener has its socket open.
    for name in ("scheduler", "worker"):
        pipeline.stop(name)
    for table in ("timeline", "resyncs", "calls", "connection_versions", "connections"):
        pipeline.execute(f"DELETE FROM ari.{table}")
    pipeline.start("scheduler", "worker")
    pipeline.wait_connected(seconds=20)
    asterisk.hang_up_caller(leg)
    asterisk.hang_up_caller(connect(pipeline, asterisk))


def bears_our_filter(asterisk: RealAsterisk) -> bool:
    return bool(asterisk.request("GET", f"/applications/{APP}").json().get("events_allowed"))


def test_an_app_is_connected_once_it_is_gone_there(stack: RealStack) -> None:
    pipeline, asterisk = stack.pipeline, stack.asterisk
    with another_process(asterisk):
        stack.tenant.configure(asterisk.url)
        wait_until(lambda: socket_state(pipeline) == "occupied", seconds=60, what=pipeline.log_tail)
    pipeline.wait_connected(seconds=30)
    asterisk.hang_up_caller(connect(pipeline, asterisk))


def connect(pipeline: Pipeline, asterisk: RealAsterisk) -> str:
    leg = asterisk.dial()
    wait_until(lambda: pipeline.state(leg) == "connected", seconds=10, what=lambda: pipeline.story(leg))
    return leg
