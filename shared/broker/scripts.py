"""The broker's Lua scripts, run by digest. `layout.lua`, with the keys and the moves, is prepended to each."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import redis

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


ENQUEUE = Script("enqueue")
POLL = Script("poll")
ACK = Script("ack")
REDELIVER = Script("redeliver")
DEREGISTER = Script("deregister")
SESSIONS = Script("sessions")
COUNT = Script("count")
FLUSH = Script("flush")
