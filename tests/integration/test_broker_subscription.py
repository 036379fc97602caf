"""The subscription of a worker's session, on a real Redis."""

from __future__ import annotations

import contextlib

import pytest
import redis

from shared import queues
from shared.broker import subscription

pytestmark = pytest.mark.services


def test_a_silent_subscription_asks_for_a_sign_of_life(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "SECONDS", 0.05)
    monkeypatch.setattr(subscription, "_PING_SECONDS", 0.0)
    with contextlib.closing(queues.client(redis_url)) as client:
        made = subscription.Subscription(client.connection_pool, "channel")
        assert made.read() == 1
        # Nothing, and then the answer to the PING.
        assert (made.read(), made.read()) == (None, None)
        assert client.publish("channel", "it") == 1
        assert made.read() == b"it"
        made.close()


def test_a_subscription_whose_connection_was_made_anew_says_so(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its server is master no more: it would hear nothing for ever."""
    monkeypatch.setattr(subscription, "SECONDS", 0.05)
    monkeypatch.setattr(subscription, "_PING_SECONDS", 0.0)
    with contextlib.closing(queues.client(redis_url)) as client:
        made = subscription.Subscription(client.connection_pool, "channel")
        assert made.read() == 1
        client.connection_pool.connection_class.fitness.renew()
        assert made.read() is None
        with pytest.raises(redis.ConnectionError):
            made.read()
        made.close()
