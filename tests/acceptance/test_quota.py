"""Limits on a simulated Asterisk, with the real processes: callers who are one too many, and those who cannot pay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest

from devstack import servers
from shared.call.calls import Cause
from tests import databases
from tests.acceptance.pipeline import ROOT, SECRET_KEY
from tests.acceptance.sites import Product, Site, running_product

pytestmark = pytest.mark.services

KEY = "mps-hunter2"


class QuotaService(BaseHTTPRequestHandler):
    """The platform's quota service: `credits_left` by service key, and 500 for keys it does not know."""

    credits_left: ClassVar[dict[str, float]] = {}

    def do_POST(self) -> None:
        left = self.credits_left.get(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["service_key"])
        body = json.dumps({"total_credits_used": 1.0, "remaining_credits": left}).encode()
        self.send_response(200 if left is not None else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the tests' output."""


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
def product(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path
) -> Iterator[Product]:
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        running_product(folder=stack_folder, logs=all_logs / "quota", database_url=database_url) as made,
    ):
        # A second worker: what counts is exact over processes.
        made.pipeline.start("worker.2")
        yield made


@pytest.fixture
def site(product: Product) -> Iterator[Site]:
    with product.site() as made:
        yield made


def arictl(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """What an operator does."""
    settings = {
        "PATH": os.environ["PATH"], "DATABASE_URL": site.pipeline.database_url, "REDIS_URL": site.pipeline.redis_url,
        "SECRET_KEY": SECRET_KEY,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "arictl.main", *words],
        check=False, capture_output=True, text=True, timeout=60, cwd=ROOT, env=settings,
    )  # fmt: skip


def set_quota(site: Site, *words: str) -> None:
    done = arictl(site, "quota", "set", "-o", str(site.tenant.organization_id), *words)
    assert (done.returncode, done.stderr) == (0, "")


def assert_refused(site: Site, leg: str, cause: Cause, reason: str) -> None:
    """The caller was hung up with this cause, unanswered; the call says why, and nothing was made for it."""
    site.wait_state(leg, "ended")
    call = site.pipeline.call(leg)
    assert (call["outcome"], call["hangup_cause"], call["reason"]) == ("refused", cause, reason), site.tell()
    assert call["workflow_run_id"] is None
    (hang_up,) = site.asked("DELETE", f"/channels/{leg}")
    assert hang_up.query == {"reason_code": str(int(cause))}, site.tell()
    assert site.count("POST", f"/channels/{leg}/answer") == 0


def test_a_third_caller_is_busy_until_one_of_two_slots_is_free(site: Site) -> None:
    set_quota(site, "--calls", "2")
    first, second = site.connect(2)
    third = site.dial()
    assert_refused(site, third, Cause.BUSY, "too many calls at once: 2 of 2 slots are taken")
    assert site.is_joined(first)
    assert site.is_joined(second)
    site.control.hang_up(first)
    site.wait_state(first, "ended")
    (fourth,) = site.connect()
    assert site.runs() == 3
    site.end(second, fourth)


def test_of_thirty_callers_at_once_as_many_are_connected_as_there_are_slots(site: Site) -> None:
    """The platform's own limit."""
    site.pipeline.query(
        "INSERT INTO organization_configurations (organization_id, key, value)"
        " VALUES (%s, 'CONCURRENT_CALL_LIMIT', '{\"value\": 5}') RETURNING id",
        site.tenant.organization_id,
    )
    legs = [site.dial() for _ in range(30)]
    for leg in legs:
        site.wait_state(leg, "connected", "ended", seconds=30)
    connected = [leg for leg in legs if site.pipeline.state(leg) == "connected"]
    assert len(connected) == 5, site.tell()
    for leg in set(legs) - set(connected):
        assert_refused(site, leg, Cause.BUSY, "too many calls at once: 5 of 5 slots are taken")
    site.end(*connected)


def test_a_call_that_we_begin_takes_a_slot_and_is_not_placed_without_one(site: Site) -> None:
    site.tenant.configure(site.asterisk.url, ari_dial_template="Local/{number}@far")
    set_quota(site, "--calls", "1")
    (leg,) = site.connect()
    words = ["call", "100", "-o", str(site.tenant.organization_id), "--workflow", str(site.tenant.workflow_id)]
    refused = arictl(site, *words)
    assert (refused.returncode, refused.stderr) == (1, "arictl: too many calls at once: 1 of 1 slots are taken\n")
    assert (len(site.calls()), site.runs()) == (1, 1), "nothing was written"
    site.end(leg)
    placed, again = (arictl(site, *words, "--request-id", "r1") for _ in range(2))
    assert (placed.returncode, placed.stderr) == (0, "")
    assert again.stdout == placed.stdout, "what is placed has its slot"
    (ours,) = [call["channel_id"] for call in site.calls() if call["direction"] == "outbound"]
    site.wait_state(ours, "connected")
    assert_refused(site, site.dial(), Cause.BUSY, "too many calls at once: 1 of 1 slots are taken")
    assert arictl(site, "hangup", ours).returncode == 0
    site.wait_state(ours, "ended")
    site.end(*site.connect())


def test_a_blocked_organization_calls_nobody(site: Site) -> None:
    site.tenant.configure(site.asterisk.url, ari_dial_template="Local/{number}@far")
    set_quota(site, "--blocked")
    words = ["call", "100", "-o", str(site.tenant.organization_id), "--workflow", str(site.tenant.workflow_id)]
    assert arictl(site, *words).returncode == 0
    site.until(lambda: [call["outcome"] for call in site.calls()] == ["refused"], seconds=10, what="it is refused")
    (call,) = site.calls()
    assert call["reason"] == "the organization is blocked"
    assert not site.asked("POST", "/channels")
    site.until(lambda: site.run(call["channel_id"])["is_completed"], seconds=5, what="its run is ended")
    # Nobody has dialled: no leg is waited for, and its slot is free.
    site.until(lambda: site.calls()[0]["state"] == "ended", seconds=2, what="it has ended")


def test_another_tenant_does_not_notice(product: Product, site: Site) -> None:
    with product.site() as other:
        set_quota(site, "--blocked")
        blocked = site.dial()
        assert_refused(site, blocked, Cause.NOT_ALLOWED, "the organization is blocked")
        other.end(*other.connect(2))
    set_quota(site, "--allowed", "--minutes", "0")
    assert_refused(site, site.dial(), Cause.NOT_ALLOWED, "the month's 0 minutes are used up")
    set_quota(site, "--minutes", "1")
    site.end(*site.connect())


@pytest.fixture
def paying_site(
    postgres_server: servers.Postgres, database_template: str, stack_folder: Path, all_logs: Path, quota_service: str
) -> Iterator[Site]:
    """A tenant of a product that asks the quota service, whose user has a service key."""
    database_url = databases.create(postgres_server.url, template=database_template)
    with (
        running_product(
            folder=stack_folder, logs=all_logs / "quota-service", database_url=database_url,
            QUOTA="http", MPS_API_URL=quota_service, MPS_SECRET_KEY="hunter2-of-the-service", CONCURRENT_CALLS="1",
        ) as product,
        product.site() as made,
    ):  # fmt: skip
        configuration = json.dumps({"llm": {"provider": "dograh", "api_key": KEY}})
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO user_configurations (user_id, configuration) VALUES (%s, %s)",
                [made.tenant.user_id, configuration],
            )
        yield made
        told = made.pipeline.query("SELECT detail FROM ari.timeline WHERE detail LIKE '%%hunter2%%'")
        assert not told, f"the timeline shows a secret: {told}"
        assert "hunter2" not in made.pipeline.log_tail()


def test_callers_are_served_while_the_credits_last(paying_site: Site) -> None:
    site = paying_site
    QuotaService.credits_left = {KEY: 0.5}
    (leg,) = site.connect()
    assert "POST /api/v1/service-keys/usage" in site.facts(leg), site.tell()
    # Whatever the adapter: the limit of calls at the same time.
    assert_refused(site, site.dial(), Cause.BUSY, "too many calls at once: 1 of 1 slots are taken")
    site.end(leg)
    QuotaService.credits_left = {KEY: 0.05}
    assert_refused(site, site.dial(), Cause.NOT_ALLOWED, "the credits are used up")
    QuotaService.credits_left = {}
    assert_refused(site, site.dial(), Cause.CONGESTION, "quota service unreachable: answered 500")
