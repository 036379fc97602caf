"""A worker waits for its media legs in memory: killed, stopped or too late, it leaves its calls to another one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psycopg
import pytest

from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("awaited-legs") as made:
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        yield made
        if not deployment.pipeline.is_running("worker"):
            deployment.pipeline.start("worker")
        made.end(*(channel["id"] for channel in made.control.channels() if channel["kind"] == "caller"))


def test_nothing_is_stored_between_the_attempt_and_the_join(env: Environment) -> None:
    (leg,) = env.connect()
    at = {row["name"]: row["at"] for row in env.pipeline.timeline(leg)}
    joined_at = at[f"POST /bridges/{env.own(leg, 'b')}/addChannel"]
    assert at["AttemptBegun"] < joined_at < at["LegsCreated"] < at["MediaReady"] < at["Joined"], env.describe()


def test_a_worker_killed_during_a_join_leaves_no_gap_in_the_audio(env: Environment, deployment: Deployment) -> None:
    """The legs are joined, and nothing of it is stored."""
    with env.control.hold("POST", "/bridges/*/addChannel", "after") as point:
        leg = env.dial()
        point.wait_arrived()
        deployment.pipeline.kill("worker")
    assert env.pipeline.call(leg)["state"] == "prepared"
    deployment.pipeline.start("worker")
    env.wait_state(leg, "connected", seconds=40)
    assert env.is_joined(leg), env.describe()
    assert {channel["gaps"] for channel in env.control.channels()} == {0}, env.describe()
    assert env.count("POST", f"/bridges/{env.own(leg, 'b')}/addChannel") == 1


def test_a_worker_killed_while_it_waits_leaves_the_leg_to_another(env: Environment, deployment: Deployment) -> None:
    env.control.delay_media(0.2)
    with env.control.hold("POST", "/channels/externalMedia", "after") as point:
        leg = env.dial()
        point.wait_arrived()
    env.until(lambda: env.count("POST", f"/bridges/{env.own(leg, 'b')}"), seconds=5, what="the bridge is requested")
    deployment.pipeline.kill("worker")
    deployment.pipeline.start("worker")
    env.wait_state(leg, "connected", seconds=40)
    assert env.is_joined(leg), env.describe()


def test_a_join_that_cannot_be_stored_is_stored_later_and_not_repeated(
    env: Environment, deployment: Deployment
) -> None:
    with contextlib.closing(psycopg.connect(deployment.database_url)) as other:
        with env.control.hold("GET", "/bridges/*-b1", "after") as point:
            leg = env.dial()
            point.wait_arrived()
            # Longer than a statement may wait for a lock.
            other.execute("LOCK TABLE ari.calls IN ACCESS EXCLUSIVE MODE")
        time.sleep(3)
        other.rollback()
    env.wait_state(leg, "connected", seconds=5)
    assert (env.pipeline.call(leg)["attempt"], env.is_joined(leg)) == (1, True), env.describe()
    assert env.count("POST", f"/bridges/{env.own(leg, 'b')}/addChannel") == 1
    assert {channel["gaps"] for channel in env.control.channels()} == {0}


def test_a_worker_that_stops_stores_what_it_waits_for(env: Environment, deployment: Deployment) -> None:
    env.control.delay_media(1.5)
    leg = env.dial()
    env.until(
        lambda: env.pipeline.calls(leg) and env.own(leg, "m") in map(_id, env.control.channels()),
        seconds=5,
        what="it is asked for",
    )
    # Started meanwhile: on a busy machine that takes as long as a caller is given.
    deployment.pipeline.start("worker.after")
    began = time.monotonic()
    assert deployment.pipeline.stop("worker") == 0
    assert env.pipeline.call(leg)["legs_created"], env.describe()
    assert time.monotonic() - began < 10
    env.wait_state(leg, "connected", seconds=10)
    deployment.pipeline.start("worker")
    deployment.pipeline.stop("worker.after")


@pytest.mark.parametrize("agent_seconds", [0.1, 0.6], ids=["awaited", "no longer awaited"])
def test_a_caller_who_hangs_up_before_the_agent_is_there_leaves_nothing(env: Environment, agent_seconds: float) -> None:
    env.control.delay_media(agent_seconds)
    legs = [env.dial() for _ in range(3)]
    for leg in legs:
        env.wait_state(leg, "prepared")
        env.control.hang_up(leg)
    for leg in legs:
        env.wait_state(leg, "ended", seconds=4)
    env.wait_empty(seconds=4)


def test_an_agent_that_takes_long_is_connected_all_the_same(env: Environment) -> None:
    env.control.delay_media(0.7)
    (leg,) = env.connect()
    assert env.is_joined(leg)
    names = [row["name"] for row in env.pipeline.timeline(leg)]
    assert names.index("LegsCreated") < names.index("MediaReady") < names.index("Joined")


def _id(channel: dict[str, object]) -> object:
    return channel["id"]
