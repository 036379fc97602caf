"""Transfers as the platform makes them, on a real Asterisk: the call is spared, and ended by either party."""

from __future__ import annotations

import time
import uuid

import pytest

from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import Tenant

pytestmark = [pytest.mark.asterisk, pytest.mark.services]


@pytest.fixture
def running(pipeline: Pipeline, tenant: Tenant, asterisk: RealAsterisk, agent: Agent) -> Pipeline:
    """All processes, with the tenant's event socket open."""
    assert agent.port
    tenant.configure(asterisk.url)
    pipeline.start()
    pipeline.wait_connected()
    return pipeline


def originate(asterisk: RealAsterisk) -> str:
    """Do what the platform's API does first: dial the destination."""
    leg = f"destination-{uuid.uuid4().hex[:12]}"
    answer = asterisk.request(
        "POST", "/channels", endpoint="Local/wait@far", app="voiceai", appArgs=f"transfer,{uuid.uuid4()}",
        channelId=leg, formats="ulaw",
    )  # fmt: skip
    assert answer.status_code == 200
    wait_until(lambda: application(asterisk, leg) == "Stasis", seconds=5, what="the destination answers")
    return leg


def application(asterisk: RealAsterisk, leg: str) -> str | None:
    answer = asterisk.request("GET", f"/channels/{leg}")
    return str(answer.json()["dialplan"]["app_name"]) if answer.status_code == 200 else None


def wait_state(running: Pipeline, leg: str, state: str, *, seconds: float = 15) -> None:
    wait_until(
        lambda: running.state(leg) == state,
        seconds=seconds,
        what=lambda: f"{leg} is {state}\n{running.story(leg)}\n{running.log_tail()}",
    )


def transferred(running: Pipeline, asterisk: RealAsterisk) -> tuple[str, str, str]:
    """Return a caller whom the platform has transferred, the destination, and their bridge."""
    caller = asterisk.dial()
    wait_state(running, caller, "connected")
    destination = originate(asterisk)
    (bridge,) = asterisk.bridges()
    (media,) = set(bridge["channels"]) - {caller}
    asterisk.request("POST", f"/bridges/{bridge['id']}/addChannel", channel=destination)
    asterisk.request("POST", f"/bridges/{bridge['id']}/removeChannel", channel=media)
    asterisk.request("DELETE", f"/channels/{media}")
    return caller, destination, bridge["id"]


def talk(asterisk: RealAsterisk, bridge_id: str, *legs: str) -> bool:
    return any(bridge["id"] == bridge_id and set(bridge["channels"]) == set(legs) for bridge in asterisk.bridges())


@pytest.mark.parametrize("first", ["caller", "destination"])
def test_a_transferred_call_goes_on_until_one_of_its_parties_hangs_up(
    running: Pipeline, asterisk: RealAsterisk, first: str
) -> None:
    caller, destination, bridge_id = transferred(running, asterisk)
    time.sleep(2)
    assert talk(asterisk, bridge_id, caller, destination), running.story(caller)
    assert running.state(caller) == "connected"
    assert running.calls(caller)[0]["destination_id"] == destination
    (asterisk.hang_up_caller if first == "caller" else asterisk.hang_up)(caller if first == "caller" else destination)
    wait_state(running, caller, "ended", seconds=5)
    wait_until(
        lambda: not asterisk.channels() and not asterisk.bridges(), seconds=5, what=lambda: str(asterisk.channels())
    )
    assert len(running.calls()) == 1
    assert running.run(caller)["is_completed"]


def test_a_destination_that_hangs_up_before_the_swap_leaves_no_call(running: Pipeline, asterisk: RealAsterisk) -> None:
    destination = originate(asterisk)
    asterisk.hang_up(destination)
    time.sleep(2)
    assert running.calls() == []
    assert running.value("SELECT count(*) FROM workflow_runs") == 0
