"""The broker's Lua scripts, run by digest. `layout.lua`, with the keys and the moves, is prepended to each."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import hiredis
import redis
import redis.asyncio

_FOLDER = Path(__file__).parent


class Script:
    """One Lua script."""

    def __init__(self, name: str) -> None:
        self.text = "\n".join((_FOLDER / f"{part}.lua").read_text() for part in ("layout", name))
        # Redis's name for the script; no security depends on it.
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, namespace: str, *arguments: str | bytes | int) -> Any:
        """Run the script. A Redis that was restarted does not know the digest and gets the text."""
        try:
            return client.evalsha(self.digest, 1, namespace, *arguments)
        except redis.exceptions.NoScriptError:
            return client.eval(self.text, 1, namespace, *arguments)


class Connection:
    """One connection, for the requests of one thread at a time: they need no pool and its locks.

    It connects when first used, and again after a failure or, as the client's other connections, a refusal.
    """

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool = pool
        self._connection: Any = None

    def run(self, script: Script, namespace: str, *arguments: str | bytes | int) -> Any:
        """Run a script, as `Script.run` does. Raises redis.RedisError."""
        if self._connection is None:
            self._connection = self._pool.get_connection()
        try:
            return self._request("EVALSHA", script.digest, 1, namespace, *arguments)
        except redis.exceptions.NoScriptError:
            return self._request("EVAL", script.text, 1, namespace, *arguments)

    def close(self) -> None:
        """Return the connection to the pool."""
        if self._connection is not None:
            self._pool.release(self._connection)
            self._connection = None

    def _request(self, *command: str | bytes | int) -> Any:
        self._connection.send_command(*command)
        return self._connection.read_response()


class AsyncConnection:
    """As Connection, for asyncio, for the requests of one task at a time, which bounds them.

    A request of redis-py's client takes twice the processor time.
    """

    def __init__(self, pool: redis.asyncio.ConnectionPool) -> None:
        self._pool = pool
        self._connection: Any = None

    async def run(self, script: Script, namespace: str, *arguments: str | bytes | int) -> Any:
        """Run a script, twice if the server has closed the connection: one that may be repeated.

        Raises redis.RedisError.
        """
        if self._connection is None:
            self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py's
            # Bounded by the library, each write would be a task of its own.
            self._connection.socket_timeout = None
        try:
            return await self._run(script, namespace, *arguments)
        except redis.exceptions.ConnectionError:
            return await self._run(script, namespace, *arguments)

    async def close(self) -> None:
        """Return the connection to the pool."""
        if self._connection is not None:
            await self._pool.release(self._connection)
            self._connection = None

    async def _run(self, script: Script, namespace: str, *arguments: str | bytes | int) -> Any:
        try:
            return await self._request("EVALSHA", script.digest, 1, namespace, *arguments)
        except redis.exceptions.NoScriptError:
            return await self._request("EVAL", script.text, 1, namespace, *arguments)

    async def _request(self, *command: str | bytes | int) -> Any:
        connection = self._connection
        try:
            # The library's own packing, in Python, takes six times as long.
            await connection.send_packed_command(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub says one
            return await connection.read_response()
        except redis.exceptions.ResponseError:
            raise
        except BaseException:
            # The answer may be still to come: it would be taken for that of the next request.
            await connection.disconnect(nowait=True)
            raise


ENQUEUE = Script("enqueue")
POLL = Script("poll")
ACK = Script("ack")
REDELIVER = Script("redeliver")
DEREGISTER = Script("deregister")
SESSIONS = Script("sessions")
COUNT = Script("count")
OLDEST = Script("oldest")
FLUSH = Script("flush")
RETRY_LETTER = Script("retry_letter")
