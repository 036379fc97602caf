"""A real pgbouncer in transaction mode between the product and a Postgres; Debian's package, installed on first use."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from chaos import tools
from devstack import debian, folders, processes

_CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={server_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
# Few, so that a process's connections share them.
default_pool_size = {connections}
max_client_conn = 200
{further}
"""


def program() -> Path:
    """Return pgbouncer; skip the test if it cannot be had."""
    found = shutil.which("pgbouncer", path=debian.PATH)
    if found is None:
        try:
            with folders.lock(folders.cache() / "pgbouncer.lock"):
                tools.install(["pgbouncer"])
        except debian.Unavailable as exc:
            pytest.skip(f"no pgbouncer: {exc}")
        found = shutil.which("pgbouncer", path=debian.PATH)
    assert found is not None
    return Path(found)


@contextlib.contextmanager
def running(folder: Path, database_url: str, *, connections: int = 3, **further: str) -> Iterator[str]:
    """Start one in front of a server; yield the URL of the database through it.

    Args:
        connections: How many it has to the database.
        further: Lines of its configuration.
    """
    pgbouncer, parts, port = program(), urlsplit(database_url), processes.free_port()
    assert parts.port is not None
    own = folders.private(folder / f"pgbouncer-{port}", owner=folders.server_user())
    folders.write_private(own / "users", f'"{parts.username}" "{parts.password}"\n', owner=folders.server_user())
    text = _CONFIGURATION.format(
        server_port=parts.port,
        port=port,
        users=own / "users",
        connections=connections,
        further="\n".join(f"{name} = {value}" for name, value in further.items()),
    )
    folders.write_private(own / "pgbouncer.ini", text, owner=folders.server_user())
    process = processes.GuardedProcess(
        [pgbouncer, own / "pgbouncer.ini"], log=folder / f"pgbouncer-{port}.log", user=folders.server_user()
    )
    try:
        process.wait_until(lambda: _listens(port), timeout_seconds=15)
        yield parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()
    finally:
        process.stop()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
