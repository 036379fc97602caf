"""Resync on a real Asterisk, and the channels and bridges that it must not touch."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.sync import client

from devstack.asterisk import FAR_PREFIX, RealAsterisk
from devstack.asterisk_config import Configuration
from devstack.asterisk_root import Root
from devstack.pipeline import ROOT, Pipeline, wait_until
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from shared import queues
from tests import arictl_program
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import RealStack

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

#: The dialplan in which a caller continues without the pipeline: to a human, and back into the app if COME_BACK is set;
#: and a caller that hangs up if LEAVE is set.
DIALPLAN = """
[human]
exten => s,1,Wait(0.2)
 same => n,GotoIf($["${COME_BACK}" = ""]?1)
 same => n,Stasis(voiceai)
 same => n,Hangup()
exten => 1,1,Answer()
 same => n,Wait(3600)

[far](+)
exten => leaver,1,Answer()
 same => n,Wait(0.2)
 same => n,GotoIf($["${LEAVE}" = ""]?2)
 same => n,Hangup()
"""


@pytest.fixture(scope="module")
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path) -> Iterator[RealStack]:
    often = {"RESYNC_SECONDS": "0.5", "CONFIGURATIONS_SECONDS": "0.5", "RECLAIM_SECONDS": "1"}
    with real_stack.running(deploy, asterisk_root, stack_folder, "real-resync", dialplan=DIALPLAN, times=often) as made:
        yield made


running, asterisk, agent, tenant = real_stack.FIXTURES


def connect(running: Pipeline, asterisk: RealAsterisk, **how: Any) -> str:
    leg = asterisk.dial(**how)
    wait_until(lambda: running.state(leg) == "connected", seconds=10, what=lambda: running.story(leg))
    return leg


def until(running: Pipeline, asterisk: RealAsterisk, condition: Callable[[], object], *, seconds: float) -> None:
    def describe() -> str:
        stories = [f"-- {call['channel_id']}\n{running.story(call['channel_id'])}" for call in running.calls()]
        left = [(channel["id"], channel["dialplan"]["app_name"]) for channel in asterisk.channels()]
        return "\n".join([*stories, f"channels: {left}", f"bridges: {[b['id'] for b in asterisk.bridges()]}"])

    wait_until(condition, seconds=seconds, what=describe)


def channel(asterisk: RealAsterisk, leg: str) -> dict[str, Any] | None:
    return next((found for found in asterisk.channels() if found["id"] == leg), None)


def bridges(asterisk: RealAsterisk) -> dict[str, list[str]]:
    return {bridge["id"]: bridge["channels"] for bridge in asterisk.bridges()}


def found(running: Pipeline) -> str:
    """Return the timeline entries of resyncs."""
    return "\n".join(row["detail"] for row in running.query("SELECT detail FROM ari.timeline WHERE name = 'Resync'"))


def test_a_caller_handed_to_a_human_is_left_alone_and_is_a_new_call_when_it_comes_back(
    running: Pipeline, asterisk: RealAsterisk
) -> None:
    leg = connect(running, asterisk)
    asterisk.request(
        "POST", f"/channels/{leg}/continue", context="human", extension="s", priority="1"
    ).raise_for_status()
    until(running, asterisk, lambda: running.state(leg) == "ended", seconds=10)
    until(running, asterisk, lambda: not asterisk.bridges(), seconds=5)
    talking = channel(asterisk, leg)
    assert talking is not None, f"the caller was cut off\n{running.story(leg)}"
    assert talking["dialplan"]["context"] == "human"
    assert {one["id"] for one in asterisk.channels()} == {leg, FAR_PREFIX + leg}
    asterisk.cli("dialplan set global COME_BACK yes")
    until(
        running, asterisk, lambda: [call["state"] for call in running.calls(leg)] == ["ended", "connected"], seconds=10
    )
    first, second = running.calls(leg)
    assert (first["entry"], second["entry"]) == (1, 2)
    assert first["channel_created"] == second["channel_created"]
    assert None not in (first["workflow_run_id"], second["workflow_run_id"])
    assert first["workflow_run_id"] != second["workflow_run_id"]
    assert set(bridges(asterisk)[running.own_id(second, "b")]) == {
        leg,
        running.own_id(second, "m"),
    }
    asterisk.hang_up_caller(leg)
    until(running, asterisk, lambda: running.state(leg) == "ended", seconds=10)
    until(running, asterisk, lambda: not asterisk.channels() and not asterisk.bridges(), seconds=5)


def test_what_is_not_ours_is_left_alone_and_what_is_ours_without_a_call_is_removed(
    running: Pipeline, asterisk: RealAsterisk
) -> None:
    """Another controller's bridge with its caller and its empty bridge; our leg, bridge and empty bridge."""
    stays, unbridged = connect(running, asterisk), connect(running, asterisk)
    strange = f"{running.id_prefix}{uuid.uuid4().hex}"
    running.signal("listener", signal.SIGSTOP)
    running.signal("worker", signal.SIGSTOP)
    try:
        # The frozen listener gets no event of the caller that another controller serves, and no resync is quicker.
        theirs = asterisk.dial()
        until(running, asterisk, lambda: in_stasis(asterisk, theirs), seconds=5)
        for bridge in ("their-bridge", "their-empty-bridge"):
            asterisk.request("POST", f"/bridges/{bridge}", type="mixing").raise_for_status()
        asterisk.request("POST", "/bridges/their-bridge/addChannel", channel=theirs).raise_for_status()
    finally:
        running.kill("listener")
        running.start("listener")
        running.signal("worker", signal.SIGCONT)
    asterisk.request(
        "POST", "/channels", endpoint="Local/1@human", app="voiceai", channelId=f"{strange}-m1"
    )  # fmt: skip
    asterisk.request("POST", f"/bridges/{strange}-b1", type="mixing").raise_for_status()
    own = running.own_id(running.call(unbridged), "b")
    for leg in bridges(asterisk)[own]:
        asterisk.request("POST", f"/bridges/{own}/removeChannel", channel=leg).raise_for_status()
    until(running, asterisk, lambda: running.state(unbridged) == "ended", seconds=15)
    assert running.call(unbridged)["reason"].startswith("bridge lost: not in the bridge"), running.story(unbridged)
    until(
        running, asterisk, lambda: not [b for b in bridges(asterisk) if b.startswith(strange) or b == own], seconds=15
    )
    until(running, asterisk, lambda: channel(asterisk, f"{strange}-m1") is None, seconds=10)
    finding = f"channel {theirs} is in the foreign bridge their-bridge"
    until(running, asterisk, lambda: finding in found(running), seconds=15)
    assert bridges(asterisk)["their-bridge"] == [theirs]
    assert "their-empty-bridge" in bridges(asterisk)
    assert not running.calls(theirs), running.story(theirs)
    assert running.state(stays) == "connected", running.story(stays)
    asterisk.hang_up_caller(stays)
    until(running, asterisk, lambda: running.state(stays) == "ended", seconds=10)


def in_stasis(asterisk: RealAsterisk, leg: str) -> bool:
    there = channel(asterisk, leg)
    return there is not None and there["dialplan"]["app_name"] == "Stasis"


def test_modules_that_are_not_loaded_for_a_while_prove_no_teardown_and_end_no_call(
    running: Pipeline, asterisk: RealAsterisk
) -> None:
    stays, hangs_up = connect(running, asterisk), connect(running, asterisk)
    asterisk.cli("module unload res_ari_bridges.so")
    asterisk.hang_up_caller(hangs_up)
    until_asked(running, hangs_up, "DELETE /bridges/", "answered 404 Resource not found")
    assert running.state(hangs_up) == "ending", running.story(hangs_up)
    assert running.run(hangs_up)["is_completed"]
    asterisk.cli("module load res_ari_bridges.so")
    until(running, asterisk, lambda: running.state(hangs_up) == "ended", seconds=15)
    # From here on no leg may end: Asterisk crashes at the end of one that an unloaded res_ari_channels created.
    asterisk.cli("module unload res_ari_applications.so")
    asterisk.cli("module unload res_ari_channels.so")
    answer = asterisk.request("GET", f"/channels/{quote(stays)}")
    assert (answer.status_code, answer.json()["message"]) == (404, "Resource not found")
    before = refused_resyncs(running)
    wait_until(lambda: refused_resyncs(running) >= before + 6, seconds=15, what=running.log_tail)
    asterisk.cli("module load res_ari_channels.so")
    asterisk.cli("module load res_ari_applications.so")
    seen = refused_resyncs(running)
    after = connect(running, asterisk)
    assert running.state(stays) == "connected", running.story(stays)
    assert {len(legs) for legs in bridges(asterisk).values()} == {2}
    assert refused_resyncs(running) <= seen + 2
    assert asterisk.answers(), "Asterisk crashed"
    assert running.state(after) == "connected"
    asterisk.restart()


def test_an_app_that_another_client_insists_on_is_left_to_it_until_an_operator_reclaims_it(
    running: Pipeline, tenant: Tenant, asterisk: RealAsterisk
) -> None:
    stays = connect(running, asterisk)
    with taking_over(asterisk) as first:
        wait_until(lambda: socket_state(running) == "replaced", seconds=5, what=running.log_tail)
        assert replaced(first), "taken back once"
    with taking_over(asterisk) as second:
        wait_until(lambda: socket_state(running) == "parked", seconds=5, what=running.log_tail)
        theirs = asterisk.dial()
        # Resyncs for our call continue: they leave alone a caller that may belong to the other client.
        until(running, asterisk, lambda: "unknown callers are left to it" in found(running), seconds=10)
        asterisk.hang_up_caller(stays)
        until(running, asterisk, lambda: running.state(stays) == "ended", seconds=10)
        assert in_stasis(asterisk, theirs), "their caller was hung up"
        assert not running.calls(theirs)
        assert not replaced(second, seconds=3), "fought for"
        listed = arictl(running, "connection", "list")
        assert "another ARI client has taken the Stasis app over twice" in listed
        assert f"arictl connection unpark --organization {tenant.organization_id}" in listed
    asterisk.hang_up_caller(theirs)
    arictl(running, "connection", "unpark", "--organization", str(tenant.organization_id))
    running.wait_connected()
    asterisk.hang_up_caller(connect(running, asterisk))


def taking_over(asterisk: RealAsterisk) -> client.ClientConnection:
    """Open the event socket of our app as another ARI client."""
    credentials = base64.b64encode(f"voiceai:{PASSWORD}".encode()).decode()
    return client.connect(
        f"{asterisk.url.replace('http', 'ws')}/ari/events?app=voiceai",
        additional_headers={"Authorization": f"Basic {credentials}"},
        open_timeout=5,
    )


def replaced(theirs: client.ClientConnection, *, seconds: float = 10) -> bool:
    """Return True if the app was taken over from this socket."""
    ends_at = time.monotonic() + seconds
    with contextlib.suppress(TimeoutError):
        while True:
            event = json.loads(theirs.recv(timeout=max(0.0, ends_at - time.monotonic())))
            if event["type"] == "ApplicationReplaced":
                return True
    return False


def socket_state(running: Pipeline) -> str:
    return str(running.value("SELECT socket_state FROM ari.connection_versions WHERE retired_at IS NULL"))


def arictl(running: Pipeline, *arguments: str) -> str:
    """Return what the command prints."""
    done = arictl_program.runner(running.database_url, ROOT)(*arguments)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_after_a_flushed_redis_and_a_restarted_listener_sockets_are_spread_evenly(
    pipeline: Pipeline, database_url: str, make_asterisk: Callable[[Configuration], RealAsterisk]
) -> None:
    apps = [f"app{number}" for number in range(6)]
    asterisk = make_asterisk(Configuration(users=dict.fromkeys(apps, PASSWORD)))
    for app in apps:
        with closing_tenant(database_url, app) as made:
            made.configure(asterisk.url, app=app)
    pipeline.start("listener.1", "listener.2", "worker", "scheduler", CONFIGURATIONS_SECONDS="0.5")

    def spread() -> list[int]:
        rows = pipeline.query(
            "SELECT count(*) FROM ari.connection_versions WHERE socket_state = 'connected'"
            " AND previous_listener_id IS NULL"
            " GROUP BY listener_id"
        )
        return [row["count"] for row in rows]

    def epochs() -> int:
        """Return the sum of all epochs, which grows with each assignment."""
        return int(pipeline.value("SELECT sum(epoch) FROM ari.connection_versions"))

    wait_until(lambda: spread() == [3, 3], seconds=20, what=pipeline.log_tail)
    before = epochs()
    with contextlib.closing(queues.client(pipeline.redis_url)) as redis_client:
        redis_client.flushall()
    pipeline.kill("listener.2")
    pipeline.start("listener.2")
    wait_until(lambda: spread() == [3, 3] and epochs() > before, seconds=20, what=pipeline.log_tail)
    served = {app: asterisk.request("GET", f"/applications/{app}").status_code for app in apps}
    assert set(served.values()) == {200}, served


def test_a_channel_under_the_id_of_another_tenants_media_leg_changes_nothing_there(
    running: Pipeline, asterisk: RealAsterisk, make_asterisk: Callable[[Configuration], RealAsterisk]
) -> None:
    leg = connect(running, asterisk)
    media = running.own_id(running.call(leg), "m")
    other = make_asterisk(Configuration(users={"voiceai": PASSWORD}, dialplan=DIALPLAN))
    with closing_tenant(running.database_url, "forger") as forger:
        forger.configure(other.url)
        wait_until(lambda: running.connected(other.url), seconds=10, what=running.log_tail)
        for before in (0, 2):
            other.request(
                "POST", "/channels", endpoint="Local/1@human", app="voiceai", channelId=media
            ).raise_for_status()  # fmt: skip
            # Its StasisStart, and its end.
            until(running, other, lambda: refused_of(running, media) > before, seconds=10)  # noqa: B023 - used at once
            other.request("DELETE", f"/channels/{media}")
            until(running, other, lambda: refused_of(running, media) > before + 1, seconds=10)  # noqa: B023 - used at once
        assert running.state(leg) == "connected", running.story(leg)
        assert {leg, media} in [set(legs) for legs in bridges(asterisk).values()]
        asterisk.hang_up_caller(leg)
        until(running, asterisk, lambda: running.state(leg) == "ended", seconds=10)
        forger.remove_configuration()


def refused_of(running: Pipeline, leg: str) -> int:
    """Return how many events of a leg were refused as another tenant's."""
    return int(
        running.value(
            "SELECT count(*) FROM ari.timeline WHERE kind = 'refusal' AND name = 'ForeignLeg'"
            " AND position(%s in detail) > 0",
            leg,
        )
    )


def refused_resyncs(running: Pipeline) -> int:
    """Return the number of failed resyncs in the worker's log."""
    return (running.logs / "worker.log").read_text().count("resync not possible")


def until_asked(running: Pipeline, leg: str, request: str, answer: str) -> None:
    wait_until(
        lambda: any(row["name"].startswith(request) and row["detail"] == answer for row in running.timeline(leg)),
        seconds=10,
        what=lambda: running.story(leg),
    )
