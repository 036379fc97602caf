"""Legs that the platform has originated, and refused callers, on a simulated Asterisk."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator

import pytest

from devstack import platform_tables
from devstack.tenants import closing_tenant
from tests.acceptance.environment import APP, Deploy, Deployment, Environment
from tests.acceptance.outbound import LOCAL, args, only_call, run_row, waiting_run

pytestmark = pytest.mark.services


@pytest.fixture(scope="module", params=platform_tables.EVERY)
def deployment(deploy: Deploy, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with deploy(f"platform-legs-{request.param}", layout=request.param, COMPLETED_RUNS_SECONDS="0.5") as made:
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        made.tenant.configure(made.asterisk.url, **LOCAL)
        yield made


def platform_calls(env: Environment, run_id: int, number: str = "100", *, channel_id: str) -> None:
    """Do what the platform's own API does: originate, then write the channel into the run."""
    env.rest(
        "POST",
        "/channels",
        endpoint=f"Local/{number}@far",
        app=APP,
        appArgs=args(env, run_id),
        channelId=channel_id,
        timeout="1",
    )
    env.pipeline.query(
        "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s RETURNING 1",
        json.dumps({"provider": "ari", "call_id": channel_id, "theirs": 1}),
        run_id,
    )


def platform_channel() -> str:
    return f"platform-{uuid.uuid4().hex[:12]}"


def test_a_leg_of_the_platform_is_connected_for_its_run(env: Environment) -> None:
    run_id, leg = waiting_run(env), platform_channel()
    platform_calls(env, run_id, channel_id=leg)
    call = only_call(env, "connected")
    assert (call["channel_id"], call["direction"], call["workflow_run_id"]) == (leg, "outbound", run_id)
    assert env.is_joined(leg)
    gathered = run_row(env, run_id)["gathered_context"]
    assert (gathered["call_id"], gathered["provider"]) == (leg, "ari")
    assert env.runs() == 1
    env.end(leg)
    assert run_row(env, run_id)["is_completed"]


@pytest.mark.parametrize("with_user", [True, False])
def test_arguments_in_one_string_are_read_as_well(env: Environment, *, with_user: bool) -> None:
    run_id = waiting_run(env)
    said = args(env, run_id)
    leg = env.dial(answered=True, args=[said if with_user else said.rpartition(",")[0]])
    env.wait_state(leg, "connected")
    assert env.pipeline.call(leg)["user_id"] == env.tenant.user_id
    env.end(leg)


def test_a_ringing_leg_that_names_a_run_is_answered(env: Environment) -> None:
    run_id = waiting_run(env)
    leg = env.dial(args=args(env, run_id).split(","))
    env.wait_state(leg, "connected")
    env.end(leg)


@pytest.mark.parametrize(
    ("number", "outcome", "disposition", "cause"),
    [("busy", "busy", "busy", 17), ("congestion", "failed", "failed", 42), ("reject", "failed", "failed", 21),
     ("ring", "no-answer", "no-answer", 19)],
)  # fmt: skip
def test_an_unanswered_leg_of_the_platform_ends_its_run(
    env: Environment, number: str, outcome: str, disposition: str, cause: int
) -> None:
    run_id, leg = waiting_run(env), platform_channel()
    platform_calls(env, run_id, number, channel_id=leg)
    call = only_call(env, "ended")
    assert (call["channel_id"], call["outcome"], call["direction"]) == (leg, outcome, "outbound")
    run = run_row(env, run_id)
    assert (run["is_completed"], run["gathered_context"]["call_disposition"]) == (True, disposition)
    assert run["gathered_context"]["theirs"] == 1
    env.until(lambda: only_call(env, "ended")["hangup_cause"] == cause, seconds=3, what=f"cause {cause}")


def test_a_far_end_that_hangs_up_before_it_is_displaced_ends_its_run(env: Environment) -> None:
    """Asterisk answers slowly whether the leg exists, to a resync as well; by then the leg is gone."""
    run_id, leg = waiting_run(env), platform_channel()
    env.control.fault("GET", f"/channels/{leg}", "before", delay_seconds=1.0, times=2)
    env.dial(channel_id=leg, answered=True, args=args(env, run_id).split(","))
    env.wait_state(leg, "received")
    env.control.hang_up(leg)
    call = only_call(env, "ended")
    assert (call["outcome"], call["direction"]) == ("canceled", "outbound")
    run = run_row(env, run_id)
    assert (run["is_completed"], run["gathered_context"]["call_disposition"]) == (True, "canceled")
    env.wait_empty()


def test_an_unanswered_leg_of_another_tenant_s_run_ends_nothing(deployment: Deployment, env: Environment) -> None:
    with closing_tenant(deployment.database_url, f"victim-{uuid.uuid4().hex[:8]}") as victim:
        leg = platform_channel()
        run_id = waiting_run(env, victim, gathered_context=json.dumps({"call_id": leg}))
        before = run_row(env, run_id)
        env.rest("POST", "/channels", endpoint="Local/busy@far", app=APP, channelId=leg)
        env.until(
            lambda: env.control.event_log("ChannelDestroyed"),
            seconds=5,
            what="it is gone",
        )
        with deployment.queue() as client:
            # Delayed messages count, too: the last attempt to find the call was made.
            deployment.wait_idle(client, seconds=15)
        assert run_row(env, run_id) == before
        assert env.calls() == []


#: Owners of the run, workflow and user that a leg names (`a` its tenant, `b` the other one) → reason of the refusal.
COMBINATIONS = {
    (run, workflow, user): (
        None if (run, workflow) == ("a", "a") and user in ("a", "")
        else "does not belong to this organization" if run == "b"
        else "does not belong to workflow" if workflow == "b"
        else "does not belong to this organization"
    )
    for run, workflow, user in itertools.product("ab", "ab", ["a", "b", ""])
}  # fmt: skip


@pytest.mark.parametrize(("named", "reason"), COMBINATIONS.items(), ids=lambda named: "".join(named or "served"))
def test_every_combination_of_two_tenants(
    deployment: Deployment, env: Environment, named: tuple[str, str, str], reason: str | None
) -> None:
    with closing_tenant(deployment.database_url, f"other-{uuid.uuid4().hex[:8]}") as other:
        tenants = {"a": env.tenant, "b": other}
        runs = {name: waiting_run(env, tenant) for name, tenant in tenants.items()}
        before = {name: run_row(env, run_id) for name, run_id in runs.items()}
        run, workflow, user = named
        said = f"workflow_run_id={runs[run]},workflow_id={tenants[workflow].workflow_id}"
        if user:
            said += f",user_id={tenants[user].user_id}"
        leg = env.dial(answered=True, args=said.split(","))
        if reason is None:
            env.wait_state(leg, "connected")
            env.end(leg)
        else:
            env.wait_state(leg, "ended")
            call = env.pipeline.call(leg)
            assert (call["outcome"], call["workflow_run_id"], call["hangup_cause"]) == ("refused", None, 57)
            assert reason in call["reason"]
            assert run_row(env, runs["a"]) == before["a"]
        assert run_row(env, runs["b"]) == before["b"]
        assert env.pipeline.query("SELECT 1 FROM ari.calls WHERE organization_id = %s", other.organization_id) == []
        env.wait_empty()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["workflow_run_id={run}"], "workflow_id is missing"),
        (["workflow_id={workflow}"], "workflow_run_id is missing"),
        (["user_id={user}"], "workflow_run_id is missing"),
        (["workflow_run_id=", "workflow_id={workflow}"], "workflow_run_id is not the number of one"),
        (["workflow_run_id={run}x", "workflow_id={workflow}"], "workflow_run_id is not the number of one"),
        (["workflow_run_id={run}", "workflow_id={workflow}", "workflow_run_id=1"], "workflow_run_id is given twice"),
        (["workflow_run_id={run}", "workflow_id=99999999999999"], "workflow_id is not the number of one"),
    ],
)
def test_a_leg_with_incomplete_arguments_is_refused(env: Environment, said: list[str], reason: str) -> None:
    run_id = waiting_run(env)
    names = {"run": run_id, "workflow": env.tenant.workflow_id, "user": env.tenant.user_id}
    leg = env.dial(answered=True, args=[text.format(**names) for text in said])
    env.wait_state(leg, "ended")
    call = env.pipeline.call(leg)
    assert (call["outcome"], call["reason"]) == ("refused", reason)
    assert run_row(env, run_id)["state"] == "initialized"
    env.wait_empty()


@pytest.mark.parametrize(
    ("state", "is_completed"), [("running", False), ("completed", True)], ids=["running", "completed"]
)
def test_a_run_that_does_not_wait_is_not_taken(env: Environment, state: str, *, is_completed: bool) -> None:
    run_id = waiting_run(env, state=state, is_completed=is_completed)
    before = run_row(env, run_id)
    leg = env.dial(answered=True, args=args(env, run_id).split(","))
    env.wait_state(leg, "ended")
    assert "does not wait for a call" in env.pipeline.call(leg)["reason"]
    assert run_row(env, run_id) == before


def test_two_legs_for_one_run_are_one_call(env: Environment) -> None:
    run_id = waiting_run(env)
    legs = [env.dial(answered=True, args=args(env, run_id).split(",")) for _ in range(2)]
    env.until(
        lambda: sorted(env.pipeline.state(leg) or "" for leg in legs) == ["connected", "ended"],
        seconds=10,
        what="one is served, one refused",
    )
    (served,) = [leg for leg in legs if env.pipeline.state(leg) == "connected"]
    env.end(served)


def test_an_answered_leg_without_arguments_is_an_inbound_call(env: Environment) -> None:
    leg = env.dial(answered=True)
    env.wait_state(leg, "connected")
    assert env.pipeline.call(leg)["direction"] == "inbound"
    env.end(leg)


def test_arguments_of_the_dialplan_s_own_are_not_ours(env: Environment) -> None:
    leg = env.dial(args=["language=de", "vip"])
    env.wait_state(leg, "connected")
    env.end(leg)


def test_a_refused_caller_continues_in_the_dialplan_with_the_reason(env: Environment) -> None:
    env.tenant.configure(env.asterisk.url, inbound_workflow_id=None, ari_on_refusal="continue")
    leg = env.dial()
    env.wait_state(leg, "ended")
    call = env.pipeline.call(leg)
    reason = call["reason"]
    assert (call["outcome"], "no inbound workflow" in reason) == ("refused", True)
    asked = [request.path for request in env.control.requests() if leg in request.path]
    assert f"/channels/{leg}/continue" in asked
    assert not env.asked("DELETE", f"/channels/{leg}")
    told = {
        request.query["variable"]: request.query["value"] for request in env.asked("POST", f"/channels/{leg}/variable")
    }
    assert told == {
        "AIP_OUTCOME": "refused", "AIP_REASON": reason, "AIP_CAUSE": "1",
    }  # fmt: skip


def test_a_refused_caller_is_hung_up_with_the_cause_unless_told(env: Environment) -> None:
    env.tenant.configure(env.asterisk.url, inbound_workflow_id=None)
    leg = env.dial()
    env.wait_state(leg, "ended")
    (deleted,) = env.asked("DELETE", f"/channels/{leg}")
    assert deleted.query["reason_code"] == "1"
