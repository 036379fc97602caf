"""The scheduler's keys in Redis, on a real one: the same tests as in `tests/unit/test_scheduler_listeners.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from shared import queues
from tests.support.scheduler_listeners import *  # noqa: F403 - the tests

pytestmark = pytest.mark.services


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(queues.client(redis_url)) as made:
        yield made
