"""Liveness: the file that a process touches, and what the check makes of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog

from shared.process import health

ROOT = Path(__file__).parents[2]


def check(path: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]} | ({"HEALTH_FILE": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, "-m", "shared.process.health"],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_process_that_touches_its_file_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    health.Liveness(str(path)).touch()
    assert 0 <= health.silence(path, time.monotonic()) < 5
    done = check(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [file.name for file in tmp_path.iterdir()] == ["alive"]


def test_a_silent_process_is_not_alive(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    for text, said in (
        (f"{time.monotonic() - 60}", "no sign of life for 6"),
        # Of an earlier boot.
        (f"{time.monotonic() + 1e6}", "never touched"),
        ("", "never touched"),
        ("x", "never touched"),
    ):
        path.write_text(text)
        done = check(path)
        assert done.returncode == 1
        assert said in done.stderr
    path.unlink()
    assert health.silence(path, 5.0) == math.inf
    assert check(path).returncode == 1


def test_without_a_file_the_check_says_so() -> None:
    done = check(None)
    assert done.returncode == 2
    assert "HEALTH_FILE is not set" in done.stderr


def test_a_file_that_cannot_be_written_is_logged_once_and_ends_nothing(tmp_path: Path) -> None:
    liveness = health.Liveness(str(tmp_path / "missing" / "alive"))
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            liveness.touch()
    assert [entry["log_level"] for entry in logged] == ["error"]
    (tmp_path / "missing").mkdir()
    liveness.touch()
    assert (tmp_path / "missing" / "alive").exists()


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    health.Liveness("").touch()
    assert list(tmp_path.iterdir()) == []
