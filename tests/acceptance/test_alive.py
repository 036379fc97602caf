"""`python -m shared.process.health` on the real processes: alive without Redis and Postgres, dead when stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devstack import processes
from devstack.pipeline import ROOT, Pipeline, procfile, wait_until
from shared.process import health

pytestmark = pytest.mark.services


@pytest.mark.parametrize("name", sorted(procfile()))
def test_a_process_is_alive_whatever_it_stands_on_and_not_when_it_is_stuck(
    pipeline: Pipeline, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "alive"
    # No server listens on this port.
    unused = f"127.0.0.1:{processes.free_port()}"
    urls = {"DATABASE_URL": f"postgresql://u:p@{unused}/x", "REDIS_URL": f"redis://{unused}/0"}
    pipeline.start(name, HEALTH_FILE=str(path), **urls)
    wait_until(lambda: health.silence(path, time.monotonic()) < 2, seconds=10, what=pipeline.log_tail)
    done = subprocess.run(
        [sys.executable, "-m", "shared.process.health"],
        check=False,
        cwd=ROOT,
        env={**os.environ, "HEALTH_FILE": str(path)},
    )
    assert done.returncode == 0
    touched = path.read_text()
    wait_until(lambda: path.read_text() != touched, seconds=5, what="the next touch")
    pipeline.signal(name, signal.SIGSTOP)
    wait_until(lambda: health.silence(path, time.monotonic()) > 3, seconds=10, what="silence")
    pipeline.signal(name, signal.SIGCONT)
    wait_until(lambda: health.silence(path, time.monotonic()) < 2, seconds=5, what="alive again")
