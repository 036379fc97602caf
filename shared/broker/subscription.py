"""The subscription of a session to its channel.

redis-py's own takes eight system calls for a message, this one two. Each lets go of the interpreter, which another
thread may take.
"""

from __future__ import annotations

import time
from typing import Any

import redis

#: How long a read waits.
SECONDS = 1.0
#: A subscription that hears nothing for so long asks for a sign of life, so that no device on the way forgets it.
_PING_SECONDS = 15.0


class Subscription:
    """What is published on one channel, from now on. Of one thread at a time; each method raises redis.RedisError.

    Args:
        pool: How to connect. The connection is none of the pool's: nothing else is asked on it.
    """

    def __init__(self, pool: redis.ConnectionPool, channel: str) -> None:
        # With the earlier protocol, which answers a subscriber in the order in which it speaks.
        options = pool.connection_kwargs | {"socket_timeout": SECONDS, "protocol": 2}
        self._connection: Any = pool.connection_class(**options)
        self._connection.send_command("SUBSCRIBE", channel)
        self._ping_at = time.monotonic() + _PING_SECONDS

    def read(self) -> bytes | int | None:
        """Wait for what is published next and return it; None after a second without.

        The first is a number: Redis has confirmed the subscription.
        """
        try:
            # The connection stays open when there is nothing to read.
            reply = self._connection.read_response(disconnect_on_error=False)
        except redis.TimeoutError:
            if time.monotonic() >= self._ping_at:
                self._connection.send_command("PING", check_health=False)
                self._ping_at = time.monotonic() + _PING_SECONDS
            return None
        if not isinstance(reply, list):
            # A connection that is fit no more is made anew for the PING (`redis_clients`), and subscribed to nothing.
            raise redis.ConnectionError("no longer subscribed")
        self._ping_at = time.monotonic() + _PING_SECONDS
        kind, *_, published = reply
        return None if kind == b"pong" else published

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
