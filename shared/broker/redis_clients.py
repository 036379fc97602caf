"""Clients of Redis: every command bounded in time and tried once, and no connection kept that may not serve.

After a fail-over the old server may still answer, with refusals. So a refusal that tells of the server, and a
connection that is lost, close every connection of the client that was made before; so many errors in a row close the
one that has them. They are closed when they are used next, and lead to the new server then. A subscription is never
used to ask: its owner makes it anew (`session_client`).
"""

from __future__ import annotations

import math
import re
import time
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.connection
import redis.asyncio.retry
import redis.backoff
import redis.connection
import redis.exceptions
import redis.retry

#: The bounds of connecting and of each answer.
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 3.0
#: A connection that was idle for longer is tried by a PING before it is used.
_IDLE_SECONDS = 15
#: After so many errors in a row the connection is to blame, whatever they were.
_MOST_FAILURES = 5
#: What a server says that may not serve; the error of a script has it in its text.
_REFUSALS = re.compile(
    r"\b(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|UNBLOCKED|NOREPLICAS|MISCONF|NOAUTH|MOVED|ASK|TRYAGAIN)\b"
)


def client(url: str, *, seconds: float | None = None, decodes: bool = False) -> redis.Redis:
    """Return a client; it connects when first used.

    Args:
        seconds: Bounds connecting and each answer, instead of the usual.
        decodes: Whether answers are text instead of bytes.

    Raises:
        ValueError: The URL is unusable. The text may show it.
    """
    made = redis.Redis.from_url(
        url,
        socket_connect_timeout=seconds or CONNECT_SECONDS,
        socket_timeout=seconds or ANSWER_SECONDS,
        health_check_interval=_IDLE_SECONDS,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        decode_responses=decodes,
    )
    pool = made.connection_pool
    pool.connection_class = type("FitConnection", (_Fit, pool.connection_class), {"fitness": Fitness()})
    return made


def async_client(url: str) -> redis.asyncio.Redis:
    """Return a client for asyncio, as `client` does."""
    made = redis.asyncio.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0),
    )
    pool = made.connection_pool
    pool.connection_class = type("AsyncFitConnection", (_AsyncFit, pool.connection_class), {"fitness": Fitness()})
    return made


class Fitness:
    """What the connections of one client know of their server. Times are of the monotonic clock."""

    def __init__(self) -> None:
        self._renewed_at = -math.inf

    def is_fit(self, made_at: float) -> bool:
        """Return whether a connection made then may still be used."""
        return made_at > self._renewed_at

    def renew(self) -> None:
        """Have every connection that was made until now closed before it is used again."""
        self._renewed_at = time.monotonic()


class _Judged:
    """The part of both kinds of connection: when it was made, and what its errors mean."""

    #: Of the client.
    fitness: Fitness
    #: While it is being made it is fit, whatever the server says to the greeting.
    _made_at = math.inf
    _failures = 0

    def _is_unfit(self) -> bool:
        return not self.fitness.is_fit(self._made_at)

    def _judge(self, error: redis.RedisError) -> None:
        if self._made_at == math.inf or isinstance(error, redis.exceptions.NoScriptError):
            return
        self._failures += 1
        if not isinstance(error, redis.exceptions.ResponseError) or _REFUSALS.search(_text(error)):
            self.fitness.renew()
        elif self._failures >= _MOST_FAILURES:
            self._made_at = -math.inf


class _Fit(_Judged, redis.connection.AbstractConnection):
    """A connection that is closed before it is used again once it, or its server, may not serve."""

    def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        if self.is_connected:
            return
        began, self._made_at, self._failures = time.monotonic(), math.inf, 0
        super().connect_check_health(*args, **kwargs)
        self._made_at = began

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        if self._is_unfit():
            self.disconnect()  # type: ignore[no-untyped-call]  # the library's
        super().send_packed_command(*args, **kwargs)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = super().read_response(*args, **kwargs)
        except redis.RedisError as exc:
            # A subscription waits for what may not come.
            if kwargs.get("disconnect_on_error", True):
                self._judge(exc)
            raise
        self._failures = 0
        return response


class _AsyncFit(_Judged, redis.asyncio.connection.AbstractConnection):
    """As _Fit."""

    async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        if self.is_connected:
            return
        began, self._made_at, self._failures = time.monotonic(), math.inf, 0
        await super().connect_check_health(*args, **kwargs)
        self._made_at = began

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        if self._is_unfit():
            await self.disconnect(nowait=True)
        await super().send_packed_command(*args, **kwargs)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = await super().read_response(*args, **kwargs)
        except redis.RedisError as exc:
            self._judge(exc)
            raise
        self._failures = 0
        return response


def _text(error: redis.RedisError) -> str:
    # The library takes a code that it knows off the text.
    return f"{getattr(error, 'status_code', '')} {error}"
