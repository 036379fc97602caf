"""A process that starts while a server is away waits for it, is alive meanwhile, and ends when it is told to."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared import errors
from shared.process import health, lifecycle

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TOUCH_SECONDS", 0.001)


class Server:
    """Answers after so many failures."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def read(self) -> str:
        if self.failures:
            self.failures -= 1
            raise errors.DatabaseUnavailable("not yet")
        return "aip-k3x9q2-"


def test_a_process_waits_for_the_server_and_is_alive_meanwhile() -> None:
    touches: list[int] = []
    assert lifecycle.wait_for(Server(3).read, threading.Event(), lambda: touches.append(1)) == "aip-k3x9q2-"
    assert len(touches) == 4


def test_a_process_that_is_to_stop_waits_no_longer() -> None:
    stop = threading.Event()
    stop.set()
    assert lifecycle.wait_for(Server(1).read, stop, lambda: None) is None


_FAILING = """
import sys
from shared.process import lifecycle, settings

def run(config, stop):
    raise RuntimeError("token=hunter2 of +49301234567")

sys.exit(lifecycle.main("worker", settings.Base, run, lambda config: {}))
"""


def test_a_process_that_fails_says_so_in_its_log_and_nowhere_else(tmp_path: Path) -> None:
    environment = {"REDIS_URL": "redis://127.0.0.1:1", "SECRET_KEY": "a key for this test", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _FAILING],
        check=False, capture_output=True, text=True, timeout=30, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    (failure,) = [entry for entry in entries if entry["severity_text"] == "FATAL"]
    assert failure["event_name"] == "process failed"
    assert "RuntimeError: token=[redacted] of +*******4567" in failure["exception"]
    assert "hunter2" not in done.stderr
