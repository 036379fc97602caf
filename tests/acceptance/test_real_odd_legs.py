"""Legs with odd data, of odd origin and with odd ends, on a real Asterisk."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync import client

from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_root import Root
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import PASSWORD
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import RealStack

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

#: Context → the caller's number, and what is shown of it.
NUMBERS = {
    "digits600": ("9" * 600, "9" * 512 + "…"),
    "digits512": ("9" * 512, "9" * 512),
    "letters600": ("ü" * 600, "ü" * 512 + "…"),
}
DIALPLAN = "".join(
    f"[{context}]\nexten => _X.,1,Set(CALLERID(num)={number})\n same => n,Stasis(voiceai)\n same => n,Hangup()\n"
    for context, (number, _) in NUMBERS.items()
)
#: Seventy arguments, in 488 bytes.
DIALPLAN += f"""
[ivr]
exten => _X.,1,Stasis(ivr,menu=1)
 same => n,Hangup()
[many]
exten => _X.,1,Stasis(voiceai,{",".join(f"a{number}=1" for number in range(70))})
 same => n,Hangup()
"""


@pytest.fixture(scope="module")
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path) -> Iterator[RealStack]:
    often = {"RESYNC_SECONDS": "1", "CONFIGURATIONS_SECONDS": "0.5"}
    with real_stack.running(deploy, asterisk_root, stack_folder, "odd-legs", dialplan=DIALPLAN, times=often) as made:
        yield made


running, asterisk, agent, tenant = real_stack.FIXTURES


def ids(asterisk: RealAsterisk) -> set[str]:
    return {channel["id"] for channel in asterisk.channels()}


@contextlib.contextmanager
def other_program(asterisk: RealAsterisk, app: str) -> Iterator[None]:
    """Another ARI client with its own app."""
    credentials = base64.b64encode(f"voiceai:{PASSWORD}".encode()).decode()
    with client.connect(
        f"{asterisk.url.replace('http', 'ws')}/ari/events?app={app}",
        additional_headers={"Authorization": f"Basic {credentials}"},
        open_timeout=5,
    ):
        yield


def move(asterisk: RealAsterisk, leg: str, app: str) -> None:
    asterisk.request("POST", f"/channels/{leg}/move", app=app).raise_for_status()


def wait_gone(asterisk: RealAsterisk, leg: str, *, seconds: float) -> None:
    wait_until(lambda: leg not in ids(asterisk), seconds=seconds, what=f"{leg} is hung up")


def wait_calls(running: Pipeline, leg: str, *states: str) -> None:
    """Wait until the calls of a leg are in these states, the oldest first."""
    wait_until(
        lambda: [call["state"] for call in running.calls(leg)] == list(states),
        seconds=10,
        what=lambda: running.story(leg),
    )


def wait_state(running: Pipeline, leg: str, state: str, *, seconds: float = 10) -> None:
    wait_until(lambda: running.state(leg) == state, seconds=seconds, what=lambda: running.story(leg))


def test_a_leg_is_served_whatever_decides_nothing_is_and_refused_by_name_for_what_decides(
    running: Pipeline, asterisk: RealAsterisk
) -> None:
    callers = {asterisk.dial(context): shown for context, (_, shown) in NUMBERS.items()}
    for leg, shown in callers.items():
        wait_state(running, leg, "connected")
        assert running.call(leg)["caller_number"] == shown
        assert running.call(leg)["entered_stamp"], "read by its event, not found by a resync"
        asterisk.hang_up_caller(leg)
    leg = asterisk.dial("many")
    wait_state(running, leg, "connected")
    assert running.call(leg)["entered_stamp"]
    assert running.call(leg)["args"] == [f"a{number}=1" for number in range(70)]

    # A dialplan cannot give so much; a program that brings a leg to our app can.
    for number, args in enumerate((["x" * 8192], [f"a{number}=1" for number in range(2000)])):
        leg = f"long-{number}"
        body = {"endpoint": "Local/wait@far", "app": "voiceai", "appArgs": ",".join(args), "channelId": leg}
        asterisk.request("POST", "/channels", body=body).raise_for_status()
        wait_state(running, leg, "ended")
        assert running.call(leg)["reason"] == "the arguments of Stasis() are longer than 8192 bytes together"
        assert running.call(leg)["outcome"] == "refused"
        wait_gone(asterisk, leg, seconds=5)


@pytest.mark.parametrize("name", ["create", "externalMedia"])
def test_a_caller_whose_id_is_a_path_of_ari_gets_no_agent(running: Pipeline, asterisk: RealAsterisk, name: str) -> None:
    """What is asked for that channel goes elsewhere. The next caller is served."""
    asterisk.dial(channel_id=name, other_channel_id=f"caller-of-{name}")
    wait_state(running, name, "ending")
    assert running.call(name)["reason"] == f"no request can name a channel of the id {name}"
    leg = asterisk.dial()
    wait_state(running, leg, "connected")
    asterisk.hang_up(f"caller-of-{name}")
    wait_state(running, name, "ended")
    assert running.value("SELECT count(*) FROM workflow_runs") == 1
    refused = "SELECT name, detail FROM ari.timeline WHERE call_id IS NULL AND strpos(detail, '405') > 0"
    assert not running.query(refused), "a message was given up"


def test_a_leg_that_another_program_makes_in_our_app_is_left_to_it(running: Pipeline, asterisk: RealAsterisk) -> None:
    """Before it is dialled, while it rings, once it is answered, and at its end; and the next caller is served."""
    legs = {"made": "Local/wait@far", "ringing": "Local/ring@far", "answered": "Local/wait@far"}
    for leg, endpoint in legs.items():
        body = {"endpoint": endpoint, "app": "voiceai", "channelId": leg, "formats": "ulaw"}
        asterisk.request("POST", "/channels/create", body=body).raise_for_status()
    noted = "SELECT count(*) FROM ari.timeline WHERE name = 'OutgoingLeg'"
    wait_until(lambda: running.value(noted) == len(legs), seconds=5, what=lambda: str(running.calls()))
    for leg in ("ringing", "answered"):
        asterisk.request("POST", f"/channels/{leg}/dial").raise_for_status()
    # Some resyncs see them.
    time.sleep(3.5)
    states = {channel["id"]: channel["state"] for channel in asterisk.channels()}
    assert {leg: states.get(leg) for leg in legs} == {"made": "Down", "ringing": "Ringing", "answered": "Up"}
    for leg in legs:
        asterisk.hang_up(leg)
    leg = asterisk.dial()
    wait_state(running, leg, "connected")
    assert [call["channel_id"] for call in running.calls()] == [leg]
    assert running.value("SELECT count(*) FROM workflow_runs") == 1


def test_a_caller_belongs_to_the_app_that_it_was_moved_to(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent
) -> None:
    with other_program(asterisk, "ivr"):
        here, away, there_and_back = asterisk.dial("ivr"), asterisk.dial(), asterisk.dial("ivr")
        wait_state(running, away, "connected")
        wait_until(lambda: {here, there_and_back} <= ids(asterisk), seconds=5, what="they are in the menu")
        for leg in (here, there_and_back):
            move(asterisk, leg, "voiceai")
            wait_state(running, leg, "connected")
        for leg in (away, there_and_back):
            move(asterisk, leg, "ivr")
            wait_state(running, leg, "ended")
        # Some resyncs see them: they stay another program's.
        time.sleep(2.5)
        assert {away, there_and_back} <= ids(asterisk), "a caller that was moved away was hung up"
        assert [len(running.calls(leg)) for leg in (here, away, there_and_back)] == [1, 1, 1]
        move(asterisk, there_and_back, "voiceai")
        wait_calls(running, there_and_back, "ended", "connected")
        agent.close_all()
        for leg in (here, there_and_back):
            wait_gone(asterisk, leg, seconds=2)
            wait_state(running, leg, "ended")
            assert running.calls(leg)[-1]["reason"] == "agent hung up"
        assert away in ids(asterisk)
    assert not asterisk.bridges()


def test_an_agent_that_breaks_off_is_told_from_one_that_hangs_up(
    running: Pipeline, asterisk: RealAsterisk, agent: Agent
) -> None:
    expected = {
        agent.break_all: ("failed", "agent lost: media leg ended, cause 38", "error"),
        agent.close_all: ("completed", "agent hung up", "completed"),
    }
    for end, (outcome, reason, disposition) in expected.items():
        leg = asterisk.dial()
        wait_state(running, leg, "connected")
        end()
        wait_state(running, leg, "ended")
        assert (running.call(leg)["outcome"], running.call(leg)["reason"]) == (outcome, reason)
        run = running.run(leg)
        assert run["is_completed"]
        assert run["gathered_context"]["mapped_call_disposition"] == disposition
        wait_gone(asterisk, leg, seconds=2)


def test_a_media_leg_that_somebody_else_hangs_up_ends_the_call(running: Pipeline, asterisk: RealAsterisk) -> None:
    """Their ends are told as those that a teardown has asked for are, but for the cause, which is not a teardown's."""

    def by_command(media: str) -> None:
        (name,) = (channel["name"] for channel in asterisk.channels() if channel["id"] == media)
        asterisk.cli(f"channel request hangup {name}")

    for hang_up in (asterisk.hang_up, by_command):
        leg = asterisk.dial()
        wait_state(running, leg, "connected")
        hang_up(running.own_id(running.call(leg), "m"))
        wait_gone(asterisk, leg, seconds=2)
        wait_state(running, leg, "ended")
        # A resync would have found it gone.
        assert (running.call(leg)["outcome"], running.call(leg)["reason"]) == ("completed", "agent hung up")
