"""Clocks are set while the product runs: the one of its processes, and the one of an Asterisk."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from chaos import clocks, tools
from devstack import debian
from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

AHEAD = pytest.mark.parametrize("ahead_seconds", [-3600, -2, 2, 3600])


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> clocks.Clock:
    """The wall clock of all processes."""
    try:
        library = tools.find().libfaketime
    except debian.Unavailable as exc:
        pytest.skip(str(exc))
    return clocks.Clock(library, tmp_path_factory.mktemp("clock") / "offset")


@pytest.fixture(scope="module")
def deployment(deploy: Deploy, clock: clocks.Clock) -> Iterator[Deployment]:
    # Only an event ends a call so soon.
    with deploy("clocks", RESYNC_SECONDS="15", **clock.environment) as made:
        yield made


@pytest.fixture(autouse=True)
def _right(clock: clocks.Clock) -> Iterator[None]:
    yield
    clock.right()


# ── the product's ────────────────────────────────────────────────────────────────────────────────────────────────────


@AHEAD
def test_a_new_configuration_has_its_socket_and_calls_go_on(
    deployment: Deployment, env: Environment, clock: clocks.Clock, ahead_seconds: int
) -> None:
    (before,) = env.connect()
    clock.ahead(ahead_seconds)
    time.sleep(clocks.SEEN_SECONDS)
    began = time.monotonic()
    with deployment.environment() as added:
        assert time.monotonic() - began < 12
        (leg,) = added.connect()
        added.end(leg)
    clock.right()
    time.sleep(clocks.SEEN_SECONDS)
    began = time.monotonic()
    with deployment.environment() as added:
        assert time.monotonic() - began < 12
    env.end(before)


# ── an Asterisk's ────────────────────────────────────────────────────────────────────────────────────────────────────


@AHEAD
def test_a_hang_up_ends_the_call_within_a_second_with_its_cause(env: Environment, ahead_seconds: int) -> None:
    (leg,) = env.connect()
    env.control.set_clock(ahead_seconds)
    env.control.hang_up(leg, 17)
    env.wait_state(leg, "ended", seconds=1)
    call = env.pipeline.call(leg)
    assert (call["outcome"], call["hangup_cause"]) == ("completed", 17)
    assert env.run(leg)["is_completed"]


@AHEAD
def test_an_agent_s_hang_up_ends_the_call_within_a_second(env: Environment, ahead_seconds: int) -> None:
    (leg,) = env.connect()
    env.control.set_clock(ahead_seconds)
    env.control.hang_up(env.own(leg, "m"))
    env.wait_state(leg, "ended", seconds=1)
    env.wait_empty()


@AHEAD
def test_a_caller_sent_on_is_a_new_call_when_it_comes_back(env: Environment, ahead_seconds: int) -> None:
    (leg,) = env.connect()
    env.control.set_clock(ahead_seconds)
    env.control.continue_in_dialplan(leg)
    env.wait_state(leg, "ended", seconds=1)
    assert env.control.channel(leg) is not None
    env.control.set_clock(-ahead_seconds)
    env.control.reenter(leg, "voiceai")
    env.wait_state(leg, "connected", seconds=5)
    assert [call["state"] for call in env.pipeline.calls(leg)] == ["ended", "connected"]
    assert env.is_joined(leg)
    env.end(leg)
