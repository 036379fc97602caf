"""The messages in the broker's queues, read from Redis."""

from __future__ import annotations

import itertools
import json
from typing import Any

import redis

from shared import keys


def messages(client: redis.Redis, queue: str) -> list[dict[str, Any]]:
    """Return the waiting messages of a queue, in the order in which they would be delivered."""
    name = f"{keys.NAMESPACE}:queue:{queue}"
    rotation: Any = client.lrange(f"{name}:rotation", 0, -1)
    groups: Any = [client.lrange(f"{name}:group:{group.decode()}", 0, -1) for group in rotation]
    in_order = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    message_keys = [key for key in in_order if key is not None]
    bodies: Any = client.hmget(name, message_keys) if message_keys else []
    return [json.loads(body) for body in bodies]


def size(client: redis.Redis, queue: str) -> int:
    """Return the number of messages of a queue, in whatever state."""
    return int(client.hlen(f"{keys.NAMESPACE}:queue:{queue}"))
