"""The folders of the development stack: location, ownership, and locks that keep two stacks on one machine apart.

As root they are outside of any home, and a system user runs the servers that refuse to run as root; otherwise they are
in the user's data folder. Permissions are set only on folders that this module creates.
"""

import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from devstack import processes

SYSTEM_USER = "ari-pipeline"
#: Linux's file system in memory, for everybody; and how much of it has to be free, and of memory. A run of all tests
#: took 3.5 GB, with six xdist workers.
_MEMORY = Path("/dev/shm")  # noqa: S108 - see _in_memory
_MEMORY_NEEDED = 6 * 2**30


class Busy(Exception):
    """Another process holds the lock."""


def home() -> Path:
    """Return the data folder, created if missing: `ARI_PIPELINE_HOME`, or the usual one of this user."""
    if given := os.environ.get("ARI_PIPELINE_HOME"):
        path = Path(given).absolute()
    elif os.geteuid() == 0:
        path = Path("/var/lib/ari-pipeline")
    else:
        path = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ari-pipeline"
    return make(path, mode=0o755)


def cache() -> Path:
    """Return the cache folder, created if missing: `ARI_PIPELINE_CACHE`, or the usual one of this user."""
    if given := os.environ.get("ARI_PIPELINE_CACHE"):
        path = Path(given).absolute()
    elif os.geteuid() == 0:
        path = Path("/var/cache/ari-pipeline")
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ari-pipeline"
    return make(path, mode=0o755)


def make(path: Path, *, mode: int) -> Path:
    """Create a folder if missing, with exactly this mode whatever the umask; an existing one keeps its mode."""
    if not path.is_dir():
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.mkdir(mode=mode, exist_ok=True)
        path.chmod(mode)
    return path


def server_user() -> str | None:
    """Return the user the servers run as: None for the present one; as root a system user, created if missing."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        _create_system_user()
    return SYSTEM_USER


def _create_system_user() -> None:
    with lock(home() / "user.lock"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(SYSTEM_USER)
            return
        nologin = shutil.which("nologin") or "/bin/false"
        if useradd := shutil.which("useradd"):
            processes.run([useradd, "--system", "--user-group", "--no-create-home", f"--shell={nologin}", SYSTEM_USER])
        elif adduser := shutil.which("adduser"):
            processes.run([adduser, "-S", "-D", "-H", "-s", nologin, SYSTEM_USER])
        else:
            raise processes.ProcessError(
                f"Postgres does not run as root, and there is no useradd to create the user {SYSTEM_USER}:"
                " create that user, run as an ordinary user, or set DATABASE_URL"
            )


def private(path: Path, *, owner: str | None = None) -> Path:
    """Create a folder that only its owner can read, if missing; `owner` is a user name, by default the present user."""
    if not path.is_dir():
        path.mkdir(mode=0o700)
        if owner:
            shutil.chown(path, owner, owner)
    return path


def named(name: str) -> Path:
    """Return the folder of a permanent stack, such as that of `make run`."""
    # The servers' user has to traverse it to reach its own folders; the files beside them are private by their modes.
    return make(home() / name, mode=0o711)


@contextlib.contextmanager
def temporary(*, in_memory: bool = False) -> Iterator[Path]:
    """Create a folder for a temporary stack, and remove those that killed processes have left.

    Args:
        in_memory: If there is room. Its servers wait for no disk, which took a seventh of the tests' processor time.
    """
    place = _in_memory() if in_memory else None
    if place is not None:
        # Before there is a look at how much room there is: what is left in memory would stay there.
        with _parent(place):
            pass
    with _parent(place if place is not None and _has_room() else home()) as parent:
        path = Path(tempfile.mkdtemp(dir=parent))
        path.chmod(0o711)
        locked = contextlib.ExitStack()
        locked.enter_context(lock(path / "lock"))
    with locked:
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _parent(place: Path) -> Iterator[Path]:
    """The locked folder of the temporary ones of a place, without those that killed processes have left."""
    parent = make(place / "temporary", mode=0o711)
    with lock(parent / "lock"):
        for stale in [entry for entry in parent.iterdir() if entry.is_dir()]:
            with contextlib.suppress(Busy), lock(stale / "lock", wait=False):
                shutil.rmtree(stale, ignore_errors=True)
        yield parent


def _in_memory() -> Path | None:
    """Return this user's folder in memory, created if missing; None if there is none, or if it cannot be used."""
    if os.environ.get("ARI_PIPELINE_HOME") or not _MEMORY.is_dir():
        return None
    if os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
        # As in a container. Libraries are put there, too.
        return None
    path = _MEMORY / f"ari-pipeline-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o711)
    # Everybody may have made something of this name first.
    found = path.lstat()
    return path if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() else None


def _has_room() -> bool:
    """True if there is memory for the servers of a run of all tests."""
    free: list[int] = [shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available]
    # What a container may use is not what its host has.
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(free) >= _MEMORY_NEEDED


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; the end of this process releases it.

    Raises:
        Busy: another process holds it, and `wait` is False.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as exc:
            raise Busy(str(path)) from exc
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, text: str, *, owner: str | None = None) -> None:
    """Write a file that only its owner can read, atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    if owner:
        shutil.chown(partial, owner, owner)
    partial.rename(path)


def secret(path: Path) -> str:
    """Return the secret in a file; generated on first use."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    with lock(path.with_name(path.name + ".lock")):
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32) + "\n")
        return path.read_text().strip()
