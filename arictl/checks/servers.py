"""Settings, Redis, Postgres."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import redis

from arictl.checks.findings import Finding, is_readable, numbers, ok, warning, without_password, wrong
from shared import errors, keys
from shared.process import settings
from shared.storage import database, migrations

_REQUIRED = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY")
_OLDEST_REDIS = (6, 2)
_OLDEST_POSTGRES = 14
#: Clocks that differ by more make times hard to compare; calls do not mind.
_CLOCK_SECONDS = 2.0
#: Bounds the look for others' keys.
_SCANS = 20
_FULL = 0.8
#: Ours, and what the platform's API keeps of calls.
_OWN_KEYS = (f"{keys.NAMESPACE}:", "ari:")

#: The platform's tables, and the columns we read or write.
PLATFORM = {
    "organizations": {"id"},
    "organization_configurations": {"id", "organization_id", "key", "value", "created_at"},
    "workflows": {"id", "organization_id", "user_id", "status"},
    "workflow_definitions": {"id", "workflow_id", "is_current"},
    "workflow_runs": {
        "id", "name", "workflow_id", "definition_id", "mode", "call_type", "state", "is_completed", "storage_backend",
        "usage_info", "cost_info", "initial_context", "gathered_context", "logs", "annotations", "created_at",
    },
}  # fmt: skip


def check_settings() -> list[Finding]:
    """Each variable, as this environment and .env have it."""
    complaints = settings.complaints()
    here = "set it in the environment or in .env of this folder, the same for every process: docs/configuration.md"
    found = [ok(name, "set") for name in _REQUIRED if name not in complaints]
    found += [wrong(name, complaint, here) for name, complaint in sorted(complaints.items())]
    if not set(complaints) - set(_REQUIRED):
        found.append(ok("other settings", "readable; as set here, a process may be started with others"))
    return found


def check_redis(url: str) -> list[Finding]:
    """Whether this Redis will do."""
    if not is_readable(url):
        return [wrong("Redis", "REDIS_URL is not a URL", "write it as redis://host:6379/0, the password %-encoded")]
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=3, decode_responses=True)
    except ValueError:
        return [wrong("Redis", "REDIS_URL cannot be used", "write it as redis://host:6379/0")]
    try:
        return list(_redis(client))
    except redis.RedisError as exc:
        return [
            wrong("Redis", f"not usable: {without_password(str(exc), url)}",
                  "is it running, and are REDIS_URL's host, port and password right? Until then no call is taken up")
        ]  # fmt: skip
    finally:
        client.close()


def _redis(client: redis.Redis) -> Iterator[Finding]:
    told: dict[str, Any] = client.info()
    version = str(told.get("redis_version", ""))
    new_enough = (numbers(version) or (0, 0)) >= _OLDEST_REDIS
    yield (
        ok("Redis version", version)
        if new_enough
        else wrong("Redis version", version or "unknown", "upgrade to Redis 6.2 or newer")
    )
    policy = str(told.get("maxmemory_policy", "unknown"))
    yield (
        ok("Redis maxmemory-policy", policy)
        if policy == "noeviction"
        else wrong(
            "Redis maxmemory-policy",
            policy,
            "redis-cli config set maxmemory-policy noeviction, and in redis.conf: evicted messages are lost calls",
        )
    )
    most, used = int(told.get("maxmemory", 0)), int(told.get("used_memory", 0))
    if most and used > most * _FULL:
        yield wrong(
            "Redis memory", f"{used / most:.0%} of maxmemory used", "raise maxmemory: full, it takes no message"
        )
    strangers = _strangers(client)
    yield (
        ok("Redis database", "holds our keys only")
        if not strangers
        else warning(
            "Redis database",
            f"holds others' keys as well, such as {', '.join(strangers)}",
            "give us a database of our own (the number at the end of REDIS_URL): a FLUSHDB of theirs empties ours",
        )
    )
    seconds, micros = client.time()
    yield _clock("Redis clock", float(seconds) + float(micros) / 1e6)


def _strangers(client: redis.Redis) -> list[str]:
    """How keys that are not ours begin: what follows may be a secret, such as a session."""
    found: set[str] = set()
    cursor: int = 0
    for _ in range(_SCANS):
        cursor, names = client.scan(cursor, count=500)
        for name in map(str, names):
            if not name.startswith(_OWN_KEYS):
                head, colon, _rest = name.partition(":")
                found.add(f"{head[:16]}{colon}…" if colon or len(head) > 16 else head[:8] + "…" * (len(head) > 8))
        if cursor == 0 or len(found) > 2:
            break
    return sorted(found)[:3]


def check_postgres(url: str, db: database.Database) -> list[Finding]:
    """Whether this Postgres will do, and has what it should have."""
    if not is_readable(url):
        return [wrong("Postgres", "DATABASE_URL is not a URL", "write it as postgresql://user:password@host/database, "
                      "the password %-encoded")]  # fmt: skip
    reach = "is it running, and are DATABASE_URL's host, user, password and database right?"
    try:
        pending = migrations.pending(url)
    except errors.PipelineError as exc:
        return [wrong("Postgres", without_password(str(exc), url), reach)]
    except Exception as exc:  # noqa: BLE001 - a library's words about a URL may hold its password
        return [wrong("Postgres", f"cannot be asked: {type(exc).__name__}", reach)]
    try:
        return list(_postgres(db, pending=pending))
    except errors.PipelineError as exc:
        return [wrong("Postgres", without_password(str(exc), url), reach)]


def _postgres(db: database.Database, *, pending: bool) -> Iterator[Finding]:
    with db.connection() as connection:
        row = connection.execute(
            "SELECT current_setting('server_version') AS version, "
            "current_setting('server_version_num')::integer / 10000 AS major,"
            " extract(epoch FROM clock_timestamp())::float AS now"
        ).fetchone()
        assert row is not None
        now = _clock("Postgres clock", row["now"])
        columns = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        ).fetchall()
    yield (
        ok("Postgres version", row["version"])
        if row["major"] >= _OLDEST_POSTGRES
        else wrong("Postgres version", row["version"], f"upgrade to Postgres {_OLDEST_POSTGRES} or newer")
    )
    yield now
    yield (
        wrong("migrations", "the database is not at this release's schema", "arictl db upgrade")
        if pending
        else ok("migrations", "current")
    )
    there: dict[str, set[str]] = {}
    for one in columns:
        there.setdefault(one["table_name"], set()).add(one["column_name"])
    lacking = [f"{table}.{column}" for table, wanted in PLATFORM.items() for column in sorted(wanted)
               if column not in there.get(table, ())]  # fmt: skip
    yield (
        ok("platform's tables", f"{len(PLATFORM)} tables with the columns we use")
        if not lacking
        else wrong(
            "platform's tables",
            f"missing, or not to be seen by this user: {', '.join(lacking[:5])}"
            + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""),
            "is this the platform's database, is its layout that of February 2026, may this user read it? Where it"
            " has no table at all, arictl db upgrade creates them",
        )
    )


def _clock(what: str, theirs: float) -> Finding:
    difference = theirs - time.time()
    at = f"{datetime.fromtimestamp(theirs, UTC):%H:%M:%S} UTC"
    if abs(difference) <= _CLOCK_SECONDS:
        return ok(what, at)
    return warning(
        what,
        f"{at}, {difference:+.1f} s from this machine's",
        "let NTP set both clocks: a clock that jumps makes deadlines and heartbeats come early or late",
    )
