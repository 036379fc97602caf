"""Concurrent calls as the platform's API counts them in its Redis, by its own keys and as atomically as it does."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable
from typing import Any, cast

import redis.asyncio

FLEET = "concurrent_calls_fleet"
#: A slot that was not given back is forgotten after this time, in seconds.
STALE_SECONDS = 1200
_KEY_SECONDS = 3600

#: KEYS: the organization's set, the fleet's, the scope's or "". ARGV: now, limit, slot, the fleet's name of it, the
#: scope's limit. Returns the number of slots in use, this one included; 0 when there is none left.
_ACQUIRE = f"""
local now, slot = tonumber(ARGV[1]), ARGV[3]
for at, key in ipairs(KEYS) do
    if key ~= '' and at ~= 2 then
        redis.call('ZREMRANGEBYSCORE', key, '-inf', now - {STALE_SECONDS})
        local limit = tonumber(at == 1 and ARGV[2] or ARGV[5])
        if redis.call('ZCARD', key) >= limit then return 0 end
    end
end
for at, key in ipairs(KEYS) do
    if key ~= '' then
        redis.call('ZADD', key, now, at == 2 and ARGV[4] or slot)
        redis.call('EXPIRE', key, {_KEY_SECONDS})
    end
end
return redis.call('ZCARD', KEYS[1])
"""
#: KEYS: the run's mapping. ARGV: its fields. Returns 0 when the run has one.
_BIND = f"""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
redis.call('EXPIRE', KEYS[1], {STALE_SECONDS})
return 1
"""


class Slots:
    """Takes, binds and gives back slots."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def acquire(self, organization_id: int, *, limit: int, scope: str = "", scope_limit: int = 0) -> str | None:
        """Return a new slot of an organization; None when all are in use.

        Args:
            scope: Has a limit of its own, such as `campaign:7`.
        """
        now = time.time()
        slot = f"{int(now * 1000)}_{secrets.token_hex(4)}"
        keys = [_set(organization_id), FLEET, _set(scope) if scope else ""]
        counted = await self._eval(
            _ACQUIRE, keys, now, max(1, limit), slot, f"{organization_id}:{slot}", max(1, scope_limit)
        )
        return slot if counted else None

    async def bind(self, run_id: int, organization_id: int, slot: str, *, scope: str = "") -> bool:
        """Note a run's slot, unless it has one."""
        fields = ["org_id", organization_id, "slot_id", slot, *(["scope_key", scope] if scope else [])]
        return bool(await self._eval(_BIND, [mapping(run_id)], *fields))

    async def release(self, run_id: int) -> bool:
        """Give back the slot that a run is bound to; False when it has none."""
        found = await cast(Awaitable[dict[str, str]], self._client.hgetall(mapping(run_id)))
        if "org_id" not in found or "slot_id" not in found:
            return False
        await self.give_back(int(found["org_id"]), found["slot_id"], scope=found.get("scope_key", ""))
        await self._client.delete(mapping(run_id))
        return True

    async def give_back(self, organization_id: int, slot: str, *, scope: str = "") -> None:
        """Give back a slot that no run is bound to."""
        await self._client.zrem(_set(organization_id), slot)
        await self._client.zrem(FLEET, f"{organization_id}:{slot}")
        if scope:
            await self._client.zrem(_set(scope), slot)

    async def fleet(self) -> int:
        """Return the number of calls of all organizations: what the platform is scaled by."""
        return int(await self._client.zcount(FLEET, time.time() - STALE_SECONDS, "+inf"))

    async def _eval(self, script: str, keys: list[str], *values: Any) -> int:
        made = self._client.eval(script, len(keys), *keys, *(str(value) for value in values))
        return int(await cast(Awaitable[int], made))


def mapping(run_id: int) -> str:
    """Return the key that says which slot a run has."""
    return f"workflow_slot_mapping:{run_id}"


def _set(scope: int | str) -> str:
    return f"concurrent_calls:{scope}"
