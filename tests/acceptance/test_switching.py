"""docs/switching.md, step by step, with its own commands: from the platform's process to this product, and back."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shlex
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from websockets.sync import client

from devstack import platform_tables, servers
from devstack.pipeline import MEDIA_SECRET, ROOT, SECRET_KEY, Pipeline, procfile, wait_until
from devstack.platform_api.layouts import Layout
from devstack.platform_api.server import Options
from devstack.platform_api.stand_in import StandIn
from devstack.tenants import PASSWORD, Tenant, closing_tenant
from simulator.settings import Settings
from simulator.testing import SimulatedAsterisk
from tests import arictl_program, databases
from tests.acceptance.environment import APP, FAST
from tests.support.forked import ForkedPipeline

pytestmark = pytest.mark.services

PAGE = (ROOT / "docs" / "switching.md").read_text()
NUMBER = "+4930123456"
#: Of an occupied connection: what the page says may be wrong before the old process is stopped.
OCCUPIED = ["event socket", "Stasis app"]


def step(heading: str) -> list[str]:
    """Return the commands of a part of the page."""
    part = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", part, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


@contextlib.contextmanager
def the_old_process(asterisk: SimulatedAsterisk) -> Iterator[None]:
    """The platform's own process, as far as Asterisk sees it."""
    credentials = base64.b64encode(f"{APP}:{PASSWORD}".encode()).decode()
    with client.connect(
        f"{asterisk.events_url}/ari/events?app={APP}", additional_headers={"Authorization": f"Basic {credentials}"}
    ):
        yield


@dataclass(frozen=True, kw_only=True)
class Installation:
    """The platform with a tenant, its Asterisk, and the product beside it, which is not running yet."""

    tenant: Tenant
    asterisk: SimulatedAsterisk
    pipeline: Pipeline
    settings: dict[str, str]

    def run(self, command: str, *, status: int = 0) -> str:
        """Run a command of the page for this tenant; return what it says."""
        words = shlex.split(command.replace("--organization 1", f"--organization {self.tenant.organization_id}"))
        assert words.pop(0) == "arictl", command
        done = arictl_program.runner(self.pipeline.database_url, ROOT)(*words, SECRET_KEY=SECRET_KEY, **self.settings)
        assert done.returncode == status, done.stderr + done.stdout
        return done.stdout

    def wait_listed(self, socket: str) -> None:
        """Wait until the connection's event socket is shown in this state."""
        listing, *_ = step("Check")
        wait_until(lambda: f" {socket} " in self.run(listing), seconds=30, what=self.pipeline.log_tail)

    def dial(self) -> str:
        return self.asterisk.control.dial(APP, channel_id=f"caller-{uuid.uuid4().hex[:12]}", called=NUMBER)

    def wait_state(self, leg: str, state: str) -> None:
        wait_until(lambda: self.pipeline.state(leg) == state, seconds=15, what=self.pipeline.log_tail)


@pytest.fixture(params=["2026-02", "newest"])
def installation(
    request: pytest.FixtureRequest, postgres_server: servers.Postgres, stack_folder: Path, all_logs: Path
) -> Iterator[Installation]:
    layout: Layout = request.param
    name = f"switching-{layout}"
    url = databases.create(postgres_server.url)
    platform_tables.create(url, layout)
    (all_logs / name).mkdir()
    with (
        servers.Redis(stack_folder / f"{name}-redis") as own,
        servers.Redis(stack_folder / f"{name}-platform") as theirs,
        StandIn(Options(layout=layout, database_url=url, redis_url=theirs.url, token_secret=MEDIA_SECRET)) as platform,
        SimulatedAsterisk(Settings(audio=False), users={APP: PASSWORD}, media_url=platform.media_url) as asterisk,
        closing_tenant(url) as tenant,
    ):
        settings = {"REDIS_URL": own.url, "PLATFORM_REDIS_URL": theirs.url, "MEDIA_TOKEN_SECRET": MEDIA_SECRET}
        tenant.configure(asterisk.url, numbers=[NUMBER])
        with ForkedPipeline(
            database_url=url, redis_url=own.url, logs=all_logs / name, PLATFORM_REDIS_URL=theirs.url,
            MEDIA_TOKEN_SECRET=MEDIA_SECRET, **FAST,
        ) as pipeline:  # fmt: skip
            yield Installation(tenant=tenant, asterisk=asterisk, pipeline=pipeline, settings=settings)


def wrong(said: str) -> list[str]:
    """Return what the doctor finds wrong."""
    return re.findall(r"^  wrong +([^:]+):", said, re.MULTILINE)


def test_the_page_s_commands_switch_on_check_and_roll_back(installation: Installation) -> None:
    with the_old_process(installation.asterisk):
        (upgrade,) = re.findall(r"run `(arictl db upgrade)`", PAGE)
        assert "revision" in installation.run(upgrade)
        installation.pipeline.start()
        installation.wait_listed("occupied")
        listing, *_ = step("Check")
        assert "held by another process" in " ".join(installation.run(listing).split())
        assert wrong(installation.run("arictl doctor", status=1)) == OCCUPIED
        # Taken over first: an app without a call is connected by itself once its process has stopped.
        (take_over,) = step("Switch on")
        assert "is taken over" in installation.run(take_over)
    installation.wait_listed("connected")
    caller = installation.dial()
    installation.wait_state(caller, "connected")
    said = [installation.run(command) for command in step("Check")]
    assert "connected" in said[1]
    assert wrong(said[2]) == []
    installation.asterisk.control.hang_up(caller)
    installation.wait_state(caller, "ended")
    run_id = installation.pipeline.run(caller)["id"]
    completed = "SELECT is_completed FROM workflow_runs WHERE id = %s"
    wait_until(lambda: installation.pipeline.value(completed, run_id), seconds=5)
    # Back: nothing of ours runs, and the filter goes.
    for name in filter(installation.pipeline.is_running, procfile()):
        installation.pipeline.stop(name)
    with the_old_process(installation.asterisk):
        (clear,) = step("Roll back")
        program, _, _, _, method, _, body, url = shlex.split(clear)
        assert (program, method) == ("curl", "PUT")
        url = url.replace("http://PBX:8088", installation.asterisk.url).replace("APP", APP)
        requests.put(url, auth=(APP, PASSWORD), json=json.loads(body), timeout=5).raise_for_status()
        application = requests.get(url.removesuffix("/eventFilter"), auth=(APP, PASSWORD), timeout=5).json()
        assert application["events_allowed"] == [], "it hears everything, as before"
