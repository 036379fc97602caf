"""The product beside the stand-in of the platform's API, on the platform's own tables, with a simulated Asterisk."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devstack import platform_tables, servers
from devstack.pipeline import MEDIA_SECRET, Pipeline, wait_until
from devstack.platform_api.layouts import Layout
from devstack.platform_api.server import Options
from devstack.platform_api.stand_in import StandIn
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from shared.storage import migrations
from simulator.errors import ControlError
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk
from tests import databases
from tests.acceptance.environment import APP, FAST
from tests.support.forked import ForkedPipeline

pytestmark = pytest.mark.services

NUMBER = "+4930123456"
#: What the quota service knows us, and the tenant, by.
CREDIT_SECRET, KEY = "hunter2-of-the-service", "mps-hunter2"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The product, the platform and an Asterisk of one tenant."""

    layout: Layout
    pipeline: Pipeline
    platform: StandIn
    asterisk: SimulatedAsterisk
    tenant: Tenant

    def dial(self) -> str:
        """Start an inbound call."""
        return self.asterisk.control.dial(APP, channel_id=f"caller-{uuid.uuid4().hex[:12]}", called=NUMBER)

    def until(self, condition: Callable[[], object], what: str, *, seconds: float = 10) -> None:
        """Poll until a condition holds."""
        wait_until(condition, seconds=seconds, what=lambda: f"{what}\n{self._described()}")

    def _described(self) -> str:
        return f"{self.pipeline.calls()}\n{self.platform.api.refusals}\n{self.pipeline.log_tail()}"

    def wait_state(self, leg: str, state: str) -> None:
        self.until(lambda: self.pipeline.state(leg) == state, f"{leg} is {state}")

    def run(self, run_id: int) -> dict[str, Any]:
        (row,) = self.pipeline.query("SELECT * FROM workflow_runs WHERE id = %s", run_id)
        return row

    def completed(self, run_id: int) -> dict[str, Any]:
        """Wait until a run is completed; return its gathered_context."""
        self.until(lambda: self.run(run_id)["is_completed"], f"run {run_id} is completed")
        found: dict[str, Any] = self.run(run_id)["gathered_context"]
        return found

    def wait_empty(self) -> None:
        """Wait until nothing is left at the Asterisk, and no slot is taken."""
        control = self.asterisk.control
        self.until(lambda: not control.channels() and not control.bridges(), "nothing is left")


@pytest.fixture(scope="module", params=["2026-02", "newest"])
def beside(
    request: pytest.FixtureRequest, postgres_server: servers.Postgres, stack_folder: Path, all_logs: Path
) -> Iterator[Beside]:
    layout: Layout = request.param
    url = databases.create(postgres_server.url)
    platform_tables.create(url, layout)
    migrations.upgrade(url)
    (all_logs / f"beside-{layout}").mkdir()
    with (
        servers.Redis(stack_folder / f"redis-{layout}") as own,
        servers.Redis(stack_folder / f"platform-redis-{layout}") as theirs,
        StandIn(
            Options(
                layout=layout,
                database_url=url,
                redis_url=theirs.url,
                token_secret=MEDIA_SECRET,
                dial_template="Local/{number}@far",
                credit_secret=CREDIT_SECRET,
            )
        ) as platform,
        ForkedPipeline(
            database_url=url,
            redis_url=own.url,
            logs=all_logs / f"beside-{layout}",
            PLATFORM_REDIS_URL=theirs.url,
            MEDIA_TOKEN_SECRET=MEDIA_SECRET,
            QUOTA="http",
            MPS_API_URL=platform.url,
            MPS_SECRET_KEY=CREDIT_SECRET,
            **FAST,
        ) as pipeline,
        SimulatedAsterisk(Settings(audio=False), users={APP: PASSWORD}, media_url=platform.media_url) as asterisk,
        closing_tenant(url) as tenant,
    ):
        tenant.configure(asterisk.url, numbers=[NUMBER])
        if layout == "newest":
            models = json.dumps({"version": 2, "mode": "dograh", "dograh": {"api_key": KEY}})
            pipeline.execute(
                "INSERT INTO organization_configurations (organization_id, key, value)"
                " VALUES (%s, 'MODEL_CONFIGURATION_V2', %s)",
                tenant.organization_id,
                models,
            )
        else:
            pipeline.execute(
                "INSERT INTO user_configurations (user_id, configuration) VALUES (%s, %s)",
                tenant.user_id,
                json.dumps({"llm": {"provider": "dograh", "api_key": KEY}}),
            )
        pipeline.start()
        pipeline.wait_connected()
        yield Beside(layout=layout, pipeline=pipeline, platform=platform, asterisk=asterisk, tenant=tenant)
        assert platform.api.refusals == []
        told = pipeline.query("SELECT detail FROM ari.timeline WHERE detail LIKE '%%hunter2%%'")
        assert not told, f"the timeline shows a key: {told}"
        assert "hunter2" not in pipeline.log_tail()


@pytest.fixture(autouse=True)
def _as_it_was(beside: Beside) -> Iterator[None]:
    yield
    beside.platform.behaviour.call_id_after_seconds = 0.0
    beside.platform.behaviour.close_after_seconds = beside.platform.behaviour.close_code = None
    beside.platform.behaviour.check_seconds = 0.0
    beside.platform.api.credits.otherwise = 100.0
    # What a failed test leaves is no fault of the next one.
    with contextlib.suppress(ControlError):
        for channel in beside.asterisk.control.channels():
            beside.asterisk.control.hang_up(channel["id"])
    beside.wait_empty()


def test_a_caller_is_served_and_the_platform_completes_the_run(beside: Beside) -> None:
    caller = beside.dial()
    beside.wait_state(caller, "connected")
    run_id = beside.pipeline.run(caller)["id"]
    beside.until(lambda: beside.run(run_id)["state"] == "running", "the agent has noted that it runs")
    assert beside.platform.api.sessions[run_id].open
    beside.asterisk.control.hang_up(caller)
    assert beside.completed(run_id)["call_disposition"] == "user_hangup", "the platform's, not ours"


def test_an_agent_that_hangs_up_ends_the_call(beside: Beside) -> None:
    caller = beside.dial()
    beside.wait_state(caller, "connected")
    run_id = beside.pipeline.run(caller)["id"]
    beside.platform.hang_up(run_id)
    beside.wait_state(caller, "ended")
    assert beside.completed(run_id)["call_disposition"] == "agent_hangup"


def test_a_call_whose_run_the_agent_refuses_after_the_join_has_failed_and_so_has_the_run(beside: Beside) -> None:
    """The socket is accepted, and checked then: to Asterisk an agent that refuses it now has hung up."""
    beside.platform.behaviour.check_seconds, beside.platform.behaviour.close_code = 0.5, 4401
    caller = beside.dial()
    beside.wait_state(caller, "ended")
    call = beside.pipeline.call(caller)
    assert (call["outcome"], call["connected_at"] is not None) == ("failed", True)
    assert call["reason"].startswith("voice agent not reached: media leg ended, cause 16"), call["reason"]
    assert beside.completed(call["workflow_run_id"])["call_disposition"] == "error"
    beside.platform.api.refusals.clear()


@pytest.mark.parametrize("call_id_after", [0.0, 0.02, 0.5])
def test_a_call_of_the_platform_is_connected_however_late_it_writes_the_channel(
    beside: Beside, call_id_after: float
) -> None:
    beside.platform.behaviour.call_id_after_seconds = call_id_after
    placed = beside.platform.call(beside.tenant.workflow_id, "100")
    beside.wait_state(placed.channel_id, "connected")
    assert beside.pipeline.call(placed.channel_id)["workflow_run_id"] == placed.run_id
    beside.asterisk.control.hang_up(placed.channel_id)
    gathered = beside.completed(placed.run_id)
    assert (gathered["call_id"], gathered["call_disposition"]) == (placed.channel_id, "user_hangup")


@pytest.mark.parametrize("call_id_after", [0.0, 0.02])
@pytest.mark.parametrize(("number", "disposition"), [("busy", "busy"), ("ring", "no-answer"), ("reject", "failed")])
def test_a_call_of_the_platform_that_is_not_answered_is_ended_as_what_it_was(
    beside: Beside, number: str, disposition: str, call_id_after: float
) -> None:
    beside.platform.behaviour.call_id_after_seconds = call_id_after
    placed = beside.platform.call(beside.tenant.workflow_id, number, ring_seconds=1)
    assert beside.completed(placed.run_id)["call_disposition"] == disposition


def test_the_quota_is_asked_by_the_layout_s_contract(beside: Beside) -> None:
    asked = beside.platform.api.credits.asked
    asked.clear()
    caller = beside.dial()
    beside.wait_state(caller, "connected")
    run = beside.pipeline.run(caller)
    (question,) = asked
    if beside.layout == "2026-02":
        assert question.line == "POST /api/v1/service-keys/usage"
        assert question.body == {"service_key": KEY}
    else:
        organization_id = beside.tenant.organization_id
        assert question.line == f"POST /api/v1/billing/accounts/{organization_id}/run-authorization"
        assert question.body["workflow_run_id"] == run["id"]
        assert run["initial_context"]["mps_correlation_id"].startswith("c-")
    assert question.line in [entry["name"] for entry in beside.pipeline.timeline(caller)]
    beside.asterisk.control.hang_up(caller)
    beside.completed(run["id"])


def test_a_caller_without_credits_is_refused_and_the_run_ended_that_the_service_was_asked_about(
    beside: Beside,
) -> None:
    beside.platform.api.credits.otherwise = 0.05
    caller = beside.dial()
    beside.wait_state(caller, "ended")
    call = beside.pipeline.call(caller)
    assert (call["outcome"], call["reason"], call["attempt"]) == ("refused", "the credits are used up", 0)
    assert not beside.asterisk.control.requests("POST", f"/channels/{caller}/answer")
    if beside.layout == "2026-02":
        assert call["workflow_run_id"] is None
    else:
        gathered = beside.completed(call["workflow_run_id"])
        assert (gathered["error"], gathered["call_disposition"]) == ("the credits are used up", "error")
        assert beside.run(call["workflow_run_id"])["usage_info"] == {"call_duration_seconds": 0}
