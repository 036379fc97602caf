"""Our Lua scripts, each run by its digest. `layout.lua`, with the keys and the moves, stands before every one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import redis

_FOLDER = Path(__file__).parent


class Script:
    """One script."""

    def __init__(self, name: str) -> None:
        self.text = "\n".join((_FOLDER / f"{part}.lua").read_text() for part in ("layout", name))
        # Redis's name for it, nothing else.
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, namespace: str, *arguments: str | bytes | int) -> Any:
        """Runs it. A Redis that was restarted does not know it yet and is given the text."""
        try:
            return client.evalsha(self.digest, 1, namespace, *arguments)
        except redis.exceptions.NoScriptError:
            return client.eval(self.text, 1, namespace, *arguments)


ENQUEUE = Script("enqueue")
EXCHANGE = Script("exchange")
RECALL = Script("recall")
LEAVE = Script("leave")
COUNT = Script("count")
FLUSH = Script("flush")
