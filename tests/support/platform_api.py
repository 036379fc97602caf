"""A stand-in of the platform's API, as far as it uses its Redis: its count of calls, and its transfers.

Its script and its names are kept apart from ours.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis

#: After this a slot counts no more, in seconds.
STALE_SECONDS = 1200

#: KEYS: the organization's slots, the fleet's. ARGV: now, limit, slot, the fleet's member.
_ACQUIRE = """
local stale = tonumber(ARGV[1]) - 1200
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, stale)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return false end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[3])
redis.call('EXPIRE', KEYS[1], 3600)
redis.call('ZREMRANGEBYSCORE', KEYS[2], 0, stale)
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], 3600)
return ARGV[3]
"""


@dataclass(frozen=True, kw_only=True)
class PlatformApi:
    """Takes and releases slots as the API does for its campaigns and test calls."""

    #: Of text; its type is of bytes and text.
    client: Any

    def acquire(self, organization_id: int, *, limit: int, scope: str | None = None) -> str | None:
        """Take a slot; return its id, or None if as many as `limit` are used."""
        now = time.time()
        slot = f"{int(now * 1000)}_{uuid.uuid4().hex[:8]}"
        keys = [f"concurrent_calls:{organization_id}", "concurrent_calls_fleet"]
        taken = self.client.eval(_ACQUIRE, 2, *keys, now, limit, slot, f"{organization_id}:{slot}")
        if taken is not None and scope is not None:
            self.client.zadd(f"concurrent_calls:{scope}", {slot: now})
        return slot if taken is not None else None

    def bind(self, run_id: int, organization_id: int, slot: str, *, scope: str | None = None) -> bool:
        """Bind a slot to a run, unless the run has one."""
        key = f"workflow_slot_mapping:{run_id}"
        if self.client.exists(key):
            return False
        mapping = {"org_id": organization_id, "slot_id": slot} | ({"scope_key": scope} if scope else {})
        self.client.hset(key, mapping=mapping)
        self.client.expire(key, STALE_SECONDS)
        return True

    def release(self, run_id: int) -> bool:
        """Release what is bound to a run, as its pipeline does at its end."""
        bound = self.client.hgetall(f"workflow_slot_mapping:{run_id}")
        if not bound:
            return False
        organization, slot = bound["org_id"], bound["slot_id"]
        removed = self.client.zrem(f"concurrent_calls:{organization}", slot)
        self.client.zrem("concurrent_calls_fleet", f"{organization}:{slot}")
        if scope := bound.get("scope_key"):
            self.client.zrem(f"concurrent_calls:{scope}", slot)
        self.client.delete(f"workflow_slot_mapping:{run_id}")
        return bool(removed)

    def release_slot(self, organization_id: int, slot: str) -> None:
        """Release a slot that was bound to no run."""
        self.client.zrem(f"concurrent_calls:{organization_id}", slot)
        self.client.zrem("concurrent_calls_fleet", f"{organization_id}:{slot}")

    def counted(self, organization_id: int) -> int:
        """Return how many calls of an organization are counted."""
        return int(self.client.zcard(f"concurrent_calls:{organization_id}"))

    def fleet(self) -> int:
        """Return how many calls of all organizations are counted, as the autoscaling reads it."""
        return int(self.client.zcount("concurrent_calls_fleet", time.time() - STALE_SECONDS, "+inf"))

    def run_of(self, channel_id: str) -> int | None:
        """Return the run of a channel, as a transfer looks it up."""
        found = self.client.get(f"ari:channel:{channel_id}")
        return int(found) if found is not None else None

    # ── transfers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_transfer(self, transfer_id: str, caller_id: str, run_id: int, *, destination_id: str | None) -> None:
        """Write a transfer down: before its destination is dialled, and once more with its channel."""
        context = {
            "transfer_id": transfer_id, "call_sid": destination_id, "target_number": "+4930123", "tool_uuid": "tool",
            "original_call_sid": caller_id, "conference_name": f"transfer-{caller_id}",
            "initiated_at": time.time(), "workflow_run_id": run_id, "conference_id": None,
        }  # fmt: skip
        if destination_id is not None:
            self.client.set(f"ari:transfer_channel:{destination_id}", transfer_id, ex=300)
        self.client.set(f"transfer:context:{transfer_id}", json.dumps(context), ex=300)
        self.client.set(f"transfer:by_call_sid:{caller_id}", transfer_id, ex=300)

    def end_transfer(self, transfer_id: str, caller_id: str, destination_id: str) -> None:
        """Remove what was written down, as after a swap."""
        self.client.delete(
            f"transfer:context:{transfer_id}", f"transfer:by_call_sid:{caller_id}",
            f"ari:transfer_channel:{destination_id}",
        )  # fmt: skip

    @contextlib.contextmanager
    def listening(self, transfer_id: str) -> Iterator[Heard]:
        """Wait for news of a transfer meanwhile, as the API does after its request to originate."""
        with self.client.pubsub(ignore_subscribe_messages=True) as waiting:
            waiting.subscribe(f"transfer:events:{transfer_id}")
            heard = Heard()
            stop = threading.Event()

            def listen() -> None:
                while not stop.is_set():
                    message: Any = waiting.get_message(timeout=0.05)
                    if message is not None:
                        heard.add(json.loads(message["data"]))

            thread = threading.Thread(target=listen, daemon=True)
            thread.start()
            try:
                yield heard
            finally:
                stop.set()
                thread.join()


class Heard:
    """The news that have come."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self._came = threading.Event()

    def add(self, news: dict[str, Any]) -> None:
        """Note one."""
        self.all.append(news)
        self._came.set()

    def first(self, seconds: float = 5.0) -> dict[str, Any]:
        """Wait for the first one, which is all that the API acts on."""
        assert self._came.wait(seconds), "no news came"
        return self.all[0]


def connected(url: str) -> contextlib.closing[redis.Redis]:
    """Open a client of the API's Redis, as the API opens it."""
    return contextlib.closing(redis.Redis.from_url(url, decode_responses=True))
