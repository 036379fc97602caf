"""Where the Chromium of the browser tests comes from, and what is said where none can be had."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from devstack import browser, debian, processes


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The programs in PATH; root asks."""
    found = {"apt-get"}
    monkeypatch.setenv("ARI_PIPELINE_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name, **_how: f"/usr/bin/{name}" if name in found else None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return found


def test_what_is_there_is_used(programs: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    programs.add("chromium")
    monkeypatch.setattr(processes, "run", lambda *_args, **_how: pytest.fail("nothing is to be installed"))
    assert browser.find() == "/usr/bin/chromium"


def test_root_has_it_installed(programs: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_how: object) -> str:
        ran.append(command[2:])
        if "install" in command:
            programs.add(command[-1])
        return ""

    monkeypatch.setattr(processes, "run", run)
    assert browser.find() == "/usr/bin/chromium-headless-shell"
    assert ran == [["update"], ["-y", "install", "--no-install-recommends", "chromium-headless-shell"]]


def test_another_user_is_told_why_not(programs: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(debian.Unavailable, match="only root on a Debian can install it") as told:
        browser.find()
    assert not told.value.archive_unreachable


@pytest.mark.parametrize(("said", "unreachable"), [("E: Could not resolve 'archive'", True), ("E: held", False)])
def test_an_archive_out_of_reach_is_told_from_a_broken_system(
    programs: set[str], monkeypatch: pytest.MonkeyPatch, said: str, unreachable: bool
) -> None:
    def run(*_args: object, **_how: object) -> str:
        raise processes.ProcessError(said)

    monkeypatch.setattr(processes, "run", run)
    with pytest.raises(debian.Unavailable) as told:
        browser.find()
    assert told.value.archive_unreachable is unreachable
