"""Outbound calls on a simulated Asterisk: our own originates, and the operator's commands for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.environment import APP, Deploy, Deployment, Environment
from tests.acceptance.outbound import LOCAL, args, arictl, only_call, request_call, run_of, waiting_run

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("outbound", COMPLETED_RUNS_SECONDS="0.5") as made:
        yield made


@pytest.fixture
def env(deployment: Deployment) -> Iterator[Environment]:
    with deployment.environment() as made:
        made.tenant.configure(made.asterisk.url, **LOCAL)
        yield made


def test_an_answered_call_gets_an_agent_and_its_run_is_as_the_platform_s_are(env: Environment) -> None:
    request_call(env, "+4930123", caller_id="+4955501")
    call = only_call(env, "connected")
    leg = call["channel_id"]
    assert env.is_joined(leg)
    assert (call["direction"], call["called_number"], call["caller_number"]) == ("outbound", "+4930123", "+4955501")
    run = run_of(env, call)
    assert (run["mode"], run["call_type"], run["state"]) == ("ari", "outbound", "running")
    assert run["name"] == f"WR-TEL-OUT-{call['call_id'].int % 10**8:08d}"
    assert run["initial_context"] == {
        "caller_number": "+4955501", "called_number": "+4930123", "direction": "outbound", "provider": "ari",
    }  # fmt: skip
    assert run["gathered_context"]["call_id"] == leg
    (asked,) = env.asked("POST", "/channels")
    assert asked.query["endpoint"] == "Local/+4930123@far"
    assert asked.query["callerId"] == "<+4955501>"
    assert asked.query["appArgs"] == f"{args(env, run['id'])},leg_id={leg}"
    env.end(leg)
    ended = only_call(env, "ended")
    assert (ended["outcome"], ended["reason"]) == ("completed", "caller hung up")
    assert run_of(env, ended)["is_completed"]


def test_media_starts_with_the_answer_and_not_before(env: Environment) -> None:
    request_call(env, "ring", ring_seconds=60)
    leg = only_call(env, "ringing")["channel_id"]
    env.until(lambda: env.control.channel(leg)["state"] == "Ringing", seconds=5, what="it rings")  # type: ignore[index]
    # A resync in the meantime changes nothing.
    before = env.count("GET", f"/applications/{APP}")
    env.until(lambda: env.count("GET", f"/applications/{APP}") > before + 2, seconds=10, what="it was resynced")
    assert only_call(env, "ringing")["attempt"] == 0
    assert env.count("POST", "/channels/externalMedia") == 0
    arictl(env, "hangup", leg)
    ended = only_call(env, "ended")
    assert (ended["outcome"], ended["reason"]) == ("canceled", "ended by an operator")
    assert run_of(env, ended)["gathered_context"]["call_disposition"] == "canceled"
    env.wait_empty()


@pytest.mark.parametrize(
    ("number", "came_to", "disposition"),
    [
        ("busy", ("busy", "busy", 17), "busy"),
        ("congestion", ("failed", "congestion", 42), "failed"),
        ("reject", ("failed", "rejected", 21), "failed"),
        ("ring", ("no-answer", "not answered", 19), "no-answer"),
    ],
)
def test_an_unanswered_call_ends_its_run_within_a_second(
    env: Environment, number: str, came_to: tuple[str, str, int], disposition: str
) -> None:
    request_call(env, number, ring_seconds=1)
    call = only_call(env, "ended")
    assert (call["outcome"], call["reason"], call["hangup_cause"]) == came_to
    run = run_of(env, call)
    assert (run["state"], run["is_completed"], run["usage_info"]) == ("completed", True, {"call_duration_seconds": 0})
    gathered = run["gathered_context"]
    assert (gathered["call_disposition"], gathered["mapped_call_disposition"]) == (disposition, disposition)
    assert (gathered["call_id"], gathered["error"]) == (call["channel_id"], came_to[1])
    destroyed = [
        entry for entry in env.control.event_log() if entry["event"]["type"] == "ChannelDestroyed"
        and entry["event"]["channel"]["id"] == call["channel_id"]
    ]  # fmt: skip
    assert destroyed
    assert env.count("POST", "/channels/externalMedia") == 0
    taken = (call["ended_at"] - call["ending_at"]).total_seconds()
    assert taken < 1.0, env.describe()
    env.wait_empty()


def test_the_same_request_is_placed_once(deployment: Deployment, env: Environment) -> None:
    request_id = "campaign 7, row 12"
    for _ in range(5):
        request_call(env, "100", request_id=request_id)
    call = only_call(env, "connected")
    request_call(env, "100", request_id=request_id)
    with deployment.queue() as client:
        deployment.wait_idle(client)
    assert env.count("POST", "/channels") == 1
    assert env.runs() == 1
    env.end(call["channel_id"])


def test_an_originate_whose_worker_died_is_taken_up_and_not_dialled_twice(env: Environment) -> None:
    """The step is dispatched again while the far end rings: it checks Asterisk, and does not dial again."""
    env.control.fault("POST", "/channels", "after", abort=True, times=1)
    request_call(env, "100")
    call = only_call(env, "connected", seconds=20)
    assert env.count("POST", "/channels") == 1, env.describe()
    env.end(call["channel_id"])


def test_a_call_that_is_ended_while_asterisk_is_being_asked_does_not_ring_on(env: Environment) -> None:
    """The first teardown finds no leg: the leg is removed as soon as it is known to exist."""
    env.control.fault("POST", "/channels", "before", delay_seconds=2.5, times=1)
    request_call(env, "ring", ring_seconds=60)
    call = only_call(env, "originating")
    assert arictl(env, "hangup", str(call["call_id"])).returncode == 0
    ended = only_call(env, "ended", seconds=8)
    assert (ended["outcome"], ended["reason"]) == ("canceled", "ended by an operator")
    env.wait_empty()


def test_an_originate_that_cannot_be_dialled_fails_with_asterisk_s_words(env: Environment) -> None:
    env.control.fault("POST", "/channels", status=500, message="Allocation failed", times=1)
    request_call(env, "100")
    call = only_call(env, "ended")
    assert (call["outcome"], call["reason"]) == ("failed", "not originated: 500 Allocation failed")
    assert run_of(env, call)["gathered_context"]["call_disposition"] == "failed"


def test_a_call_for_a_run_that_waits(env: Environment) -> None:
    run_id = waiting_run(env)
    request_call(env, "100", workflow_id=None, workflow_run_id=run_id)
    call = only_call(env, "connected")
    assert call["workflow_run_id"] == run_id
    assert run_of(env, call)["state"] == "running"
    env.end(call["channel_id"])


def test_an_agent_that_is_down_hangs_up_the_answered_far_end(env: Environment) -> None:
    with env.control.media_refused():
        request_call(env, "100")
        call = only_call(env, "ended", seconds=30)
    assert (call["outcome"], run_of(env, call)["gathered_context"]["call_disposition"]) == ("failed", "error")
    env.wait_empty()


def test_a_longest_call_of_the_connection_s_own_ends_it(env: Environment) -> None:
    env.tenant.configure(env.asterisk.url, **LOCAL, ari_max_call_seconds=1.5)
    request_call(env, "100")
    ended = only_call(env, "ended")
    assert (ended["outcome"], ended["reason"]) == ("completed", "longest call time reached")


def test_a_run_that_the_platform_completes_ends_its_call(env: Environment) -> None:
    request_call(env, "100")
    call = only_call(env, "connected")
    env.pipeline.query(
        "UPDATE workflow_runs SET state = 'completed', is_completed = true WHERE id = %s RETURNING 1",
        call["workflow_run_id"],
    )
    ended = only_call(env, "ended")
    assert (ended["outcome"], ended["reason"]) == ("completed", "its run was completed")
    env.wait_empty()


def test_an_operator_places_a_call_and_ends_it(env: Environment) -> None:
    tenant = env.tenant
    placed = arictl(env, "call", "100", "-o", str(tenant.organization_id), "--workflow", str(tenant.workflow_id))
    assert placed.returncode == 0, placed.stderr
    call = only_call(env, "connected")
    assert str(call["call_id"]) in placed.stdout
    ended = arictl(env, "hangup", str(call["call_id"])[:8])
    assert "is being ended" in ended.stdout
    assert only_call(env, "ended")["reason"] == "ended by an operator"
    again = arictl(env, "hangup", str(call["call_id"])[:8])
    assert "is already ended" in again.stdout
    env.wait_empty()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["1@evil", "--workflow", "{workflow}"], "is no number"),
        (["100&PJSIP/200", "--workflow", "{workflow}"], "is no number"),
        (["100,30,G(x)", "--workflow", "{workflow}"], "is no number"),
        (["100\n200", "--workflow", "{workflow}"], "is no number"),
        (["100"], "neither a workflow, for a new run, nor a run"),
        (["100", "--workflow", "999999"], "workflow 999999 does not exist"),
        (["100", "--run", "999999"], "has no run 999999"),
        (["100", "--workflow", "{workflow}", "--caller-id", '"x" <1>'], "is no number"),
    ],
)
def test_an_impossible_call_is_refused_at_once(env: Environment, words: list[str], reason: str) -> None:
    given = [word.replace("{workflow}", str(env.tenant.workflow_id)) for word in words]
    refused = arictl(env, "call", *given, "-o", str(env.tenant.organization_id))
    assert refused.returncode == 1
    assert reason in refused.stderr, refused.stderr
    assert refused.stderr.count("\n") == 1
    assert env.calls() == []
    assert env.runs() == 0
