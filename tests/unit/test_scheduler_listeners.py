"""The scheduler's keys in Redis, on fakeredis: see `tests/support/scheduler_listeners.py` for what it cannot do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fakeredis
import pytest
import redis

from tests.support.scheduler_listeners import *  # noqa: F403 - the tests


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    # A server of its own: without one, all clients share their data.
    with contextlib.closing(fakeredis.FakeRedis(server=fakeredis.FakeServer())) as made:
        yield made
