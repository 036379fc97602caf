"""A claim ends with its owner's life: real workers that are killed in each step, that stall, or lose Redis."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from shared import keys
from tests.acceptance.environment import Deploy, Deployment, Environment
from tests.acceptance.outbound import LOCAL, request_call

pytestmark = pytest.mark.services

#: From the kill until the call has gone on, at worst: docs/failure-modes.md.
SECONDS = 5.0
WORKERS = ("worker.1", "worker.2")


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("deaths", processes=("listener", "scheduler", *WORKERS)) as made:
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made, deployment.queue() as client:
        dead = set()
        for name in WORKERS:
            if not deployment.pipeline.is_running(name):
                dead |= {each for each in sessions_of(client) if each.startswith(f"{name}/")}
                deployment.pipeline.start(name)
        made.until(lambda: has_all(client, dead), seconds=20, what="both work")
        yield made


def has_all(client: redis.Redis, dead: set[str]) -> bool:
    """Return True if each worker has its sessions, and the dead have none any more."""
    sessions = sessions_of(client)
    return (
        not sessions & dead
        and len(sessions) == 3 * len(WORKERS)
        and all(sum(each.startswith(f"{name}/") for each in sessions) == 3 for name in WORKERS)
    )


def sessions_of(client: redis.Redis) -> set[str]:
    found: Any = client.zrange(f"{keys.NAMESPACE}:sessions", 0, -1)
    return {each.decode() for each in found}


def kill_owner(env: Environment) -> str:
    """Kill the worker that has claimed the one call; return the name under which it did."""
    (call,) = env.calls()
    worker = str(call["claim_owner"]).rpartition("/")[0]
    env.pipeline.kill(worker.partition("/")[0])
    return worker


@pytest.mark.parametrize(
    ("method", "path", "state"),
    [
        pytest.param("POST", "/channels/externalMedia", "connected", id="media"),
        pytest.param("POST", "/bridges/*/addChannel", "connected", id="join"),
        pytest.param("GET", "/bridges/*-b1", "connected", id="join, to be stored"),
        pytest.param("DELETE", "/bridges/*-b1", "ended", id="teardown"),
    ],
)
def test_the_call_of_a_killed_worker_goes_on_in_time(env: Environment, method: str, path: str, state: str) -> None:
    with env.control.hold(method, path, "before") as point:
        leg = env.dial()
        if state == "ended":
            env.wait_state(leg, "connected")
            env.control.hang_up(leg)
        point.wait_arrived()
        worker = kill_owner(env)
        killed = time.monotonic()
    env.wait_state(leg, state, seconds=SECONDS)
    assert time.monotonic() - killed < SECONDS
    (broken,) = [row["detail"] for row in env.pipeline.timeline(leg) if row["name"] == "claim broken"]
    assert broken == f"{worker} has died"
    if state == "connected":
        assert env.is_joined(leg, env.pipeline.call(leg)["attempt"]), env.describe()
        assert {channel["gaps"] for channel in env.control.channels()} == {0}, env.describe()
        env.control.hang_up(leg)
        env.wait_empty()


def test_an_outbound_call_of_a_killed_worker_goes_on_in_time_and_is_dialled_once(env: Environment) -> None:
    env.tenant.configure(env.asterisk.url, **LOCAL)
    with env.control.hold("POST", "/channels", "after") as point:
        request_call(env, "100")
        point.wait_arrived()
        kill_owner(env)
        killed = time.monotonic()
    env.until(lambda: env.calls()[0]["state"] == "connected", seconds=SECONDS, what="it is connected")
    assert time.monotonic() - killed < SECONDS
    assert env.count("POST", "/channels") == 1
    (call,) = env.calls()
    env.end_one(call["channel_id"])
    env.wait_empty()


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_a_worker_that_stalls_does_not_count_as_dead(env: Environment, deployment: Deployment, seconds: float) -> None:
    with env.control.hold("POST", "/channels/externalMedia", "after") as point, deployment.queue() as client:
        leg = env.dial()
        point.wait_arrived()
        owner = env.calls()[0]["claim_owner"]
        before = sessions_of(client)
        with stopped(deployment, owner):
            time.sleep(seconds)
            assert env.calls()[0]["claim_owner"] == owner
    env.wait_state(leg, "connected")
    with deployment.queue() as client:
        assert sessions_of(client) == before
    assert "claim broken" not in env.facts(leg)
    env.end(leg)


@contextlib.contextmanager
def stopped(deployment: Deployment, owner: str) -> Iterator[None]:
    """Let nothing of the owner's process run meanwhile."""
    pid = deployment.pipeline.pid(owner.partition("/")[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_when_redis_is_emptied_none_counts_as_dead(env: Environment, deployment: Deployment) -> None:
    with env.control.hold("POST", "/channels/externalMedia", "after") as point, deployment.queue() as client:
        leg = env.dial()
        point.wait_arrived()
        client.flushall()
        # Several looks of the scheduler.
        time.sleep(2.5)
    env.wait_state(leg, "connected", seconds=20)
    assert "claim broken" not in env.facts(leg), env.describe()
    env.end(leg)


def test_a_worker_that_dies_together_with_redis_has_its_claims_broken(env: Environment, deployment: Deployment) -> None:
    """Who lives is known again one time-out after Redis is back."""
    with env.control.hold("DELETE", "/bridges/*-b1", "before") as point, deployment.queue() as client:
        (leg,) = env.connect()
        env.control.hang_up(leg)
        point.wait_arrived()
        kill_owner(env)
        client.flushall()
    env.wait_state(leg, "ended", seconds=4.5 + SECONDS)
    assert "claim broken" in env.facts(leg), "before it had run out"
