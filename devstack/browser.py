"""Finds a Chromium for the tests of the console; as root on a Debian, apt-get installs it on first use."""

import shutil

from devstack import debian, folders
from devstack.debian import Unavailable

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
#: The same engine without windows takes fewer packages, and less processor time.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser")


def find() -> str:
    """Return the path of a Chromium, installed if there is none.

    Raises:
        Unavailable: With the reason.
    """
    with folders.lock(folders.cache() / "chromium.lock"):
        return _found() or _install()


def _found() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


def _install() -> str:
    if not debian.may_install():
        raise Unavailable("there is no chromium, and only root on a Debian can install it")
    debian.install(_NAMES[0])
    path = _found()
    if path is None:
        raise Unavailable(f"apt-get has installed {_NAMES[0]}, and it is not in PATH")
    return path
