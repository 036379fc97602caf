"""Another channel takes the place of a leg, on a real Asterisk: the call follows it, and ends with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import processes
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_root import Root
from devstack.pipeline import Pipeline, wait_until
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import RealStack
from tests.acceptance.test_real_odd_legs import other_program

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

DIALPLAN = """
[ivr]
exten => _X.,1,Stasis(ivr)
 same => n,Hangup()
[outbound]
exten => 1001,1,Dial(Local/wait@far)
 same => n,Hangup()
exten => 1002,1,Answer()
 same => n,Wait(3600)
exten => 1003,1,Stasis(voiceai)
 same => n,Hangup()
"""


@pytest.fixture(scope="module")
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path) -> Iterator[RealStack]:
    often = {"RESYNC_SECONDS": "1", "CONFIGURATIONS_SECONDS": "0.5"}
    with real_stack.running(
        deploy, asterisk_root, stack_folder, "replaced-legs", dialplan=DIALPLAN, times=often,
        manager_port=processes.free_port(), more_files={"features.conf": "[featuremap]\natxfer=*2\n"},
    ) as made:  # fmt: skip
        yield made


running, asterisk, agent = real_stack.FIXTURES[:3]


def wait_state(running: Pipeline, leg: str, state: str, *, seconds: float = 10) -> None:
    wait_until(lambda: running.state(leg) == state, seconds=seconds, what=lambda: running.story(leg))


def wait_calls(running: Pipeline, leg: str, *states: str) -> None:
    """Wait until the calls of a leg are in these states, the oldest first."""
    wait_until(
        lambda: [call["state"] for call in running.calls(leg)] == list(states),
        seconds=10,
        what=lambda: running.story(leg),
    )


def connected(running: Pipeline, asterisk: RealAsterisk) -> str:
    leg = asterisk.dial()
    wait_state(running, leg, "connected")
    return leg


def name(asterisk: RealAsterisk, leg: str) -> str:
    return next(str(channel["name"]) for channel in asterisk.channels() if channel["id"] == leg)


def wait_gone(asterisk: RealAsterisk, leg: str, *, seconds: float) -> None:
    wait_until(
        lambda: leg not in {channel["id"] for channel in asterisk.channels()}, seconds=seconds, what=f"{leg} is hung up"
    )


def wait_followed(running: Pipeline, leg: str, *, replacements: int = 1, seconds: float = 5) -> str:
    """Wait until the call of a leg follows another channel; return that one."""
    wait_until(
        lambda: len(running.call(leg)["replacements"] or ()) == replacements,
        seconds=seconds,
        what=lambda: running.story(leg),
    )
    return str(running.call(leg)["replacements"][-1])


def listed(asterisk: RealAsterisk, app: str) -> list[str]:
    """Return the channels that an app lists."""
    return list(asterisk.request("GET", f"/applications/{app}").json()["channel_ids"])


def phone(asterisk: RealAsterisk) -> str:
    """Return the half of a Local channel that is the phone which was dialled."""
    return next(
        str(one["id"])
        for one in asterisk.channels()
        if one["dialplan"]["context"] == "far" and one["name"].endswith(";2")
    )


def wait_over(
    running: Pipeline, asterisk: RealAsterisk, leg: str, *, reason: str = "caller hung up", bridges: bool = False
) -> None:
    """Wait until the call has ended in good order and nothing is left of it; a resync adds nothing.

    Args:
        bridges: Whether there are other bridges than the call's.
    """
    wait_state(running, leg, "ended", seconds=1)
    assert (running.call(leg)["outcome"], running.call(leg)["reason"]) == ("completed", reason)
    time.sleep(2.5)
    names = {one["id"] for one in (*asterisk.channels(), *asterisk.bridges())}
    assert not names & {running.own_id(running.call(leg), kind) for kind in ("m", "b")}
    assert bool(asterisk.bridges()) is bridges
    assert [call["channel_id"] for call in running.calls()] == [leg], running.story(leg)
    assert running.value("SELECT count(*) FROM workflow_runs") == 1
    assert running.run(leg)["is_completed"]


def bridge_of(running: Pipeline, asterisk: RealAsterisk, leg: str) -> set[str]:
    """Return the channels in the bridge of a leg's call."""
    own = running.own_id(running.call(leg), "b")
    return next((set(bridge["channels"]) for bridge in asterisk.bridges() if bridge["id"] == own), set())


def test_a_call_follows_a_caller_s_leg_that_is_transferred_blindly(running: Pipeline, asterisk: RealAsterisk) -> None:
    leg = connected(running, asterisk)
    (media,) = bridge_of(running, asterisk, leg) - {leg}
    asterisk.act("BlindTransfer", channel=name(asterisk, leg), context="outbound", exten="1001")
    new = wait_followed(running, leg)
    # Some resyncs see it. The party that has made the transfer does not hang up: its leg would stay up in silence.
    wait_gone(asterisk, leg, seconds=5)
    time.sleep(1)
    assert running.state(leg) == "connected", running.story(leg)
    assert bridge_of(running, asterisk, leg) == {new, media}
    assert running.run(leg)["gathered_context"]["call_id"] == new
    assert len(running.calls()) == 1
    asterisk.hang_up(phone(asterisk))
    wait_over(running, asterisk, leg)


def test_an_attended_transfer_by_the_manager_is_none_in_a_bridge_of_ari_s(
    running: Pipeline, asterisk: RealAsterisk
) -> None:
    """It only sends the digits of a feature code, for which such a bridge has no feature: the agent gets them."""
    leg = connected(running, asterisk)
    before = bridge_of(running, asterisk, leg)
    asterisk.act("Atxfer", channel=name(asterisk, leg), context="outbound", exten="1001")
    time.sleep(2.5)
    assert running.state(leg) == "connected", running.story(leg)
    assert bridge_of(running, asterisk, leg) == before
    assert running.call(leg)["replacements"] is None
    asterisk.hang_up(leg)
    wait_over(running, asterisk, leg)


def test_a_leg_that_was_replaced_may_be_replaced_again(running: Pipeline, asterisk: RealAsterisk) -> None:
    leg = connected(running, asterisk)
    (media,) = bridge_of(running, asterisk, leg) - {leg}
    asterisk.act("BlindTransfer", channel=name(asterisk, leg), context="outbound", exten="1001")
    new = wait_followed(running, leg)
    asterisk.act("BlindTransfer", channel=name(asterisk, new), context="outbound", exten="1001")
    newest = wait_followed(running, leg, replacements=2)
    wait_until(lambda: bridge_of(running, asterisk, leg) == {newest, media}, seconds=2, what=lambda: running.story(leg))
    for old in (leg, new):
        wait_gone(asterisk, old, seconds=5)
    assert running.state(leg) == "connected", running.story(leg)
    asterisk.hang_up(newest)
    wait_over(running, asterisk, leg)


def test_a_caller_talks_on_with_the_party_that_the_agent_s_leg_is_transferred_to(
    running: Pipeline, asterisk: RealAsterisk
) -> None:
    leg = connected(running, asterisk)
    (media,) = bridge_of(running, asterisk, leg) - {leg}
    asterisk.act("BlindTransfer", channel=name(asterisk, media), context="outbound", exten="1001")
    wait_until(lambda: running.call(leg)["destination_id"], seconds=5, what=lambda: running.story(leg))
    destination = running.call(leg)["destination_id"]
    wait_gone(asterisk, media, seconds=2)
    time.sleep(2.5)
    assert running.state(leg) == "connected", running.story(leg)
    assert bridge_of(running, asterisk, leg) == {leg, destination}
    asterisk.hang_up(phone(asterisk))
    wait_over(running, asterisk, leg, reason="the leg it was transferred to hung up")
    wait_gone(asterisk, leg, seconds=2)


@pytest.mark.parametrize("how", ["Redirect", "Bridge"])
def test_a_caller_who_is_sent_elsewhere_is_left_alone(running: Pipeline, asterisk: RealAsterisk, how: str) -> None:
    leg = connected(running, asterisk)
    if how == "Redirect":
        asterisk.act("Redirect", channel=name(asterisk, leg), context="outbound", exten="1002", priority="1")
    else:
        other = asterisk.dial("outbound", called="1002")
        asterisk.act("Bridge", channel1=name(asterisk, leg), channel2=name(asterisk, f"far-{other}"))
    wait_over(running, asterisk, leg, reason="caller left Stasis, and goes on elsewhere", bridges=how == "Bridge")
    assert leg in {channel["id"] for channel in asterisk.channels()}


def test_a_call_follows_while_the_worker_is_away(running: Pipeline, asterisk: RealAsterisk) -> None:
    """Killed when the transfer is told, and another one is started."""
    leg = connected(running, asterisk)
    running.kill("worker")
    asterisk.act("BlindTransfer", channel=name(asterisk, leg), context="outbound", exten="1001")
    running.start("worker")
    new = wait_followed(running, leg, seconds=20)
    wait_until(
        lambda: running.run(leg)["gathered_context"]["call_id"] == new, seconds=5, what=lambda: running.story(leg)
    )
    assert running.state(leg) == "connected", running.story(leg)
    asterisk.hang_up(phone(asterisk))
    wait_over(running, asterisk, leg)


def test_a_leg_that_comes_back_has_a_call_of_its_own(running: Pipeline, asterisk: RealAsterisk, agent: Agent) -> None:
    """The party that has made a transfer is sent to our app; later its new call is transferred as well."""
    leg = connected(running, asterisk)
    own_name = name(asterisk, leg)
    asterisk.act("BlindTransfer", channel=own_name, context="outbound", exten="1001")
    new = wait_followed(running, leg)
    asterisk.act("Redirect", channel=own_name, context="outbound", exten="1003", priority="1")
    wait_calls(running, leg, "connected", "connected")
    # The replacement is told again, and some resyncs see both.
    time.sleep(4)
    assert [call["replacements"] for call in running.calls(leg)] == [[new], None], running.story(leg)
    asterisk.act("BlindTransfer", channel=own_name, context="outbound", exten="1001")
    wait_until(lambda: running.calls(leg)[1]["replacements"], seconds=5, what=lambda: running.story(leg))
    time.sleep(4)
    wait_calls(running, leg, "connected", "connected")
    agent.close_all()
    wait_calls(running, leg, "ended", "ended")
    assert [call["reason"] for call in running.calls(leg)] == ["agent hung up"] * 2
    wait_until(lambda: not asterisk.channels(), seconds=2, what=lambda: str(asterisk.channels()))


def test_a_replacement_that_went_away_and_came_back_is_followed_by_its_new_call(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent
) -> None:
    leg = connected(running, asterisk)
    asterisk.act("BlindTransfer", channel=name(asterisk, leg), context="outbound", exten="1001")
    new = wait_followed(running, leg)
    asterisk.act("Redirect", channel=name(asterisk, new), context="outbound", exten="1003", priority="1")
    wait_state(running, leg, "ended")
    wait_state(running, new, "connected")
    asterisk.act("BlindTransfer", channel=name(asterisk, new), context="outbound", exten="1001")
    wait_followed(running, new)
    time.sleep(4)
    assert (running.state(leg), running.state(new)) == ("ended", "connected"), running.story(new)
    agent.close_all()
    wait_state(running, new, "ended")


def test_who_makes_a_transfer_is_hung_up_though_it_came_by_a_move(running: Pipeline, asterisk: RealAsterisk) -> None:
    """It shows the app that it came from."""
    with other_program(asterisk, "ivr"):
        leg = asterisk.dial("ivr")
        wait_until(lambda: leg in listed(asterisk, "ivr"), seconds=5, what="the caller is in the menu")
        asterisk.request("POST", f"/channels/{leg}/move", app="voiceai").raise_for_status()
        wait_state(running, leg, "connected")
        asterisk.act("BlindTransfer", channel=name(asterisk, leg), context="outbound", exten="1001")
        wait_followed(running, leg)
        wait_gone(asterisk, leg, seconds=5)
        assert running.state(leg) == "connected", running.story(leg)


def test_who_a_caller_was_transferred_to_is_replaced_at_once(running: Pipeline, asterisk: RealAsterisk) -> None:
    """Before the first replacement, which was the agent's, is told again."""
    leg = connected(running, asterisk)
    (media,) = bridge_of(running, asterisk, leg) - {leg}
    asterisk.act("BlindTransfer", channel=name(asterisk, media), context="outbound", exten="1001")
    wait_until(lambda: running.call(leg)["destination_id"], seconds=5, what=lambda: running.story(leg))
    destination = running.call(leg)["destination_id"]
    asterisk.act("BlindTransfer", channel=name(asterisk, destination), context="outbound", exten="1001")
    wait_until(lambda: running.call(leg)["destination_id"] != destination, seconds=5, what=lambda: running.story(leg))
    # It would stay up in silence.
    wait_gone(asterisk, destination, seconds=5)
    time.sleep(2)
    assert running.state(leg) == "connected", running.story(leg)
    assert bridge_of(running, asterisk, leg) == {leg, running.call(leg)["destination_id"]}
    assert len(running.calls()) == 1
    asterisk.hang_up(phone(asterisk))
    wait_over(running, asterisk, leg, reason="the leg it was transferred to hung up")
