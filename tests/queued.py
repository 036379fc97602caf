"""What waits in the broker's queues, looked at from outside."""

from __future__ import annotations

import itertools
import json
from typing import Any

import redis

from shared import keys


def messages(client: redis.Redis, queue: str) -> list[dict[str, Any]]:
    """The waiting messages of a queue, in the order in which they would be taken."""
    name = f"{keys.NAMESPACE}:queue:{queue}"
    turns: Any = client.lrange(f"{name}:turns", 0, -1)
    groups: Any = [client.lrange(f"{name}:group:{group.decode()}", 0, -1) for group in turns]
    taken = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    references = [reference for reference in taken if reference is not None]
    bodies: Any = client.hmget(name, references) if references else []
    return [json.loads(body) for body in bodies]


def size(client: redis.Redis, queue: str) -> int:
    """How many messages of a queue there are, wherever they are."""
    return int(client.hlen(f"{keys.NAMESPACE}:queue:{queue}"))
