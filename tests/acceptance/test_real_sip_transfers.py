"""Transfers and pick-ups by SIP telephones, on a real Asterisk: the call follows its leg, and ends with it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack import processes
from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_root import Root
from devstack.pipeline import Pipeline, wait_until
from shared import messages, queues
from shared.call.call_requests import CallRequest
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import RealStack
from tests.support import telephones
from tests.support.telephones import Telephones

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

#: 5551 is the agent; so is 5552, where a caller is answered at once. 2000 is a customer, 1001 a colleague. Who calls 8
#: picks up the channel that TARGET names.
DIALPLAN = f"""
[{telephones.CONTEXT}]
exten => 5551,1,Ringing()
 same => n,Stasis(voiceai)
 same => n,Hangup()
exten => 5552,1,Answer()
 same => n,Stasis(voiceai)
 same => n,Hangup()
exten => 2000,1,Dial(Local/wait@far/n)
 same => n,Hangup()
exten => 1001,1,Dial(Local/wait@far)
 same => n,Hangup()
exten => 8,1,PickupChan(${{GLOBAL(TARGET)}},p)
 same => n,Hangup()
"""


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """The SIP ports of the PBX and of its telephones."""
    return processes.free_port(), processes.free_port()


@pytest.fixture(scope="module")
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path, ports: tuple[int, int]) -> Iterator[RealStack]:
    pbx, phones = ports
    with real_stack.running(
        deploy, asterisk_root, stack_folder, "sip-transfers", dialplan=DIALPLAN,
        configured={"ari_dial_template": "Local/{number}@far", "from_numbers": ["+4955501"]},
        times={"RESYNC_SECONDS": "1", "CONFIGURATIONS_SECONDS": "0.5"},
        modules=telephones.MODULES, more_files=telephones.files(own=pbx, other=phones, name="phones"),
    ) as made:  # fmt: skip
        yield made


@pytest.fixture(scope="module")
def phones(asterisk_root: Root, stack_folder: Path, ports: tuple[int, int]) -> Iterator[Telephones]:
    pbx, own = ports
    with telephones.telephones(asterisk_root, stack_folder / "telephones", own=own, pbx=pbx) as made:
        yield made


@pytest.fixture
def running(stack: RealStack, phones: Telephones) -> Iterator[Pipeline]:
    """All processes, with frequent resyncs and the tenant's event socket open."""
    with stack.test() as pipeline:
        yield pipeline
        phones.hang_up_all()


asterisk, agent = real_stack.FIXTURES[1:3]


def only_call(running: Pipeline, *states: str, seconds: float = 10) -> dict[str, Any]:
    """Wait until there is one call, in one of these states; return it."""
    wait_until(
        lambda: [call["state"] in states for call in running.calls()] == [True],
        seconds=seconds,
        what=lambda: "\n".join(running.story(call["channel_id"]) for call in running.calls()) or running.log_tail(),
    )
    return running.calls()[0]


def wait_followed(running: Pipeline) -> dict[str, Any]:
    wait_until(
        lambda: [bool(call["replacements"]) for call in running.calls()] == [True],
        seconds=5,
        what=lambda: "\n".join(running.story(call["channel_id"]) for call in running.calls()),
    )
    return running.calls()[0]


def party(asterisk: RealAsterisk) -> str:
    """Return the channel of the party that was dialled, colleague or customer."""
    return next(
        str(one["id"])
        for one in asterisk.channels()
        if one["dialplan"]["context"] == "far" and one["name"].endswith(";2")
    )


def wait_over(running: Pipeline, asterisk: RealAsterisk) -> None:
    """Wait until the one call has ended in good order, with its run, and nothing is left."""
    call = only_call(running, "ended", seconds=1)
    assert (call["outcome"], call["reason"]) == ("completed", "caller hung up")
    assert running.run(call["channel_id"])["is_completed"]
    assert running.value("SELECT count(*) FROM workflow_runs") == 1
    wait_until(
        lambda: not asterisk.channels() and not asterisk.bridges(), seconds=5, what=lambda: str(asterisk.channels())
    )


def test_a_telephone_transfers_its_call_blindly(running: Pipeline, asterisk: RealAsterisk, phones: Telephones) -> None:
    phones.call("5551", "caller")
    call = only_call(running, "connected")
    phones.transfer_blindly("caller", "1001")
    call = wait_followed(running)
    wait_until(lambda: not phones.is_up("caller"), seconds=5, what="the telephone hangs up")
    only_call(running, "connected")
    assert running.run(call["channel_id"])["gathered_context"]["call_id"] == call["replacements"][-1]
    asterisk.hang_up(party(asterisk))
    wait_over(running, asterisk)


@pytest.mark.parametrize("agent_takes_seconds", [0.0, 2.0])
def test_a_telephone_hands_a_customer_over_to_the_agent(
    running: Pipeline, asterisk: RealAsterisk, phones: Telephones, agent: Agent, agent_takes_seconds: float
) -> None:
    """Attended. The agent is on the line already, or the caller who waits for it is handed over."""
    agent.behaviour.accept_delay_seconds = agent_takes_seconds
    phones.call("5552", "to-the-agent", does="noted")
    only_call(running, "prepared" if agent_takes_seconds else "connected")
    phones.call("2000", "to-the-customer")
    for name in ("to-the-agent", "to-the-customer"):
        wait_until(lambda name=name: phones.is_up(name), seconds=5, what=f"{name} is answered")  # type: ignore[misc]
    phones.transfer_to_the_noted_call("to-the-customer")
    call = wait_followed(running)
    call = only_call(running, "connected")
    wait_until(
        lambda: running.run(call["channel_id"])["gathered_context"]["call_id"] == call["replacements"][-1],
        seconds=5,
        what=lambda: running.story(call["channel_id"]),
    )
    assert len(agent.sessions) == 1
    asterisk.hang_up(party(asterisk))
    wait_over(running, asterisk)


def test_a_colleague_picks_up_what_the_agent_dials(
    running: Pipeline, asterisk: RealAsterisk, phones: Telephones, stack: RealStack
) -> None:
    request = CallRequest(
        organization_id=stack.tenant.organization_id, number="ring", request_id=uuid.uuid4().hex,
        workflow_id=stack.tenant.workflow_id,
    )  # fmt: skip
    queues.BrokerCommandQueue(queues.broker(running.redis_url)).send(messages.of_request(request))
    call = only_call(running, "ringing")
    (rings,) = [one["name"] for one in asterisk.channels() if one["id"] == call["channel_id"]]
    asterisk.cli(f"dialplan set global TARGET {rings}")
    phones.call("8", "colleague")
    call = only_call(running, "connected")
    assert len(call["replacements"]) == 1
    phones.hang_up_all()
    wait_over(running, asterisk)


def test_the_code_of_sip_is_stored_and_shown(
    running: Pipeline, asterisk: RealAsterisk, phones: Telephones, stack: RealStack
) -> None:
    """Of a leg that the platform dials, by a number that no telephone has, and of a caller who hangs up."""
    tenant, leg = stack.tenant, f"platform-{uuid.uuid4().hex}"
    run_id = running.value(
        "INSERT INTO workflow_runs (name, workflow_id, mode, call_type, is_completed, initial_context,"
        " gathered_context, usage_info, cost_info, annotations, created_at) VALUES ('WR-TEL-OUT-00000001', %s, 'ari',"
        " 'outbound', false, '{}', json_build_object('call_id', %s::text), '{}', '{}', '{}', now()) RETURNING id",
        tenant.workflow_id, leg,
    )  # fmt: skip
    said = f"workflow_run_id={run_id},workflow_id={tenant.workflow_id},user_id={tenant.user_id}"
    asterisk.request(
        "POST", "/channels", endpoint="PJSIP/4711@phones", app="voiceai", appArgs=said, channelId=leg, formats="ulaw"
    ).raise_for_status()
    call = only_call(running, "ended")
    assert (call["outcome"], call["fault"], call["tech_cause"]) == ("failed", "far-end", 404), call["reason"]
    phones.call("5551", "caller")
    wait_until(lambda: phones.is_up("caller"), seconds=5, what="the caller talks")
    phones.hang_up_all()
    wait_until(lambda: [one["state"] for one in running.calls()] == ["ended"] * 2, seconds=5, what="both have ended")
    assert [one["tech_cause"] for one in running.calls()] == [404, None], "a BYE has no code"
