"""A worker that freezes inside an admission, on a real Postgres: its organization's lock is free again soon."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import errors
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls

pytestmark = pytest.mark.services

ORGANIZATION = 3
#: Stops itself with the lock, as a process that is frozen there; then goes on.
FROZEN = f"""
import os, signal, sys
from shared import errors
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls

db = database.Database(sys.argv[1], size=1, name="frozen")
db.open()
store = PostgresCalls(db, who="frozen", prefix="aip-")
try:
    with store.transaction() as connection:
        store.lock_organization(connection, {ORGANIZATION})
        store.slots_used(connection, {ORGANIZATION})
        os.kill(os.getpid(), signal.SIGSTOP)
        store.slots_used(connection, {ORGANIZATION})
except errors.TransientError as exc:
    print("failed:", exc)
with store.transaction() as connection:
    store.lock_organization(connection, {ORGANIZATION})
    store.slots_used(connection, {ORGANIZATION})
print("goes on")
"""


@contextlib.contextmanager
def frozen(database_url: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that freezes with the organization's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", FROZEN, database_url],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=20)


def test_a_worker_that_freezes_inside_an_admission_keeps_its_organization_s_lock_for_three_seconds(
    db: database.Database, database_url: str
) -> None:
    store = PostgresCalls(db, who="test", prefix="aip-")
    with frozen(database_url) as process:
        froze = time.monotonic()
        refused = 0
        while True:
            try:
                with store.transaction() as connection:
                    store.lock_organization(connection, ORGANIZATION)
                    store.slots_used(connection, ORGANIZATION)
                break
            except errors.TransientError:
                refused += 1
        assert refused, "the lock was held"
        # As documented, and a second for a busy machine.
        assert time.monotonic() - froze < database.IDLE_SECONDS + 1
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=20)
    first, last = said.splitlines()
    assert first.startswith("failed: ")
    assert last == "goes on", "on a new connection"
