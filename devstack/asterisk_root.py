"""Installs a real Asterisk: a Debian sid tree made by debootstrap (as root), or a Docker image of Debian sid.

The tree is made once, cached outside the checkout, and never changed afterwards. The Docker way follows the
documentation and is untested: no machine with an engine was available.
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Protocol

from devstack import debian, folders, processes
from devstack.debian import Unavailable

#: The path of an instance's folder as its Asterisk sees it: a folder that every Debian has and leaves empty.
INSTANCE = "/srv"
CONFIGURATION = f"{INSTANCE}/etc/asterisk.conf"
IN_CHROOT = """
root=$1 instance=$2; shift 2
mount --bind /proc "$root/proc" && mount --bind "$instance" "$root/srv" && exec chroot "$root" "$@"
"""
DOCKERFILE = """FROM debian:sid-slim
RUN apt-get update && apt-get install -y --no-install-recommends asterisk && rm -rf /var/lib/apt/lists/*
"""


class Root(Protocol):
    """An installed Asterisk, of which any number of instances can run, each with its own folder."""

    #: The folder of Asterisk's modules, as Asterisk sees it.
    modules: str

    def command(self, instance: Path, name: str) -> list[str]:
        """Return the command that runs an instance in the foreground."""

    def command_line(self, instance: Path, name: str, command: str) -> list[str]:
        """Return the command that sends a console command to a running instance."""


class Chroot:
    """A Debian tree; each process in it has its own mount namespace, so nothing is mounted in the host's."""

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
    """A Docker image; containers share the host's network, as the instances listen on loopback. Untested."""

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
    """Return a root, installed if there is none yet (a minute, 500 MB).

    Raises:
        Unavailable: with the reasons.
    """
    if os.geteuid() == 0:
        try:
            return Chroot(installed_tree(folders.cache() / "asterisk-sid"))
        except Unavailable:
            if not _docker_runs():
                raise
    if not _docker_runs():
        raise Unavailable("root (for debootstrap and chroot) or a Docker engine is needed, and there is neither")
    return Docker(_image())


def installed_tree(tree: Path) -> Path:
    """Return a complete Debian tree with Asterisk, made if it is missing."""
    with folders.lock(tree.with_name(tree.name + ".lock")):
        if not (tree / "finished").exists():
            _may_chroot()
            _debootstrap(tree)
    return tree


def _may_chroot() -> None:
    try:
        processes.run(["unshare", "--mount", "--propagation", "private", "chroot", "/", "true"])
    except processes.ProcessError as exc:
        raise Unavailable(f"this root user may not chroot in its own mount namespace ({exc})") from exc


def _debootstrap(tree: Path) -> None:
    program = shutil.which("debootstrap") or _install_debootstrap()
    partial = tree.with_name(tree.name + ".partial")
    for incomplete in (partial, tree):
        shutil.rmtree(incomplete, ignore_errors=True)
    partial.mkdir(mode=0o755)
    # In its own mount namespace: the mounts of debootstrap end with it, even if it is killed.
    command = ["unshare", "--mount", "--propagation", "private", program]
    command += ["--variant=minbase", "--include=asterisk", "sid", str(partial)]
    if mirror := os.environ.get("DEBIAN_MIRROR"):
        command.append(mirror)
    with tempfile.NamedTemporaryFile(prefix="debootstrap-") as log:
        making = processes.GuardedProcess(command, log=Path(log.name), stop_signal=signal.SIGTERM)
        try:
            status = making.wait(900)
        finally:
            making.stop()
        if status != 0:
            output = making.log_tail()
            shutil.rmtree(partial, ignore_errors=True)
            raise debian.failed("debootstrap", output)
    for package in (partial / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    (partial / "finished").touch()
    partial.rename(tree)


def _install_debootstrap() -> str:
    debian.install("debootstrap")
    if program := shutil.which("debootstrap"):
        return program
    raise Unavailable("apt-get has installed debootstrap, and it is not in PATH")


def _docker_runs() -> bool:
    if not shutil.which("docker"):
        return False
    try:
        processes.run(["docker", "info", "--format", "{{.ServerVersion}}"], timeout_seconds=10)
    except processes.ProcessError:
        return False
    return True


def _image() -> str:
    """Return the image to run: `ASTERISK_IMAGE` (22.8 or newer), or one built here from Debian sid."""
    if image := os.environ.get("ASTERISK_IMAGE"):
        return image
    name = "ari-pipeline-asterisk:sid"
    with tempfile.TemporaryDirectory() as context:
        Path(context, "Dockerfile").write_text(DOCKERFILE)
        try:
            processes.run(["docker", "build", "--tag", name, context], timeout_seconds=900)
        except processes.ProcessError as exc:
            raise debian.failed("docker build", str(exc)) from exc
    return name
