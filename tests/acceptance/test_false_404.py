"""A proxy changes the path of requests about a caller: Asterisk answers 404, and its app lists the channel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("false-404") as made:
        yield made


def lose(env: Environment, leg: str) -> None:
    """Answer 404 to all that is asked about a channel."""
    for path in (f"/channels/{leg}", f"/channels/{leg}/*"):
        env.control.fault("*", path, status=404, message="Channel not found")


@pytest.mark.parametrize("leg", ["plain-1", "k\u00f6ln+2"])
def test_a_caller_in_set_up_is_not_taken_for_gone(env: Environment, leg: str) -> None:
    lose(env, leg)
    env.dial(channel_id=leg)
    env.wait_state(leg, "ending", seconds=30)
    call = env.pipeline.call(leg)
    assert (call["outcome"], call["caller_left"]) == ("failed", False), env.describe()
    # Only its end settles it.
    env.control.hang_up(leg)
    env.wait_state(leg, "ended")
    env.wait_empty()


@pytest.mark.parametrize("leg", ["plain-3", "k\u00f6ln+4"])
def test_a_connected_caller_is_hung_up_once_it_can_be(env: Environment, deployment: Deployment, leg: str) -> None:
    env.dial(channel_id=leg)
    env.wait_state(leg, "connected")
    lose(env, leg)
    media = env.own(leg, "m")
    env.until(lambda: env.count("GET", "/applications/voiceai") > 8, seconds=10, what="some resyncs")
    assert env.pipeline.state(leg) == "connected", env.describe()
    env.control.hang_up(media)
    env.wait_state(leg, "ending")
    env.until(
        lambda: (
            "though the app lists it" in env.pipeline.call(leg)["reason"] or env.count("GET", f"/channels/{leg}") > 1
        ),
        seconds=10,
        what="it was looked at",
    )
    assert leg in {channel["id"] for channel in env.control.channels()}
    assert env.pipeline.state(leg) == "ending"
    env.control.clear()
    env.wait_state(leg, "ended", seconds=20)
    env.wait_empty()
