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


ENQUEUE = Script("enqueue")
POLL = Script("poll")
ACK = Script("ack")
REDELIVER = Script("redeliver")
DEREGISTER = Script("deregister")
COUNT = Script("count")
FLUSH = Script("flush")
