"""Where the development stack keeps its files, who owns them, and how two stacks on one machine keep apart.

As root everything lies in a folder of our own outside any home, with a system user for the servers that refuse to run
as root; otherwise in the user's data folder. Only folders created here get permissions from here.
"""

import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from devstack import processes

SYSTEM_USER = "ari-pipeline"


class Busy(Exception):
    """Another process holds the lock."""


def home() -> Path:
    """The folder of all our data (created when missing): `ARI_PIPELINE_HOME`, or the place usual for this user."""
    if given := os.environ.get("ARI_PIPELINE_HOME"):
        path = Path(given).absolute()
    elif os.geteuid() == 0:
        path = Path("/var/lib/ari-pipeline")
    else:
        path = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ari-pipeline"
    return make(path, mode=0o755)


def cache() -> Path:
    """The folder of what can be made again, at a price: `ARI_PIPELINE_CACHE`, or the place usual for this user."""
    if given := os.environ.get("ARI_PIPELINE_CACHE"):
        path = Path(given).absolute()
    elif os.geteuid() == 0:
        path = Path("/var/cache/ari-pipeline")
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ari-pipeline"
    return make(path, mode=0o755)


def make(path: Path, *, mode: int) -> Path:
    """A folder, made when missing, then with exactly this mode whatever the umask; one that was there keeps its own."""
    if not path.is_dir():
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.mkdir(mode=mode, exist_ok=True)
        path.chmod(mode)
    return path


def server_user() -> str | None:
    """The user the servers run as: none but ourselves, or as root a system user, created when missing."""
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
                f"Postgres does not run as root, and there is no useradd here to create the user {SYSTEM_USER}:"
                " create it, run as an ordinary user, or set DATABASE_URL"
            )


def private(path: Path, *, owner: str | None = None) -> Path:
    """A folder only its owner can look into, created when missing; `owner` is a user name, ourselves by default."""
    if not path.is_dir():
        path.mkdir(mode=0o700)
        if owner:
            shutil.chown(path, owner, owner)
    return path


def named(name: str) -> Path:
    """The folder of a stack that lasts, such as that of `make run`."""
    # The servers' user must pass through to its own folders; what lies beside them is private by its own mode.
    return make(home() / name, mode=0o711)


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder of a stack that does not last; those of processes that were killed are removed on the way."""
    parent = make(home() / "temporary", mode=0o711)
    with lock(parent / "lock"):
        for stale in [entry for entry in parent.iterdir() if entry.is_dir()]:
            with contextlib.suppress(Busy), lock(stale / "lock", wait=False):
                shutil.rmtree(stale, ignore_errors=True)
        path = Path(tempfile.mkdtemp(dir=parent))
        path.chmod(0o711)
        held = contextlib.ExitStack()
        held.enter_context(lock(path / "lock"))
    with held:
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; it is free again when we are gone.

    Raises:
        Busy: another process holds it and we should not wait.
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
    """Write a file only its owner can read, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    if owner:
        shutil.chown(partial, owner, owner)
    partial.rename(path)


def secret(path: Path) -> str:
    """The secret kept in this file; made on first use."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    with lock(path.with_name(path.name + ".lock")):
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32) + "\n")
        return path.read_text().strip()
