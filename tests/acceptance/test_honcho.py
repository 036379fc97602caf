"""`honcho start` as in the README: an activated environment, three variables, the Procfile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.pipeline import ROOT, SECRET_KEY, Pipeline, procfile, wait_until
from devstack.tenants import Tenant
from simulator.testing import SimulatedAsterisk

pytestmark = pytest.mark.services


def test_honcho_runs_the_procfile_with_three_variables(
    pipeline: Pipeline, tenant: Tenant, simulated: SimulatedAsterisk
) -> None:
    tenant.configure(simulated.url)
    programs = Path(sys.executable).parent
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "DATABASE_URL": pipeline.database_url,
        "REDIS_URL": pipeline.redis_url,
        "SECRET_KEY": SECRET_KEY,
        # Another pipeline of this host may have the port that it has otherwise.
        "CONSOLE_PORT": "0",
    }
    log = pipeline.logs / "honcho.log"
    with log.open("wb") as out:
        honcho = subprocess.Popen([programs / "honcho", "start"], cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        wait_until(pipeline.connected, seconds=20, what=log.read_text)
        leg = simulated.control.dial("voiceai")
        wait_until(lambda: pipeline.state(leg) == "connected", seconds=10, what=log.read_text)
        simulated.control.hang_up(leg)
        wait_until(lambda: pipeline.state(leg) == "ended", seconds=10, what=log.read_text)
    finally:
        honcho.send_signal(signal.SIGINT)
        honcho.wait(30)
    text = log.read_text()
    assert all(f"{name}.1 stopped" in text for name in procfile()), text
    assert "Traceback" not in text
