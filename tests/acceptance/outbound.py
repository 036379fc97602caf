"""Helpers of the tests of outbound calls: requests by message and by arictl, runs as the platform creates them."""

from __future__ import annotations

import subprocess
import uuid
from typing import Any

from devstack.pipeline import ROOT, SECRET_KEY
from devstack.tenants import Tenant
from shared import messages, queues
from shared.call.call_requests import CallRequest
from tests import arictl_program
from tests.acceptance.environment import Environment

LOCAL = {"ari_dial_template": "Local/{number}@far"}


def request_call(env: Environment, number: str, **how: Any) -> None:
    """Request a call by a message."""
    asked: dict[str, Any] = {"request_id": uuid.uuid4().hex, "workflow_id": env.tenant.workflow_id} | how
    request = CallRequest(organization_id=env.tenant.organization_id, number=number, **asked)
    queues.BrokerCommandQueue(queues.broker(env.pipeline.redis_url)).send(messages.of_request(request))


def only_call(env: Environment, *states: str, seconds: float = 10) -> dict[str, Any]:
    """Wait until the tenant's one call is in one of these states, and return it."""
    env.until(
        lambda: [call["state"] for call in env.calls() if call["state"] in states],
        seconds=seconds,
        what=f"the call is {' or '.join(states)}",
    )
    (call,) = env.calls()
    return call


def run_of(env: Environment, call: dict[str, Any]) -> dict[str, Any]:
    (run,) = env.pipeline.query("SELECT * FROM workflow_runs WHERE id = %s", call["workflow_run_id"])
    return run


def waiting_run(env: Environment, tenant: Tenant | None = None, **changes: Any) -> int:
    """Create a run as the platform does for its own call, and return its id."""
    columns = {"state": "initialized", "is_completed": False, "gathered_context": "{}"} | changes
    run_id = int(
        env.pipeline.value(
            "INSERT INTO workflow_runs (name, workflow_id, definition_id, mode, call_type, state, is_completed,"
            " initial_context, gathered_context, usage_info, cost_info, annotations, created_at)"
            " VALUES ('WR-TEL-OUT-00000001', %s, %s, 'ari', 'outbound', %s, %s,"
            " '{\"provider\": \"ari\"}', %s, '{}', '{}', '{}', now()) RETURNING id",
            (tenant or env.tenant).workflow_id,
            (tenant or env.tenant).definition_id,
            columns["state"],
            columns["is_completed"],
            columns["gathered_context"],
        )
    )
    env.platform_runs.add(run_id)
    return run_id


def run_row(env: Environment, run_id: int) -> dict[str, Any]:
    (run,) = env.pipeline.query("SELECT * FROM workflow_runs WHERE id = %s", run_id)
    return run


def args(env: Environment, run_id: int) -> str:
    return f"workflow_run_id={run_id},workflow_id={env.tenant.workflow_id},user_id={env.tenant.user_id}"


def arictl(env: Environment, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    run = arictl_program.runner(env.pipeline.database_url, ROOT)
    return run(*words, **({"REDIS_URL": env.pipeline.redis_url, "SECRET_KEY": SECRET_KEY} | settings))
