"""Quota on a simulated Asterisk, with the real processes: callers above the limit, and tenants without credit."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import psycopg
import pytest

from devstack.pipeline import ROOT, SECRET_KEY
from shared.call.states import Cause
from tests import arictl_program
from tests.acceptance.environment import Deploy, Deployment, Environment

pytestmark = pytest.mark.services

KEY = "mps-hunter2"


class QuotaService(BaseHTTPRequestHandler):
    """The platform's quota service: `credits_left` by service key, and 500 for unknown keys."""

    credits_left: ClassVar[dict[str, float]] = {}

    def do_POST(self) -> None:
        left = self.credits_left.get(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["service_key"])
        body = json.dumps({"total_credits_used": 1.0, "remaining_credits": left}).encode()
        self.send_response(200 if left is not None else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def quota_service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), QuotaService)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Iterator[Deployment]:
    with deploy("quota") as made:
        # A second worker: the count is exact across processes.
        made.pipeline.start("worker.2")
        yield made


def arictl(env: Environment, *words: str) -> arictl_program.Completed:
    """Run arictl as an operator does."""
    run = arictl_program.runner(env.pipeline.database_url, ROOT)
    return run(*words, REDIS_URL=env.pipeline.redis_url, SECRET_KEY=SECRET_KEY)


def set_quota(env: Environment, *words: str) -> None:
    done = arictl(env, "quota", "set", "-o", str(env.tenant.organization_id), *words)
    assert (done.returncode, done.stderr) == (0, "")


def assert_refused(env: Environment, leg: str, cause: Cause, reason: str) -> None:
    """Check that the caller was hung up unanswered with this cause and reason, and that nothing was created."""
    env.wait_state(leg, "ended")
    call = env.pipeline.call(leg)
    assert (call["outcome"], call["hangup_cause"], call["reason"]) == ("refused", cause, reason), env.describe()
    assert call["workflow_run_id"] is None
    (hang_up,) = env.asked("DELETE", f"/channels/{leg}")
    assert hang_up.query == {"reason_code": str(int(cause))}, env.describe()
    assert env.count("POST", f"/channels/{leg}/answer") == 0


def test_a_third_caller_is_busy_until_one_of_two_slots_is_free(env: Environment) -> None:
    set_quota(env, "--calls", "2")
    first, second = env.connect(2)
    third = env.dial()
    assert_refused(env, third, Cause.BUSY, "too many concurrent calls: 2 of 2 slots in use")
    assert env.is_joined(first)
    assert env.is_joined(second)
    env.control.hang_up(first)
    env.wait_state(first, "ended")
    (fourth,) = env.connect()
    assert env.runs() == 3
    env.end(second, fourth)


def test_of_thirty_callers_at_once_as_many_are_connected_as_there_are_slots(env: Environment) -> None:
    """The slots are the platform's own limit."""
    env.tenant.limit_calls(5)
    legs = [env.dial() for _ in range(30)]
    for leg in legs:
        env.wait_state(leg, "connected", "ended", seconds=30)
    connected = [leg for leg in legs if env.pipeline.state(leg) == "connected"]
    assert len(connected) == 5, env.describe()
    for leg in set(legs) - set(connected):
        assert_refused(env, leg, Cause.BUSY, "too many concurrent calls: 5 of 5 slots in use")
    env.end(*connected)


def test_a_call_that_we_begin_takes_a_slot_and_is_not_placed_without_one(env: Environment) -> None:
    env.tenant.configure(env.asterisk.url, ari_dial_template="Local/{number}@far")
    set_quota(env, "--calls", "1")
    (leg,) = env.connect()
    words = ["call", "100", "-o", str(env.tenant.organization_id), "--workflow", str(env.tenant.workflow_id)]
    refused = arictl(env, *words)
    assert (refused.returncode, refused.stderr) == (1, "arictl: too many concurrent calls: 1 of 1 slots in use\n")
    assert (len(env.calls()), env.runs()) == (1, 1), "nothing was written"
    env.end(leg)
    placed, again = (arictl(env, *words, "--request-id", "r1") for _ in range(2))
    assert (placed.returncode, placed.stderr) == (0, "")
    assert again.stdout == placed.stdout, "what is placed has its slot"
    (ours,) = [call["channel_id"] for call in env.calls() if call["direction"] == "outbound"]
    env.wait_state(ours, "connected")
    assert_refused(env, env.dial(), Cause.BUSY, "too many concurrent calls: 1 of 1 slots in use")
    assert arictl(env, "hangup", ours).returncode == 0
    env.wait_state(ours, "ended")
    env.end(*env.connect())


def test_a_blocked_organization_makes_no_outbound_call(env: Environment) -> None:
    env.tenant.configure(env.asterisk.url, ari_dial_template="Local/{number}@far")
    set_quota(env, "--blocked")
    words = ["call", "100", "-o", str(env.tenant.organization_id), "--workflow", str(env.tenant.workflow_id)]
    assert arictl(env, *words).returncode == 0
    env.until(lambda: [call["outcome"] for call in env.calls()] == ["refused"], seconds=10, what="it is refused")
    (call,) = env.calls()
    assert call["reason"] == "the organization is blocked"
    assert not env.asked("POST", "/channels")
    env.until(lambda: env.run(call["channel_id"])["is_completed"], seconds=5, what="its run is ended")
    # Nothing was dialled: no leg is awaited, and the slot is free.
    env.until(lambda: env.calls()[0]["state"] == "ended", seconds=2, what="it has ended")


def test_another_tenant_does_not_notice(deployment: Deployment, env: Environment) -> None:
    with deployment.environment() as other:
        set_quota(env, "--blocked")
        blocked = env.dial()
        assert_refused(env, blocked, Cause.NOT_ALLOWED, "the organization is blocked")
        other.end(*other.connect(2))
    set_quota(env, "--allowed", "--minutes", "0")
    assert_refused(env, env.dial(), Cause.NOT_ALLOWED, "the month's 0 minutes are used up")
    set_quota(env, "--minutes", "1")
    env.end(*env.connect())


@pytest.fixture
def paying_tenant(deploy: Deploy, quota_service: str) -> Iterator[Environment]:
    """A tenant whose user has a service key, on a deployment that asks the quota service."""
    with (
        deploy(
            "quota-service", QUOTA="http", MPS_API_URL=quota_service, MPS_SECRET_KEY="hunter2-of-the-service",
            CONCURRENT_CALLS="1",
        ) as deployment,
        deployment.environment() as made,
    ):  # fmt: skip
        configuration = json.dumps({"llm": {"provider": "dograh", "api_key": KEY}})
        with psycopg.connect(deployment.database_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO user_configurations (user_id, configuration) VALUES (%s, %s)",
                [made.tenant.user_id, configuration],
            )
        yield made
        told = made.pipeline.query("SELECT detail FROM ari.timeline WHERE detail LIKE '%%hunter2%%'")
        assert not told, f"the timeline shows a secret: {told}"
        assert "hunter2" not in made.pipeline.log_tail()


def test_callers_are_served_while_the_credits_last(paying_tenant: Environment) -> None:
    env = paying_tenant
    QuotaService.credits_left = {KEY: 0.5}
    (leg,) = env.connect()
    assert "POST /api/v1/service-keys/usage" in env.facts(leg), env.describe()
    # With every adapter: the limit of concurrent calls.
    assert_refused(env, env.dial(), Cause.BUSY, "too many concurrent calls: 1 of 1 slots in use")
    env.end(leg)
    QuotaService.credits_left = {KEY: 0.05}
    assert_refused(env, env.dial(), Cause.NOT_ALLOWED, "the credits are used up")
    QuotaService.credits_left = {}
    assert_refused(env, env.dial(), Cause.CONGESTION, "quota service unreachable: answered 500")
