"""Who runs a command, for the audit."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import Iterator, Mapping

from shared.operator import audit
from shared.storage import database


def actor() -> audit.Actor:
    """Return the operator: the login, also of a command that runs as root by sudo, and the host."""
    return audit.Actor(who=f"{os.environ.get('SUDO_USER') or _login()}@{socket.gethostname()}", via="arictl")


@contextlib.contextmanager
def recorded(
    db: database.Database,
    name: str,
    subject: str,
    *,
    organization: int | None = None,
    detail: Mapping[str, object] | None = None,
) -> Iterator[database.Database]:
    """Record what a command does in Postgres; see `audit.recorded`."""
    action = audit.Action(name=name, subject=subject, organization_id=organization, detail=detail or {})
    with audit.recorded(db, actor(), action) as recording:
        yield recording


@contextlib.contextmanager
def refusals(db: database.Database, name: str, subject: str, *, organization: int | None = None) -> Iterator[None]:
    """Record that a command was refused; see `audit.failures`."""
    with audit.failures(db, actor(), audit.Action(name=name, subject=subject, organization_id=organization)):
        yield


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a user that the system has no name for.
        return f"uid {os.getuid()}"
