"""Fixtures that several files of this folder share: calls on a real Postgres, the scheduler, the listener.

Each imports what it needs when it is used: the tests of the others do not wait for it.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from devstack import servers
    from shared.call.calls import Call
    from shared.storage import database
    from shared.storage.call_writer import CallWriter
    from shared.storage.postgres_calls import PostgresCalls
    from tests.support import listener_harness
    from tests.support.flows import CommandQueue
    from tests.support.scheduler_harness import PlayedListeners, SchedulerHarness

# ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    """A database with the connections of `call_rows.CONNECTIONS`."""
    from shared.storage import database
    from tests.support import call_rows

    made = database.Database(database_url, size=10)
    made.open()
    with made.connection() as connection:
        for statement in call_rows.CONNECTIONS:
            connection.execute(statement)
    yield made
    made.close()


@pytest.fixture
def store(db: database.Database) -> PostgresCalls:
    """The calls in that database, or in the one of the file's own `db`."""
    from shared.storage.postgres_calls import PostgresCalls

    return PostgresCalls(db, who="test", prefix="aip-")


@pytest.fixture
def queue() -> CommandQueue:
    """Where the commands go."""
    from tests.support.flows import CommandQueue

    return CommandQueue()


@pytest.fixture
def writer(store: PostgresCalls, queue: CommandQueue) -> CallWriter:
    """Writes calls, with the default limits."""
    from shared.call.limits import Limits
    from shared.storage.call_writer import CallWriter

    return CallWriter(store, queue, Limits(), who="test")


@pytest.fixture
def make(store: PostgresCalls) -> Callable[..., Call]:
    """Write a call."""
    from tests.support import call_rows

    return partial(call_rows.make_call, store)


# ── the scheduler ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def harness(database_url: str, redis_url: str) -> Iterator[SchedulerHarness]:
    """A scheduler that a test drives."""
    from tests.support import scheduler_harness

    with scheduler_harness.running(database_url, redis_url) as made:
        yield made


@pytest.fixture
def listeners(harness: SchedulerHarness) -> PlayedListeners:
    """The listeners that it sees."""
    return harness.listeners


# ── the listener ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scheduler(redis_url: str) -> Iterator[listener_harness.Scheduler]:
    """The scheduler's side of an empty Redis."""
    from tests.support import listener_harness

    made = listener_harness.Scheduler(redis_url)
    with contextlib.closing(made.redis):
        yield made


@pytest.fixture
def killable_redis(stack_folder: Path) -> Iterator[servers.Redis]:
    """A Redis of this test only, to be killed."""
    from devstack import servers

    with servers.Redis(stack_folder / f"redis-{uuid.uuid4().hex[:8]}") as server:
        yield server
