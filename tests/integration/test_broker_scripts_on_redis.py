"""The broker's Lua scripts on a real Redis: the tests that tests/unit/test_broker_scripts.py runs on fakeredis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.support.message_scripts import MessageScripts
from tests.support.push_scripts import PushScripts
from tests.support.session_scripts import SessionScripts

pytestmark = pytest.mark.services


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        yield made


class TestMessagesOnRedis(MessageScripts):
    """The tests of tests/support/message_scripts.py."""


class TestSessionsOnRedis(SessionScripts):
    """The tests of tests/support/session_scripts.py."""


class TestPushesOnRedis(PushScripts):
    """The tests of tests/support/push_scripts.py."""
