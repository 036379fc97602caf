"""The broker's Lua scripts on a real Redis: the tests that tests/unit/test_broker_scripts.py runs on fakeredis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.support.broker_scripts import BrokerScripts

pytestmark = pytest.mark.services


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        yield made


class TestOnRedis(BrokerScripts):
    """The tests of tests/support/broker_scripts.py."""
