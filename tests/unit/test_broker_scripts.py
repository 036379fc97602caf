"""The broker's Lua scripts on fakeredis, which runs them in this process.

The same tests run on a real Redis in tests/integration/test_broker_scripts_on_redis.py. What fakeredis cannot do is
tested on a real Redis only:

- wake-ups between processes: pub/sub and its blocking reads work, but within one process: test_broker_push.py;
- rejecting writes at `maxmemory`, a setting it accepts and ignores: test_broker_push.py, its last test;
- a clock of its own: TIME is this process's clock, so it never differs from the worker's: test_broker_outages.py;
- connections that break, lost replies, a server that stalls or restarts empty: test_broker_outages.py;
- a fail-over, and a connection that is half open: test_broker_reconnects.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest
import redis

from tests.support.message_scripts import MessageScripts
from tests.support.push_scripts import PushScripts
from tests.support.session_scripts import SessionScripts


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with fakeredis.FakeRedis(server=fakeredis.FakeServer()) as made:
        yield made


class TestMessagesOnFakeredis(MessageScripts):
    """The tests of tests/support/message_scripts.py."""


class TestSessionsOnFakeredis(SessionScripts):
    """The tests of tests/support/session_scripts.py."""


class TestPushesOnFakeredis(PushScripts):
    """The tests of tests/support/push_scripts.py."""

    #: fakeredis has handed out what a script publishes before the script returns.
    SILENCE_SECONDS = 0.0
