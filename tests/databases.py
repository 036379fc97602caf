"""Databases of a test run: each test that wants one has its own.

None is dropped before the end. On ext4 without a journal a file that is made soon after many were deleted costs ten
times as much (measured: 0.3 s for each database), and the embedded server's folder goes as a whole anyway.
"""

from __future__ import annotations

import contextlib
import uuid

import psycopg

from devstack import servers

_RUN = f"test_{uuid.uuid4().hex}_"


def create(server_url: str, *, template: str | None = None) -> str:
    """A database, empty or a copy of another one; returns its URL."""
    return servers.create_database(server_url, _RUN + uuid.uuid4().hex[:12], template=template)


def drop_all(server_url: str) -> None:
    """Leaves a server as it was before the run."""
    with contextlib.closing(psycopg.connect(server_url, autocommit=True)) as connection:
        found = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [_RUN]).fetchall()
    for (name,) in found:
        servers.drop_database(server_url, name)
