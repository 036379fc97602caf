"""The run's own loopback and mounts: a namespace of its own, packets dropped in silence, a small disk that fills.

The present program runs again below unshare(1). Nothing that happens there touches the network, the ports or the mounts
of the machine, and all of it ends with the last process of the run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from devstack import processes

#: Set for the program inside: the network namespace that it left.
LEFT = "CHAOS_NETWORK_LEFT"
#: A silence ends by itself after this time, even if the run is killed: the kernel's own clock removes it.
MOST_SECONDS = 600
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1
_INTERFACE = "16sh14x"
# On input, because a packet that is dropped on output may fail the sender's call. No connection tracking is asked, so
# established connections are silenced too.
_TABLE = """table inet chaos {
    set ports { type inet_service; flags timeout; }
    set addresses { type ipv4_addr; flags timeout; }
    chain input {
        type filter hook input priority 0;
        tcp dport @ports drop
        tcp sport @ports drop
        ip daddr @addresses drop
        ip saddr @addresses drop
    }
}
"""


class NotPermitted(Exception):
    """This user may not have a network and mount namespace."""


def enter() -> None:
    """Run the present program again in namespaces of its own; once inside, return with loopback up.

    Call it first: what the program did before is done twice.

    Raises:
        NotPermitted: with the reason.
    """
    if not is_inside():
        check_permitted()
        os.environ[LEFT] = _namespace()
        os.execvp("unshare", [*_unshare(), *_program()])  # noqa: S606, S607 - this program again
    _loopback_up()


def check_permitted() -> None:
    """Raise NotPermitted, with the reason, if `enter` would."""
    try:
        processes.run([*_unshare(), "true"])
    except processes.ProcessError as exc:
        raise NotPermitted(f"a run needs root and its own network and mount namespace: {exc}") from exc


def is_inside() -> bool:
    """Return True in a namespace that `enter` made."""
    return os.environ.get(LEFT, _namespace()) != _namespace()


def _unshare() -> list[str]:
    return ["unshare", "--net", "--mount", "--propagation", "private"]


def _program() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def _namespace() -> str:
    return os.readlink("/proc/self/ns/net")  # noqa: PTH115 - not a path of the file system


def _loopback_up() -> None:
    """Set the flag by ioctl: iproute2 may be missing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        answer = fcntl.ioctl(asked, _GET_FLAGS, struct.pack(_INTERFACE, b"lo", 0))
        _, flags = struct.unpack(_INTERFACE, answer)
        fcntl.ioctl(asked, _SET_FLAGS, struct.pack(_INTERFACE, b"lo", flags | _UP))


class Firewall:
    """Drops TCP packets without an answer, in both directions, those of established connections too.

    Args:
        nft: the program.
    """

    def __init__(self, nft: Path) -> None:
        if not is_inside():
            raise NotPermitted("packets are dropped in a run's own namespace only: call network.enter() first")
        self._nft = nft
        self._run(_TABLE)

    def silence(self, name: str, *, port: int | None = None, address: str | None = None) -> Silence:
        """Return a silence of a port, or of all that an address sends and receives; it is not struck yet."""
        if (port is None) == (address is None):
            raise ValueError("a silence is of one port or of one address")
        return Silence(self, name=name, set_name="ports" if port else "addresses", element=str(port or address))

    def add(self, set_name: str, element: str, *, comment: str, seconds: int) -> None:
        self._run(f'add element inet chaos {set_name} {{ {element} timeout {seconds}s comment "{comment}" }}')

    def remove(self, set_name: str, element: str) -> None:
        self._run(f"delete element inet chaos {set_name} {{ {element} }}")

    def _run(self, ruleset: str) -> None:
        processes.run([self._nft, ruleset], timeout_seconds=10)


class Silence:
    """A port or an address whose packets are dropped; a context manager, or `strike` and `mend`.

    No connection is closed: both ends see what they see when a cable is pulled. TCP repeats what was not acknowledged,
    so a silence of some seconds delays, and what was sent meanwhile arrives afterwards.
    """

    def __init__(self, firewall: Firewall, *, name: str, set_name: str, element: str) -> None:
        self.name = name
        self._firewall = firewall
        self._set_name = set_name
        self._element = element
        self._is_struck = False

    def strike(self, *, most_seconds: int = MOST_SECONDS) -> None:
        """Drop packets from now on, for `most_seconds` at most."""
        if not self._is_struck:
            self._firewall.add(self._set_name, self._element, comment=self.name, seconds=most_seconds)
            self._is_struck = True

    def mend(self) -> None:
        """Let packets pass again."""
        if self._is_struck:
            # Gone already if its time is over.
            with contextlib.suppress(processes.ProcessError):
                self._firewall.remove(self._set_name, self._element)
            self._is_struck = False

    def __enter__(self) -> Self:
        self.strike()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.mend()


@contextlib.contextmanager
def tmpfs(path: Path, *, megabytes: int, owner: str | None = None, mode: int = 0o711) -> Iterator[Path]:
    """Mount a small file system of memory on a folder, created if missing, which ends with the run at the latest.

    Args:
        owner: name of the user that owns it, by default the present one.
    """
    if not is_inside():
        raise NotPermitted("a file system is mounted in a run's own namespace only: call network.enter() first")
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,mode={mode:o}" + (f",uid={owner},gid={owner}" if owner else "")
    processes.run(["mount", "-t", "tmpfs", "-o", options, "chaos", path])
    try:
        yield path
    finally:
        # Lazily: a server that is just ending may still have files open there.
        processes.run(["umount", "--lazy", path])


def fill(folder: Path) -> None:
    """Leave no free byte on the file system of a folder; `free` gives it back."""
    with _ballast(folder).open("ab", buffering=0) as ballast, contextlib.suppress(_NoSpace):
        while True:
            _grow(ballast.fileno(), _free_bytes(folder) or 1)


def free(folder: Path) -> None:
    """Undo `fill`."""
    _ballast(folder).unlink(missing_ok=True)


class _NoSpace(Exception):
    pass


def _ballast(folder: Path) -> Path:
    return folder / "ballast"


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _grow(descriptor: int, count: int) -> None:
    try:
        os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, count)
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        if count == 1:
            raise _NoSpace from exc
