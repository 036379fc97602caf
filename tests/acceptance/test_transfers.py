"""Transfers as the platform makes them, on a simulated Asterisk: its leg is no caller, a transferred call is spared.

The platform originates the destination with `transfer,ID`, puts it into our bridge, takes the media leg out and ends
it, and completes the run.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.acceptance.environment import APP, Deploy, Deployment, Environment

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("transfers", COMPLETED_RUNS_SECONDS="0.5", RESYNC_SECONDS="2", RUN_COMPLETION="platform") as made:
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        yield made


def originate(env: Environment) -> str:
    """Do what the API does first: dial the destination."""
    leg = f"destination-{uuid.uuid4().hex[:12]}"
    answer = env.rest(
        "POST", "/channels", endpoint="PJSIP/200", app=APP, appArgs=f"transfer,{uuid.uuid4()}", channelId=leg
    )
    assert answer.status_code == 200
    env.until(
        lambda: [each for each in env.control.event_log("StasisStart") if each["event"]["channel"]["id"] == leg],
        seconds=5,
        what="the destination answers",
    )
    return leg


def begin_swap(env: Environment, caller: str, destination: str) -> None:
    """Do the first of it: the run names the transfer before a leg moves."""
    env.pipeline.query(
        "UPDATE workflow_runs SET gathered_context = (gathered_context::jsonb || %s::jsonb)::json WHERE id = %s"
        " RETURNING 1",
        json.dumps({"transfer_state": "in-progress", "transfer_destination_channel_id": destination}),
        env.run(caller)["id"],
    )
    env.rest("POST", f"/bridges/{env.own(caller, 'b')}/addChannel", channel=destination)


def swap(env: Environment, caller: str, destination: str) -> None:
    """Do what the API does once the destination has answered."""
    media, bridge, run_id = env.own(caller, "m"), env.own(caller, "b"), env.run(caller)["id"]
    begin_swap(env, caller, destination)
    env.rest("POST", f"/bridges/{bridge}/removeChannel", channel=media)
    env.rest("DELETE", f"/channels/{media}")
    env.pipeline.query(
        "UPDATE workflow_runs SET is_completed = true, state = 'completed' WHERE id = %s RETURNING 1", run_id
    )


def talk(env: Environment, caller: str, destination: str) -> bool:
    """True if both are in the call's bridge, and no other leg."""
    bridge = env.rest("GET", f"/bridges/{env.own(caller, 'b')}")
    return bridge.status_code == 200 and set(bridge.json()["channels"]) == {caller, destination}


def transferred(env: Environment) -> tuple[str, str]:
    (caller,) = env.connect()
    destination = originate(env)
    swap(env, caller, destination)
    env.until(
        lambda: env.pipeline.call(caller)["destination_id"] == destination, seconds=5, what="the transfer is known"
    )
    return caller, destination


def test_a_leg_that_came_for_a_transfer_is_no_caller(deployment: Deployment, env: Environment) -> None:
    destination = originate(env)
    with deployment.queue() as client:
        deployment.wait_idle(client)
    # A resync finds it as well.
    time.sleep(3)
    assert env.calls() == []
    assert env.runs() == 0
    assert env.control.channel(destination) is not None
    assert not env.asked("DELETE", f"/channels/{destination}")
    assert any("came for a transfer" in entry for entry in env.connection_entries())
    env.control.hang_up(destination)
    with deployment.queue() as client:
        deployment.wait_idle(client)
    assert env.calls() == []


def test_a_transferred_call_is_spared_until_its_caller_hangs_up(env: Environment) -> None:
    """By its teardown, by each resync, and by the completion of its run."""
    caller, destination = transferred(env)
    time.sleep(5)
    assert talk(env, caller, destination), env.describe()
    assert env.pipeline.state(caller) == "connected"
    assert env.run(caller)["gathered_context"]["transfer_state"] == "complete"
    assert len(env.calls()) == 1
    env.control.hang_up(caller)
    env.wait_state(caller, "ended")
    call = env.pipeline.call(caller)
    assert (call["outcome"], call["reason"]) == ("completed", "caller hung up")
    env.wait_empty()
    assert env.control.channel(destination) is None
    run = env.run(caller)
    assert (run["is_completed"], run["gathered_context"]["transfer_state"]) == (True, "terminated")


def test_a_transferred_call_ends_when_its_destination_hangs_up(env: Environment) -> None:
    caller, destination = transferred(env)
    env.control.hang_up(destination)
    env.wait_state(caller, "ended", seconds=3)
    assert env.pipeline.call(caller)["reason"] == "the leg it was transferred to hung up"
    env.wait_empty()
    assert len(env.calls()) == 1
    assert env.run(caller)["gathered_context"]["transfer_state"] == "terminated"


def test_a_transfer_whose_events_were_lost_is_found_by_a_resync(env: Environment) -> None:
    (caller,) = env.connect()
    destination = originate(env)
    env.control.drop_events(["StasisEnd", "ChannelDestroyed"], times=2)
    swap(env, caller, destination)
    env.until(lambda: env.pipeline.call(caller)["destination_id"], seconds=10, what="a resync finds it")
    assert talk(env, caller, destination)
    env.control.drop_events(["StasisEnd", "ChannelDestroyed"], times=2)
    env.control.hang_up(destination)
    env.wait_state(caller, "ended", seconds=10)
    env.wait_empty()


def test_a_call_whose_agent_hangs_up_is_no_transfer(env: Environment) -> None:
    (caller,) = env.connect()
    destination = originate(env)
    env.rest("DELETE", f"/channels/{env.own(caller, 'm')}")
    env.wait_state(caller, "ended", seconds=5)
    assert env.pipeline.call(caller)["reason"] == "agent hung up"
    assert env.control.channel(destination) is not None
    env.control.hang_up(destination)
    run_id = env.run(caller)["id"]
    env.pipeline.query("UPDATE workflow_runs SET is_completed = true WHERE id = %s RETURNING 1", run_id)
    env.wait_empty()
