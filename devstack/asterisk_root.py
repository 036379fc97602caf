"""Where a real Asterisk comes from: a Debian sid tree made by debootstrap (as root), or a Docker image of Debian sid.

The tree is made once and cached outside the checkout; it is never written to afterwards. The Docker way is written by
the documentation and has not been tried: no machine with an engine was at hand.
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Protocol

from devstack import folders, processes

#: Where an instance's folder appears to its Asterisk. A folder every Debian has and leaves empty.
INSTANCE = "/srv"
CONFIGURATION = f"{INSTANCE}/etc/asterisk.conf"
#: What debootstrap and apt-get print when the archive, not the machine, is the trouble.
UNREACHABLE = (
    "Failed getting release",
    "Couldn't download",
    "Failed to fetch",
    "Unable to fetch",
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
)
IN_CHROOT = """
root=$1 instance=$2; shift 2
mount --bind /proc "$root/proc" && mount --bind "$instance" "$root/srv" && exec chroot "$root" "$@"
"""
DOCKERFILE = """FROM debian:sid-slim
RUN apt-get update && apt-get install -y --no-install-recommends asterisk && rm -rf /var/lib/apt/lists/*
"""


class Unavailable(Exception):
    """No real Asterisk can be had here.

    Args:
        reason: for the reader.
        archive_unreachable: the cause is Debian's archive, and so nothing this machine could mend.
    """

    def __init__(self, reason: str, *, archive_unreachable: bool = False) -> None:
        super().__init__(reason)
        self.archive_unreachable = archive_unreachable


class Root(Protocol):
    """A place with an Asterisk installed, that runs any number of instances, each from a folder of its own."""

    #: The folder of Asterisk's modules, as Asterisk sees it.
    modules: str

    def command(self, instance: Path, name: str) -> list[str]:
        """What runs an instance in the foreground."""

    def command_line(self, instance: Path, name: str, command: str) -> list[str]:
        """What gives a command to a running instance."""


class Chroot:
    """A Debian tree; each process in it has a mount namespace of its own, so nothing is ever mounted in the host's."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        found = next(tree.glob("usr/lib/*/asterisk/modules"))
        self.modules = f"/{found.relative_to(tree)}"

    def command(self, instance: Path, name: str) -> list[str]:
        return [*self._enter(instance), "/usr/sbin/asterisk", "-f", "-C", CONFIGURATION]

    def command_line(self, instance: Path, name: str, command: str) -> list[str]:
        return [*self._enter(instance), "/usr/sbin/asterisk", "-C", CONFIGURATION, "-rx", command]

    def _enter(self, instance: Path) -> list[str]:
        unshare = ["unshare", "--mount", "--propagation", "private"]
        return [*unshare, "sh", "-c", IN_CHROOT, "sh", str(self._tree), str(instance)]


class Docker:
    """A Docker image; containers share the host's network, as the instances listen on loopback. Untried."""

    def __init__(self, image: str) -> None:
        self._image = image
        script = "dirname $(find / -xdev -name chan_websocket.so | head -n 1)"
        self.modules = processes.run(["docker", "run", "--rm", image, "sh", "-c", script]).strip()

    def command(self, instance: Path, name: str) -> list[str]:
        run = ["docker", "run", "--rm", "--init", "--name", name, "--network", "host", "-v", f"{instance}:{INSTANCE}"]
        return [*run, self._image, "asterisk", "-f", "-C", CONFIGURATION]

    def command_line(self, instance: Path, name: str, command: str) -> list[str]:
        return ["docker", "exec", name, "asterisk", "-C", CONFIGURATION, "-rx", command]


def find() -> Root:
    """A root, made when there is none yet (a minute, 500 MB).

    Raises:
        Unavailable: with the reasons.
    """
    if os.geteuid() == 0:
        try:
            return Chroot(debian(folders.cache() / "asterisk-sid"))
        except Unavailable:
            if not _docker_runs():
                raise
    if not _docker_runs():
        raise Unavailable("it takes root (for debootstrap and chroot) or a Docker engine, and there is neither")
    return Docker(_image())


def debian(tree: Path) -> Path:
    """A finished Debian tree with Asterisk at this place, made when it is missing."""
    with folders.lock(tree.with_name(tree.name + ".lock")):
        if not (tree / "finished").exists():
            _may_chroot()
            _debootstrap(tree)
    return tree


def _may_chroot() -> None:
    try:
        processes.run(["unshare", "--mount", "--propagation", "private", "chroot", "/", "true"])
    except processes.ProcessError as exc:
        raise Unavailable(f"this root may not chroot in a mount namespace of its own ({exc})") from exc


def _debootstrap(tree: Path) -> None:
    program = shutil.which("debootstrap") or _install_debootstrap()
    partial = tree.with_name(tree.name + ".partial")
    for leftover in (partial, tree):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(mode=0o755)
    # In a mount namespace of its own: what debootstrap mounts is gone with it, even if it is killed.
    command = ["unshare", "--mount", "--propagation", "private", program]
    command += ["--variant=minbase", "--include=asterisk", "sid", str(partial)]
    if mirror := os.environ.get("DEBIAN_MIRROR"):
        command.append(mirror)
    with tempfile.NamedTemporaryFile(prefix="debootstrap-") as log:
        making = processes.Kept(command, log=Path(log.name), stop_signal=signal.SIGTERM)
        try:
            status = making.wait(900)
        finally:
            making.stop()
        if status != 0:
            output = making.log_tail()
            shutil.rmtree(partial, ignore_errors=True)
            raise _failed("debootstrap", output)
    for package in (partial / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    (partial / "finished").touch()
    partial.rename(tree)


def _install_debootstrap() -> str:
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        raise Unavailable("debootstrap is missing and there is no apt-get to install it with")
    try:
        output = processes.run([apt_get, "-q", "update"], timeout_seconds=300)
        processes.run([apt_get, "-q", "-y", "install", "debootstrap"], timeout_seconds=300)
    except processes.ProcessError as exc:
        raise _failed("apt-get", f"{exc}") from exc
    if program := shutil.which("debootstrap"):
        return program
    raise _failed("apt-get", output)


def _failed(what: str, output: str) -> Unavailable:
    unreachable = any(sign in output for sign in UNREACHABLE)
    reason = "Debian's archive could not be reached" if unreachable else f"{what} failed"
    # Both programs begin their errors with `E:`.
    lines = [line for line in output.splitlines() if line.startswith("E:")] or output.split()
    return Unavailable(f"{reason}: {' '.join(lines)[-400:]}", archive_unreachable=unreachable)


def _docker_runs() -> bool:
    if not shutil.which("docker"):
        return False
    try:
        processes.run(["docker", "info", "--format", "{{.ServerVersion}}"], timeout_seconds=10)
    except processes.ProcessError:
        return False
    return True


def _image() -> str:
    """The image to run: `ASTERISK_IMAGE` (22.8 or newer), or one made here from Debian sid."""
    if image := os.environ.get("ASTERISK_IMAGE"):
        return image
    name = "ari-pipeline-asterisk:sid"
    with tempfile.TemporaryDirectory() as context:
        Path(context, "Dockerfile").write_text(DOCKERFILE)
        try:
            processes.run(["docker", "build", "--tag", name, context], timeout_seconds=900)
        except processes.ProcessError as exc:
            raise _failed("docker build", str(exc)) from exc
    return name
