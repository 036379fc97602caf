"""Finds a Chromium for the tests of the console; as root on a Debian, apt-get installs it on first use."""

import os
import shutil

from devstack import asterisk_root, folders, processes

#: Nothing is asked of the network but the pages themselves. Root may not use the sandbox.
ARGUMENTS = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Unavailable(Exception):
    """No Chromium can be had here; the text is the reason.

    Args:
        archive_unreachable: Debian's archive is the cause, which cannot be fixed on this machine.
    """

    def __init__(self, reason: str, *, archive_unreachable: bool = False) -> None:
        super().__init__(reason)
        self.archive_unreachable = archive_unreachable


def find() -> str:
    """Return the path of a Chromium, installed if there is none.

    Raises:
        Unavailable: With the reason.
    """
    with folders.lock(folders.cache() / "chromium.lock"):
        return _found() or _install()


def _found() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def _install() -> str:
    apt_get = shutil.which("apt-get")
    if os.geteuid() != 0 or apt_get is None:
        raise Unavailable("there is no chromium, and only root on a Debian can install it")
    try:
        processes.run([apt_get, "-q", "update"], timeout_seconds=300)
        processes.run([apt_get, "-q", "-y", "install", "--no-install-recommends", "chromium"], timeout_seconds=600)
    except processes.ProcessError as exc:
        unreachable = any(sign in str(exc) for sign in asterisk_root.UNREACHABLE)
        reason = "Debian's archive could not be reached" if unreachable else "apt-get failed"
        raise Unavailable(f"{reason}: {str(exc)[-400:]}", archive_unreachable=unreachable) from exc
    path = _found()
    if path is None:
        raise Unavailable("apt-get has installed chromium, and it is not in PATH")
    return path
