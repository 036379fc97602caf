"""Debian's packages, as the development stack needs them: installed by apt-get as root, one at a time on a machine.

Test processes ask for different packages at the same time, and the system may be at work on its own.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from devstack import folders, processes

#: Messages of apt-get and debootstrap when the archive, not the machine, is the problem.
UNREACHABLE = (
    "Failed getting release",
    "Couldn't download",
    "Failed to fetch",
    "Unable to fetch",
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
)
#: Messages of apt-get when another program, such as the system's own upgrades, holds one of its locks.
_LOCKED = ("Could not get lock", "Unable to acquire", "Unable to lock")
_LOCKED_SECONDS = 300.0
_PAUSE_SECONDS = 3.0
#: Programs for the administrator, which an ordinary user's PATH does not name.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Unavailable(Exception):
    """Something cannot be had on this machine.

    Args:
        reason: For the user.
        archive_unreachable: Debian's archive is the cause, which cannot be fixed on this machine.
    """

    def __init__(self, reason: str, *, archive_unreachable: bool = False) -> None:
        super().__init__(reason)
        self.archive_unreachable = archive_unreachable


def may_install() -> bool:
    """True for root on a Debian."""
    return os.geteuid() == 0 and shutil.which("apt-get", path=PATH) is not None


def install(*packages: str) -> None:
    """Install packages, without those they recommend. Raises Unavailable."""
    _apt_get("-y", "install", "--no-install-recommends", *packages)


def download(package: str, folder: Path) -> Path:
    """Download a package, which is not installed; return its path. Raises Unavailable."""
    _apt_get("download", package, folder=folder)
    (path,) = folder.glob("*.deb")
    return path


def failed(what: str, output: str) -> Unavailable:
    """Return what to raise for a program that has failed with this output."""
    unreachable = any(sign in output for sign in UNREACHABLE)
    reason = "Debian's archive could not be reached" if unreachable else f"{what} failed"
    # Both programs begin their errors with `E:`.
    lines = [line for line in output.splitlines() if line.startswith("E:")] or output.split()
    return Unavailable(f"{reason}: {' '.join(lines)[-400:]}", archive_unreachable=unreachable)


def _apt_get(*arguments: str, folder: Path | None = None) -> None:
    if not may_install():
        raise Unavailable("only root on a Debian can install it")
    with folders.lock(folders.cache() / "apt-get.lock"):
        for each in (("update",), arguments):
            _run(each, folder)


def _run(arguments: tuple[str, ...], folder: Path | None) -> None:
    """Run apt-get, again while another program holds its locks."""
    ends_at = time.monotonic() + _LOCKED_SECONDS
    while True:
        try:
            processes.run(["apt-get", "-q", *arguments], timeout_seconds=600, cwd=folder)
        except processes.ProcessError as exc:
            if any(sign in str(exc) for sign in _LOCKED) and time.monotonic() < ends_at:
                time.sleep(_PAUSE_SECONDS)
                continue
            raise failed("apt-get", str(exc)) from exc
        return
