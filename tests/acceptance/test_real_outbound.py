"""Outbound calls on a real Asterisk with the real processes: ours, the platform's, and refused callers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from devstack.agent import Agent
from devstack.asterisk import RealAsterisk
from devstack.asterisk_root import Root
from devstack.pipeline import Pipeline, wait_until
from devstack.tenants import Tenant
from shared import messages, queues
from shared.call.call_requests import CallRequest
from tests.acceptance import real_stack
from tests.acceptance.environment import Deploy
from tests.acceptance.real_stack import RealStack

pytestmark = [pytest.mark.asterisk, pytest.mark.services]

#: The dialplan behind Stasis for refused callers: it shows the channel variables, and waits.
ANNOUNCEMENT = """
[announced]
exten => _X.,1,Stasis(voiceai)
 same => n,Set(GLOBAL(TOLD)=${AIP_OUTCOME}/${AIP_CAUSE}/${AIP_REASON})
 same => n,Wait(3600)
"""


@pytest.fixture(scope="module")
def stack(deploy: Deploy, asterisk_root: Root, stack_folder: Path) -> Iterator[RealStack]:
    dials = {"ari_dial_template": "Local/{number}@far", "from_numbers": ["+4955501"]}
    with real_stack.running(
        deploy, asterisk_root, stack_folder, "real-outbound", dialplan=ANNOUNCEMENT, configured=dials
    ) as made:
        yield made


running, asterisk, agent, tenant = real_stack.FIXTURES


def request_call(running: Pipeline, tenant: Tenant, number: str, **how: Any) -> None:
    request = CallRequest(
        organization_id=tenant.organization_id,
        number=number,
        request_id=uuid.uuid4().hex,
        workflow_id=tenant.workflow_id,
        **how,
    )
    queues.BrokerCommandQueue(queues.broker(running.redis_url)).send(messages.of_request(request))


def wait_calls(running: Pipeline, count: int, *states: str, seconds: float = 15) -> list[dict[str, Any]]:
    wait_until(
        lambda: len([call for call in running.calls() if call["state"] in states]) == count,
        seconds=seconds,
        what=lambda: "\n".join(running.story(call["channel_id"]) for call in running.calls()) + running.log_tail(),
    )
    return running.calls()


def nothing_is_left(asterisk: RealAsterisk) -> bool:
    return not asterisk.channels() and not asterisk.bridges()


def test_the_far_end_of_an_outbound_call_talks_with_the_agent(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant, agent: Agent
) -> None:
    request_call(running, tenant, "tone")
    (call,) = wait_calls(running, 1, "connected")
    assert call["caller_number"] == "+4955501"
    session = agent.sessions[call["workflow_run_id"]]
    wait_until(lambda: session.dominant_frequency is not None, seconds=5, what="the agent hears whom we called")
    assert session.dominant_frequency == pytest.approx(1004, abs=20)
    # A second request under the same id is answered as if it had been done.
    again = asterisk.request(
        "POST", "/channels", endpoint="Local/tone@far", app="voiceai", channelId=call["channel_id"]
    )
    assert again.status_code == 409
    asterisk.hang_up(call["channel_id"])
    wait_calls(running, 1, "ended")
    wait_until(lambda: nothing_is_left(asterisk), seconds=5, what=lambda: str(asterisk.channels()))
    assert running.value("SELECT count(*) FROM workflow_runs WHERE NOT is_completed") == 0


def test_whom_we_cannot_reach_ends_the_run_with_disposition_and_cause(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant
) -> None:
    expected = {
        "busy": ("busy", "busy", 17),
        "congestion": ("failed", "failed", 42),
        "reject": ("failed", "failed", 21),
        "ring": ("no-answer", "no-answer", 19),
        "nosuchnumber": ("failed", "failed", None),
    }
    for number in expected:
        request_call(running, tenant, number, ring_seconds=2)
    calls = wait_calls(running, len(expected), "ended")
    came_to = {
        call["called_number"]: (
            call["outcome"],
            running.run(call["channel_id"])["gathered_context"]["call_disposition"],
            call["hangup_cause"] if call["called_number"] != "nosuchnumber" else None,
        )
        for call in calls
    }
    assert came_to == expected, [(call["called_number"], call["reason"], call["hangup_cause"]) for call in calls]
    assert running.value("SELECT count(*) FROM workflow_runs WHERE NOT is_completed") == 0
    assert max((call["ended_at"] - call["ending_at"]).total_seconds() for call in calls) < 1
    wait_until(lambda: nothing_is_left(asterisk), seconds=5, what=lambda: str(asterisk.channels()))


def platform_calls(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant, number: str, *, writes_after_seconds: float = 0.0
) -> tuple[int, str]:
    """Do what the platform's own API does: begin a run, originate, and write the channel into the run, some time later.

    Returns:
        The run and the leg.
    """
    run_id = running.value(
        "INSERT INTO workflow_runs (name, workflow_id, mode, call_type, is_completed, initial_context,"
        " gathered_context, usage_info, cost_info, annotations, created_at) VALUES ('WR-TEL-OUT-00000001', %s, 'ari',"
        " 'outbound', false, '{\"provider\": \"ari\"}', '{}', '{}', '{}', '{}', now()) RETURNING id",
        tenant.workflow_id,
    )
    leg = f"platform-{uuid.uuid4().hex}"
    said = f"workflow_run_id={run_id},workflow_id={tenant.workflow_id},user_id={tenant.user_id}"
    answer = asterisk.request(
        "POST", "/channels", endpoint=f"Local/{number}@far", app="voiceai", appArgs=said, channelId=leg,
        formats="ulaw", timeout="2",
    )  # fmt: skip
    assert answer.status_code == 200
    time.sleep(writes_after_seconds)
    running.value(
        "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s RETURNING 1",
        json.dumps({"provider": "ari", "call_id": leg}),
        run_id,
    )
    return run_id, leg


def test_an_unanswered_leg_of_the_platform_comes_out_as_it_was_whenever_the_platform_writes_its_channel(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant
) -> None:
    """Dial and ChannelDestroyed come within a millisecond, in either order, and each tells a part only."""
    expected = {"busy": "busy", "congestion": "congestion", "reject": "rejected", "ring": "not answered"}
    delays = (0.0, 0.02, 0.02, 0.05, 0.09, 0.2, 0.3, 0.5, 1.0)
    made = [(number, delay) for number in expected for delay in delays]
    with ThreadPoolExecutor(4) as pool:
        legs = pool.map(
            lambda each: platform_calls(running, asterisk, tenant, each[0], writes_after_seconds=each[1])[1], made
        )
    came_to = dict(zip(legs, made, strict=True))
    calls = wait_calls(running, len(made), "ended", seconds=30)
    wrong = [
        (*came_to[call["channel_id"]], call["reason"])
        for call in calls
        if call["reason"] != expected[came_to[call["channel_id"]][0]]
    ]
    assert wrong == []
    disposition = {"busy": "busy", "congestion": "failed", "reject": "failed", "ring": "no-answer"}
    for leg, (number, _) in came_to.items():
        run = running.run(leg)
        assert (run["is_completed"], run["gathered_context"]["call_disposition"]) == (True, disposition[number])


@pytest.mark.parametrize("number", ["wait", "busy"])
def test_a_leg_of_the_platform_is_connected_or_its_run_ended(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant, number: str
) -> None:
    run_id, leg = platform_calls(running, asterisk, tenant, number)
    (call,) = wait_calls(running, 1, "connected" if number == "wait" else "ended")
    assert (call["channel_id"], call["workflow_run_id"], call["direction"]) == (leg, run_id, "outbound")
    if number == "wait":
        asterisk.hang_up(leg)
        wait_calls(running, 1, "ended")
    else:
        assert running.run(leg)["gathered_context"]["call_disposition"] == "busy"
    assert running.run(leg)["is_completed"]
    wait_until(lambda: nothing_is_left(asterisk), seconds=5, what=lambda: str(asterisk.channels()))


def test_a_refused_caller_continues_in_the_dialplan_and_hears_the_reason(
    running: Pipeline, asterisk: RealAsterisk, tenant: Tenant
) -> None:
    tenant.configure(asterisk.url, inbound_workflow_id=None, ari_on_refusal="continue")
    leg = asterisk.dial("announced", called="5551234")
    (call,) = wait_calls(running, 1, "ended")
    assert (call["outcome"], call["hangup_cause"]) == ("refused", 1)
    told = "no inbound workflow configured"
    wait_until(
        lambda: (
            asterisk.request("GET", "/asterisk/variable", variable="TOLD").json().get("value") == f"refused/1/{told}"
        ),
        seconds=5,
        what=lambda: asterisk.request("GET", "/asterisk/variable", variable="TOLD").text,
    )
    still_there = asterisk.request("GET", f"/channels/{leg}").json()
    assert still_there["dialplan"]["app_name"] == "Wait"
    asterisk.hang_up_caller(leg)
