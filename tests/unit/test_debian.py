"""One apt-get runs at a time, and waits for the locks that other programs hold."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from devstack import debian, processes

LOCKED = "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?"


@pytest.fixture(autouse=True)
def _root_on_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "apt-get").touch(mode=0o755)
    monkeypatch.setenv("ARI_PIPELINE_CACHE", str(tmp_path))
    monkeypatch.setattr(debian, "PATH", str(tmp_path))
    monkeypatch.setattr(debian, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_a_lock_of_another_program_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [LOCKED, "", LOCKED, LOCKED, ""]
    ran: list[object] = []

    def run(command: list[str], **_how: object) -> str:
        ran.append(command[2])
        if answer := answers.pop(0):
            raise processes.ProcessError(answer)
        return ""

    monkeypatch.setattr(processes, "run", run)
    debian.install("chromium")
    assert ran == ["update", "update", "-y", "-y", "-y"]


def test_a_lock_that_is_never_free_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_command: object, **_how: object) -> str:
        raise processes.ProcessError(LOCKED)

    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(debian, "_LOCKED_SECONDS", 0.0)
    with pytest.raises(debian.Unavailable, match="apt-get failed: E: Unable to acquire the dpkg frontend lock"):
        debian.install("chromium")


def test_two_who_ask_at_the_same_time_have_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []
    at_once: list[int] = []

    def run(*_command: object, **_how: object) -> str:
        running.append(1)
        at_once.append(len(running))
        time.sleep(0.02)
        running.pop()
        return ""

    monkeypatch.setattr(processes, "run", run)
    threads = [threading.Thread(target=debian.install, args=[name]) for name in ("chromium", "debootstrap")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == [1, 1, 1, 1]
