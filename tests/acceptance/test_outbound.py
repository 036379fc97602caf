"""Outbound calls against a simulated Asterisk: our own originates, and legs that the platform has originated.

The product's processes run once for all tests of this module, with fast clocks; each test has a tenant and an Asterisk
of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack import servers
from shared import messages, queues
from shared.call.call_requests import CallRequest
from tests import databases
from tests.acceptance.pipeline import ROOT, SECRET_KEY, Tenant, closing_tenant
from tests.acceptance.sites import APP, Product, Site, running_product

pytestmark = pytest.mark.services

LOCAL = {"ari_dial_template": "Local/{number}@far"}


@pytest.fixture(scope="module")
def product(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> Iterator[Product]:
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        running_product(
            folder=stack_folder, logs=all_logs / "outbound", database_url=database_url, COMPLETED_RUNS_SECONDS="0.5"
        ) as made,
    ):
        yield made


@pytest.fixture
def site(product: Product) -> Iterator[Site]:
    with product.site() as made:
        made.tenant.configure(made.asterisk.url, **LOCAL)
        yield made


def place(site: Site, number: str, **how: Any) -> None:
    """Asks for a call by message."""
    asked: dict[str, Any] = {"request_id": uuid.uuid4().hex, "workflow_id": site.tenant.workflow_id} | how
    request = CallRequest(organization_id=site.tenant.organization_id, number=number, **asked)
    queues.BrokerCommandQueue(queues.broker(site.pipeline.redis_url)).send(messages.of_request(request))


def only_call(site: Site, *states: str, seconds: float = 10) -> dict[str, Any]:
    """The tenant's one call, once it is in one of these states."""
    site.until(
        lambda: [call["state"] for call in site.calls() if call["state"] in states],
        seconds=seconds,
        what=f"the call is {' or '.join(states)}",
    )
    (call,) = site.calls()
    return call


def run_of(site: Site, call: dict[str, Any]) -> dict[str, Any]:
    (run,) = site.pipeline.query("SELECT * FROM workflow_runs WHERE id = %s", call["workflow_run_id"])
    return run


def waiting_run(site: Site, tenant: Tenant | None = None, **changes: Any) -> int:
    """A run that the platform has made for a call of its own."""
    columns = {"state": "initialized", "is_completed": False, "gathered_context": "{}"} | changes
    run_id = int(
        site.pipeline.value(
            "INSERT INTO workflow_runs (name, workflow_id, mode, call_type, state, is_completed, initial_context,"
            " gathered_context, created_at) VALUES ('WR-TEL-OUT-00000001', %s, 'ari', 'outbound', %s, %s,"
            ' \'{"provider": "ari"}\', %s, now()) RETURNING id',
            (tenant or site.tenant).workflow_id,
            columns["state"],
            columns["is_completed"],
            columns["gathered_context"],
        )
    )
    site.platform_runs.add(run_id)
    return run_id


def run_row(site: Site, run_id: int) -> dict[str, Any]:
    (run,) = site.pipeline.query("SELECT * FROM workflow_runs WHERE id = %s", run_id)
    return run


def args(site: Site, run_id: int) -> str:
    return f"workflow_run_id={run_id},workflow_id={site.tenant.workflow_id},user_id={site.tenant.user_id}"


# ── our own originates ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answered_call_gets_an_agent_and_its_run_is_as_the_platform_s_are(site: Site) -> None:
    place(site, "+4930123", caller_id="+4955501")
    call = only_call(site, "connected")
    leg = call["channel_id"]
    assert site.is_joined(leg)
    assert (call["direction"], call["called_number"], call["caller_number"]) == ("outbound", "+4930123", "+4955501")
    run = run_of(site, call)
    assert (run["mode"], run["call_type"], run["state"]) == ("ari", "outbound", "running")
    assert run["name"] == f"WR-TEL-OUT-{call['call_id'].int % 10**8:08d}"
    assert run["initial_context"] == {
        "caller_number": "+4955501", "called_number": "+4930123", "direction": "outbound", "provider": "ari",
    }  # fmt: skip
    assert run["gathered_context"]["call_id"] == leg
    (asked,) = site.asked("POST", "/channels")
    assert asked.query["endpoint"] == "Local/+4930123@far"
    assert asked.query["callerId"] == "+4955501"
    assert asked.query["appArgs"] == args(site, run["id"])
    site.end(leg)
    ended = only_call(site, "ended")
    assert (ended["outcome"], ended["reason"]) == ("completed", "caller hung up")
    assert run_of(site, ended)["is_completed"]


def test_media_starts_with_the_answer_and_not_before(site: Site) -> None:
    place(site, "ring", ring_seconds=60)
    leg = only_call(site, "ringing")["channel_id"]
    site.until(lambda: site.control.channel(leg)["state"] == "Ringing", seconds=5, what="it rings")  # type: ignore[index]
    # A resync in between finds nothing to do.
    before = site.count("GET", f"/applications/{APP}")
    site.until(lambda: site.count("GET", f"/applications/{APP}") > before + 2, seconds=10, what="it was resynced")
    assert only_call(site, "ringing")["attempt"] == 0
    assert site.count("POST", "/channels/externalMedia") == 0
    _arictl(site, "hangup", leg)
    ended = only_call(site, "ended")
    assert (ended["outcome"], ended["reason"]) == ("canceled", "ended by an operator")
    assert run_of(site, ended)["gathered_context"]["call_disposition"] == "canceled"
    site.wait_empty()


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
    site: Site, number: str, came_to: tuple[str, str, int], disposition: str
) -> None:
    place(site, number, ring_seconds=1)
    call = only_call(site, "ended")
    assert (call["outcome"], call["reason"], call["hangup_cause"]) == came_to
    run = run_of(site, call)
    assert (run["state"], run["is_completed"], run["usage_info"]) == ("completed", True, {"call_duration_seconds": 0})
    gathered = run["gathered_context"]
    assert (gathered["call_disposition"], gathered["mapped_call_disposition"]) == (disposition, disposition)
    assert (gathered["call_id"], gathered["error"]) == (call["channel_id"], came_to[1])
    destroyed = [
        entry for entry in site.control.event_log() if entry["event"]["type"] == "ChannelDestroyed"
        and entry["event"]["channel"]["id"] == call["channel_id"]
    ]  # fmt: skip
    assert destroyed
    assert site.count("POST", "/channels/externalMedia") == 0
    taken = (call["ended_at"] - call["ending_at"]).total_seconds()
    assert taken < 1.0, site.tell()
    site.wait_empty()


def test_the_same_request_is_placed_once(product: Product, site: Site) -> None:
    request_id = "campaign 7, row 12"
    for _ in range(5):
        place(site, "100", request_id=request_id)
    call = only_call(site, "connected")
    place(site, "100", request_id=request_id)
    with product.queue() as client:
        product.wait_idle(client)
    assert site.count("POST", "/channels") == 1
    assert site.runs() == 1
    site.end(call["channel_id"])


def test_a_worker_that_died_after_asking_is_made_up_for_and_nobody_is_called_twice(site: Site) -> None:
    """The order is given again while the far end rings: Asterisk is looked at, and asked no second time."""
    site.control.fault("POST", "/channels", "after", abort=True, times=1)
    place(site, "100")
    call = only_call(site, "connected", seconds=20)
    assert site.count("POST", "/channels") == 1, site.tell()
    site.end(call["channel_id"])


def test_a_call_that_is_ended_while_asterisk_is_being_asked_does_not_ring_on(site: Site) -> None:
    """The teardown looks first and finds no leg: it is removed as soon as it is known to be there."""
    site.control.fault("POST", "/channels", "before", delay_seconds=2.5, times=1)
    place(site, "ring", ring_seconds=60)
    call = only_call(site, "originating")
    assert _arictl(site, "hangup", str(call["call_id"])).returncode == 0
    ended = only_call(site, "ended", seconds=8)
    assert (ended["outcome"], ended["reason"]) == ("canceled", "ended by an operator")
    site.wait_empty()


def test_an_originate_that_cannot_be_dialled_fails_with_asterisk_s_words(site: Site) -> None:
    site.control.fault("POST", "/channels", status=500, message="Allocation failed", times=1)
    place(site, "100")
    call = only_call(site, "ended")
    assert (call["outcome"], call["reason"]) == ("failed", "not originated: 500 Allocation failed")
    assert run_of(site, call)["gathered_context"]["call_disposition"] == "failed"


def test_a_call_for_a_run_that_waits(site: Site) -> None:
    run_id = waiting_run(site)
    place(site, "100", workflow_id=None, workflow_run_id=run_id)
    call = only_call(site, "connected")
    assert call["workflow_run_id"] == run_id
    assert run_of(site, call)["state"] == "running"
    site.end(call["channel_id"])


def test_an_agent_that_is_down_hangs_up_the_answered_far_end(site: Site) -> None:
    with site.control.media_refused():
        place(site, "100")
        call = only_call(site, "ended", seconds=30)
    assert (call["outcome"], run_of(site, call)["gathered_context"]["call_disposition"]) == ("failed", "error")
    site.wait_empty()


def test_a_longest_call_of_the_connection_s_own_ends_it(site: Site) -> None:
    site.tenant.configure(site.asterisk.url, **LOCAL, ari_max_call_seconds=1.5)
    place(site, "100")
    ended = only_call(site, "ended")
    assert (ended["outcome"], ended["reason"]) == ("completed", "longest call time reached")


def test_a_run_that_the_platform_completes_ends_its_call(site: Site) -> None:
    place(site, "100")
    call = only_call(site, "connected")
    site.pipeline.query(
        "UPDATE workflow_runs SET state = 'completed', is_completed = true WHERE id = %s RETURNING 1",
        call["workflow_run_id"],
    )
    ended = only_call(site, "ended")
    assert (ended["outcome"], ended["reason"]) == ("completed", "its run was completed")
    site.wait_empty()


# ── arictl ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _arictl(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "arictl.main", *words],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": site.pipeline.database_url,
            "REDIS_URL": site.pipeline.redis_url,
            "SECRET_KEY": SECRET_KEY,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_an_operator_places_a_call_and_ends_it(site: Site) -> None:
    tenant = site.tenant
    placed = _arictl(site, "call", "100", "-o", str(tenant.organization_id), "--workflow", str(tenant.workflow_id))
    assert placed.returncode == 0, placed.stderr
    call = only_call(site, "connected")
    assert str(call["call_id"]) in placed.stdout
    ended = _arictl(site, "hangup", str(call["call_id"])[:8])
    assert "is being ended" in ended.stdout
    assert only_call(site, "ended")["reason"] == "ended by an operator"
    again = _arictl(site, "hangup", str(call["call_id"])[:8])
    assert "is already ended" in again.stdout
    site.wait_empty()


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
def test_what_cannot_be_placed_is_said_at_once(site: Site, words: list[str], reason: str) -> None:
    given = [word.replace("{workflow}", str(site.tenant.workflow_id)) for word in words]
    refused = _arictl(site, "call", *given, "-o", str(site.tenant.organization_id))
    assert refused.returncode == 1
    assert reason in refused.stderr, refused.stderr
    assert refused.stderr.count("\n") == 1
    assert site.calls() == []
    assert site.runs() == 0


# ── legs that the platform has originated ────────────────────────────────────────────────────────────────────────────


def platform_calls(site: Site, run_id: int, number: str = "100", *, channel_id: str) -> None:
    """What the platform's own API does: originates, then writes under which channel."""
    site.rest(
        "POST",
        "/channels",
        endpoint=f"Local/{number}@far",
        app=APP,
        appArgs=args(site, run_id),
        channelId=channel_id,
        timeout="1",
    )
    site.pipeline.query(
        "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s RETURNING 1",
        json.dumps({"provider": "ari", "call_id": channel_id, "theirs": 1}),
        run_id,
    )


def platform_channel() -> str:
    return f"platform-{uuid.uuid4().hex[:12]}"


def test_a_leg_of_the_platform_is_taken_over_just_so(site: Site) -> None:
    run_id, leg = waiting_run(site), platform_channel()
    platform_calls(site, run_id, channel_id=leg)
    call = only_call(site, "connected")
    assert (call["channel_id"], call["direction"], call["workflow_run_id"]) == (leg, "outbound", run_id)
    assert site.is_joined(leg)
    gathered = run_row(site, run_id)["gathered_context"]
    assert (gathered["call_id"], gathered["provider"]) == (leg, "ari")
    assert site.runs() == 1
    site.end(leg)
    assert run_row(site, run_id)["is_completed"]


@pytest.mark.parametrize("with_user", [True, False])
def test_arguments_in_one_string_are_taken_as_well(site: Site, *, with_user: bool) -> None:
    run_id = waiting_run(site)
    said = args(site, run_id)
    leg = site.dial(answered=True, args=[said if with_user else said.rpartition(",")[0]])
    site.wait_state(leg, "connected")
    assert site.pipeline.call(leg)["user_id"] == site.tenant.user_id
    site.end(leg)


def test_a_leg_that_rings_here_for_a_run_is_answered_by_us(site: Site) -> None:
    run_id = waiting_run(site)
    leg = site.dial(args=args(site, run_id).split(","))
    site.wait_state(leg, "connected")
    site.end(leg)


@pytest.mark.parametrize(
    ("number", "outcome", "disposition", "cause"),
    [("busy", "busy", "busy", 17), ("congestion", "failed", "failed", 42), ("reject", "failed", "failed", 21),
     ("ring", "no-answer", "no-answer", 19)],
)  # fmt: skip
def test_an_unanswered_leg_of_the_platform_ends_its_run(
    site: Site, number: str, outcome: str, disposition: str, cause: int
) -> None:
    run_id, leg = waiting_run(site), platform_channel()
    platform_calls(site, run_id, number, channel_id=leg)
    call = only_call(site, "ended")
    assert (call["channel_id"], call["outcome"], call["direction"]) == (leg, outcome, "outbound")
    run = run_row(site, run_id)
    assert (run["is_completed"], run["gathered_context"]["call_disposition"]) == (True, disposition)
    assert run["gathered_context"]["theirs"] == 1
    site.until(lambda: only_call(site, "ended")["hangup_cause"] == cause, seconds=3, what=f"cause {cause}")


def test_a_far_end_that_hangs_up_before_it_is_taken_over_ends_its_run(site: Site) -> None:
    """Asterisk is slow to say that the leg is there; it is gone by then."""
    run_id, leg = waiting_run(site), platform_channel()
    site.control.fault("GET", f"/channels/{leg}", "before", delay_seconds=1.0, times=1)
    site.dial(channel_id=leg, answered=True, args=args(site, run_id).split(","))
    site.wait_state(leg, "received")
    site.control.hang_up(leg)
    call = only_call(site, "ended")
    assert (call["outcome"], call["direction"]) == ("canceled", "outbound")
    run = run_row(site, run_id)
    assert (run["is_completed"], run["gathered_context"]["call_disposition"]) == (True, "canceled")
    site.wait_empty()


def test_an_unanswered_leg_of_another_tenant_s_run_ends_nothing(product: Product, site: Site) -> None:
    with closing_tenant(product.database_url, f"victim-{uuid.uuid4().hex[:8]}") as victim:
        leg = platform_channel()
        run_id = waiting_run(site, victim, gathered_context=json.dumps({"call_id": leg}))
        before = run_row(site, run_id)
        site.rest("POST", "/channels", endpoint="Local/busy@far", app=APP, channelId=leg)
        site.until(
            lambda: site.control.event_log("ChannelDestroyed"),
            seconds=5,
            what="it is gone",
        )
        with product.queue() as client:
            # Delayed messages are of the queue as well: it was looked for to the end.
            product.wait_idle(client, seconds=15)
        assert run_row(site, run_id) == before
        assert site.calls() == []


#: What a leg says, by the two tenants' runs, workflows and users, `a` its own and `b` the other's → why it is refused.
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
    product: Product, site: Site, named: tuple[str, str, str], reason: str | None
) -> None:
    with closing_tenant(product.database_url, f"other-{uuid.uuid4().hex[:8]}") as other:
        tenants = {"a": site.tenant, "b": other}
        runs = {name: waiting_run(site, tenant) for name, tenant in tenants.items()}
        before = {name: run_row(site, run_id) for name, run_id in runs.items()}
        run, workflow, user = named
        said = f"workflow_run_id={runs[run]},workflow_id={tenants[workflow].workflow_id}"
        if user:
            said += f",user_id={tenants[user].user_id}"
        leg = site.dial(answered=True, args=said.split(","))
        if reason is None:
            site.wait_state(leg, "connected")
            site.end(leg)
        else:
            site.wait_state(leg, "ended")
            call = site.pipeline.call(leg)
            assert (call["outcome"], call["workflow_run_id"], call["hangup_cause"]) == ("refused", None, 57)
            assert reason in call["reason"]
            assert run_row(site, runs["a"]) == before["a"]
        assert run_row(site, runs["b"]) == before["b"]
        assert site.pipeline.query("SELECT 1 FROM ari.calls WHERE organization_id = %s", other.organization_id) == []
        site.wait_empty()


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
def test_a_leg_with_incomplete_arguments_is_refused(site: Site, said: list[str], reason: str) -> None:
    run_id = waiting_run(site)
    names = {"run": run_id, "workflow": site.tenant.workflow_id, "user": site.tenant.user_id}
    leg = site.dial(answered=True, args=[text.format(**names) for text in said])
    site.wait_state(leg, "ended")
    call = site.pipeline.call(leg)
    assert (call["outcome"], call["reason"]) == ("refused", reason)
    assert run_row(site, run_id)["state"] == "initialized"
    site.wait_empty()


@pytest.mark.parametrize(
    ("state", "is_completed"), [("running", False), ("completed", True)], ids=["running", "completed"]
)
def test_a_run_that_does_not_wait_is_not_taken(site: Site, state: str, *, is_completed: bool) -> None:
    run_id = waiting_run(site, state=state, is_completed=is_completed)
    before = run_row(site, run_id)
    leg = site.dial(answered=True, args=args(site, run_id).split(","))
    site.wait_state(leg, "ended")
    assert "does not wait for a call" in site.pipeline.call(leg)["reason"]
    assert run_row(site, run_id) == before


def test_two_legs_for_one_run_are_one_call(site: Site) -> None:
    run_id = waiting_run(site)
    legs = [site.dial(answered=True, args=args(site, run_id).split(",")) for _ in range(2)]
    site.until(
        lambda: sorted(site.pipeline.state(leg) or "" for leg in legs) == ["connected", "ended"],
        seconds=10,
        what="one is served, one refused",
    )
    (served,) = [leg for leg in legs if site.pipeline.state(leg) == "connected"]
    site.end(served)


def test_an_answered_leg_without_arguments_is_an_inbound_call(site: Site) -> None:
    leg = site.dial(answered=True)
    site.wait_state(leg, "connected")
    assert site.pipeline.call(leg)["direction"] == "inbound"
    site.end(leg)


def test_arguments_of_the_dialplan_s_own_are_not_ours(site: Site) -> None:
    leg = site.dial(args=["language=de", "vip"])
    site.wait_state(leg, "connected")
    site.end(leg)


# ── refused callers ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_caller_goes_on_in_the_dialplan_and_is_told_why(site: Site) -> None:
    site.tenant.configure(site.asterisk.url, inbound_workflow_id=None, ari_on_refusal="continue")
    leg = site.dial()
    site.wait_state(leg, "ended")
    call = site.pipeline.call(leg)
    assert (call["outcome"], call["reason"]) == ("refused", "no inbound workflow configured")
    asked = [request.path for request in site.control.requests() if leg in request.path]
    assert f"/channels/{leg}/continue" in asked
    assert not site.asked("DELETE", f"/channels/{leg}")
    told = {
        request.query["variable"]: request.query["value"] for request in site.asked("POST", f"/channels/{leg}/variable")
    }
    assert told == {
        "AIP_OUTCOME": "refused", "AIP_REASON": "no inbound workflow configured", "AIP_CAUSE": "1",
    }  # fmt: skip


def test_a_refused_caller_is_hung_up_with_the_cause_unless_told(site: Site) -> None:
    site.tenant.configure(site.asterisk.url, inbound_workflow_id=None)
    leg = site.dial()
    site.wait_state(leg, "ended")
    (deleted,) = site.asked("DELETE", f"/channels/{leg}")
    assert deleted.query["reason_code"] == "1"
