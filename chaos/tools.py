"""Finds the programs that a chaos run needs: haproxy, nft and libfaketime; as root on Debian installs them.

Call it before `network.enter`: Debian's archive cannot be reached from the namespace of a run.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devstack import debian, folders, processes
from devstack.debian import Unavailable

#: Part of `Tools` → Debian package.
PACKAGES = {"haproxy": "haproxy", "nft": "nftables", "libfaketime": "libfaketime"}
#: Packages that are services.
SERVICES = frozenset({"haproxy", "pgbouncer"})
#: Debian's packages ask this program whether they may start a service; 101 is no.
POLICY = Path("/usr/sbin/policy-rc.d")
DENY = "#!/bin/sh\nexit 101\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The paths of what was found."""

    haproxy: Path
    nft: Path
    #: The library to preload, of programs with threads.
    libfaketime: Path


def find() -> Tools:
    """Return the tools; install those that are missing.

    Raises:
        Unavailable: with what is missing, and what to do.
    """
    found = _found()
    if missing := [PACKAGES[name] for name, path in found.items() if path is None]:
        with folders.lock(folders.cache() / "chaos-tools.lock"):
            install(missing)
        found = _found()
    paths = {name: path for name, path in found.items() if path is not None}
    if still := [name for name in found if name not in paths]:
        raise Unavailable(f"installed {', '.join(missing)}, but there is still no {', '.join(still)}")
    return Tools(**paths)


def _found() -> dict[str, Path | None]:
    """Return part of `Tools` → path, None if it is missing."""
    programs = {name: shutil.which(name, path=debian.PATH) for name in ("haproxy", "nft")}
    # Debian puts it below the name of the architecture.
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return {name: Path(path) if path else None for name, path in programs.items()} | {
        "libfaketime": libraries[0] if libraries else None
    }


def install(packages: list[str]) -> None:
    """Install Debian packages, as root; none of their services starts, now or at a boot. Raises Unavailable."""
    named = " ".join(packages)
    if not debian.may_install():
        raise Unavailable(f"missing: {named}. Run as root on Debian, or first install: apt-get install {named}")
    with no_service_starts():
        debian.install(*packages)
    for service in SERVICES.intersection(packages):
        try:
            processes.run(["/usr/sbin/update-rc.d", service, "disable"])
        except processes.ProcessError as exc:
            raise Unavailable(f"{service} would start at the next boot: {exc}") from exc


@contextlib.contextmanager
def no_service_starts() -> Iterator[None]:
    """Deny packages to start their services: haproxy's would listen on this machine until its next boot and after."""
    if POLICY.exists():
        # The machine has its own policy, for example a container's, which starts none.
        yield
        return
    POLICY.write_text(DENY)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
