"""The platform's Redis: whether callers can take slots there, and whether the platform's API does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import redis

from shared.broker import redis_clients
from shared.operator.checks.findings import Finding, is_readable, ok, warning, without_password, wrong
from shared.platform.dograh import layouts, platform_redis

#: How keys begin that the platform's processes write, and we do not. They have others, too.
_API_KEYS = (
    "arq:queue:health-check", "campaign", "caller_id_rotation:", "concurrent_calls:campaign:", "from_number_pool:",
    "rate_limit:", "transfer:",
)  # fmt: skip
_SCANS = 20
_FULL = 0.9
#: So many times longer than a caller would wait for it.
_PATIENCE_SECONDS = 2.0
_ALONE = (
    "callers are counted from our own calls alone: the platform's campaigns and its autoscaling do not see them, and"
    " its API cannot transfer them"
)


def check(
    url: str | None, own_url: str | None, found: layouts.Found, *, seconds: float, takes_slots: bool
) -> list[Finding]:
    """Check the platform's Redis: reachable, in time, writable, and the database that the platform's API uses.

    Args:
        own_url: Of our own Redis.
        seconds: What a caller waits for it at most.
        takes_slots: Whether callers take slots there.
    """
    if url is None:
        if not takes_slots:
            return []
        todo = "set PLATFORM_REDIS_URL to the REDIS_URL of the platform's API"
        return [warning("platform's Redis", f"PLATFORM_REDIS_URL is not set: {_ALONE}", todo)]
    if not is_readable(url):
        return [wrong("platform's Redis", "PLATFORM_REDIS_URL is not a URL", "write it as redis://host:6379/0")]
    try:
        client = redis_clients.client(url, seconds=_PATIENCE_SECONDS, decodes=True)
    except ValueError:
        return [wrong("platform's Redis", "PLATFORM_REDIS_URL cannot be used", "write it as redis://host:6379/0")]
    try:
        findings = list(_redis(client, own_url, seconds))
    except redis.RedisError as exc:
        seen = f"not usable: {without_password(str(exc), url)}. {_ALONE}"
        return [wrong("platform's Redis", seen, "is it running, and is PLATFORM_REDIS_URL right?")]
    finally:
        client.close()
    if not takes_slots:
        findings.append(
            ok("platform's slots", f"none are taken: beside the layout {found.layout} the platform counts no callers")
        )
    return findings


def _redis(client: redis.Redis, own_url: str | None, seconds: float) -> Iterator[Finding]:
    client.ping()
    asked = time.monotonic()
    client.ping()
    took = time.monotonic() - asked
    info: dict[str, Any] = client.info()
    if took > seconds:
        yield warning(
            "platform's Redis",
            f"it answers in {took:.2f} s, and a caller waits {seconds:g} s (PLATFORM_REDIS_SECONDS). {_ALONE}",
            "what slows it down? Calls are served meanwhile",
        )
    if (role := info.get("role", "unknown")) != "master":
        yield wrong(
            "platform's Redis",
            f"{role}: it is read-only. {_ALONE}",
            "let PLATFORM_REDIS_URL lead to the master",
        )
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if most and used > most * _FULL:
        yield wrong(
            "platform's Redis", f"{used / most:.0%} of its maxmemory used. Once it is full, {_ALONE}", "raise maxmemory"
        )
    if own_url is not None and _is_same(client, info, own_url):
        yield warning(
            "platform's Redis",
            "PLATFORM_REDIS_URL and REDIS_URL are one database",
            "use another database for REDIS_URL (the number at its end): a FLUSHDB of either program would empty both",
        )
    if _has_platform_keys(client):
        counted, ours = client.zcard(platform_redis.FLEET), client.hlen(platform_redis.REGISTRY)
        yield ok("platform's Redis", f"the platform's API uses it; {counted} calls are counted, {ours} of them ours")
    else:
        yield warning(
            "platform's Redis",
            "nothing of the platform's API is in this database",
            "is it the database of the API's REDIS_URL, its number included? If the API has just been set up, this will"
            " pass",
        )


def _is_same(client: redis.Redis, info: dict[str, Any], own_url: str) -> bool:
    """Return whether our own Redis is the same database; False if that cannot be told."""
    try:
        own = redis_clients.client(own_url, seconds=_PATIENCE_SECONDS, decodes=True)
    except ValueError:
        return False
    try:
        same_server = own.info("server").get("run_id") == info.get("run_id")
        return same_server and _database(own) == _database(client)
    except redis.RedisError:
        return False
    finally:
        own.close()


def _database(client: redis.Redis) -> int:
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


def _has_platform_keys(client: redis.Redis) -> bool:
    """Return whether the platform's API uses a database, by its keys: what only we write does not tell."""
    cursor: int = 0
    for _ in range(_SCANS):
        cursor, names = client.scan(cursor, count=500)
        if any(str(name).startswith(_API_KEYS) for name in names):
            return True
        if cursor == 0:
            break
    # Slots that are not ours are the API's.
    return int(client.zcard(platform_redis.FLEET)) > int(client.hlen(platform_redis.REGISTRY))
