"""Fixtures of the listener's tests; the other tests of this folder do not wait for their imports."""

# ruff: noqa: PLC0415

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from devstack import servers
    from tests.support import listener_harness


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
