"""The listener's store and heartbeats on fakeredis: the fast half of the contracts that a real Redis keeps as well.

tests/support/redis_store_contract.py lists what fakeredis cannot do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import fakeredis
import pytest

from tests.support.heartbeats_contract import HeartbeatsContract
from tests.support.redis_store_contract import RedisClients, RedisStoreContract


@pytest.fixture
def redis_clients() -> Iterator[RedisClients]:
    """Clients of a fake Redis; of another that does not answer."""
    server, stopped = fakeredis.FakeServer(), fakeredis.FakeServer()
    stopped.connected = False
    client = fakeredis.FakeRedis(server=server)
    yield RedisClients(
        client=client,
        connect=functools.partial(fakeredis.FakeAsyncRedis, server=server),
        connect_nowhere=functools.partial(fakeredis.FakeAsyncRedis, server=stopped),
    )
    client.close()


class TestRedisStore(RedisStoreContract):
    """On fakeredis."""


class TestHeartbeats(HeartbeatsContract):
    """On fakeredis."""
