"""Settings, Redis and Postgres."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import redis

from shared import errors, keys
from shared.broker import redis_clients
from shared.operator.checks.findings import Finding, is_readable, numbers, ok, warning, without_password, wrong
from shared.platform.dograh import tables
from shared.process import settings
from shared.storage import database, migrations

_REQUIRED = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY")
_OLDEST_REDIS = (6, 2)
_OLDEST_POSTGRES = 14
#: A larger difference makes times hard to compare; calls are not affected.
_CLOCK_SECONDS = 2.0
#: Bounds the search for foreign keys.
_SCANS = 20
_FULL = 0.8
#: Our keys, and those of the platform's API for calls.
_OWN_KEYS = (f"{keys.NAMESPACE}:", "ari:")


def check_settings() -> list[Finding]:
    """Check each variable in this environment and .env."""
    complaints = settings.complaints()
    todo = "set it in the environment or in .env of this folder, the same for every process: docs/configuration.md"
    found = [ok(name, "set") for name in _REQUIRED if name not in complaints]
    found += [wrong(name, complaint, todo) for name, complaint in sorted(complaints.items())]
    if not set(complaints) - set(_REQUIRED):
        found.append(ok("other settings", "valid here; a process may be started with other values"))
    return found


def check_redis(url: str) -> list[Finding]:
    """Check version, policy, memory, database and clock of Redis."""
    if not is_readable(url):
        return [wrong("Redis", "REDIS_URL is not a URL", "write it as redis://host:6379/0, the password %-encoded")]
    try:
        client = redis_clients.client(url, decodes=True)
    except ValueError:
        return [wrong("Redis", "REDIS_URL cannot be used", "write it as redis://host:6379/0")]
    try:
        return list(_redis(client))
    except redis.RedisError as exc:
        return [
            wrong("Redis", f"not usable: {without_password(str(exc), url)}",
                  "is it running, and are host, port and password in REDIS_URL right? Until then no call is served")
        ]  # fmt: skip
    finally:
        client.close()


def _redis(client: redis.Redis) -> Iterator[Finding]:
    info: dict[str, Any] = client.info()
    version = str(info.get("redis_version", ""))
    new_enough = (numbers(version) or (0, 0)) >= _OLDEST_REDIS
    yield (
        ok("Redis version", version)
        if new_enough
        else wrong("Redis version", version or "unknown", "upgrade to Redis 6.2 or newer")
    )
    if (role := info.get("role", "unknown")) != "master":
        yield wrong(
            "Redis role",
            f"{role}: it refuses every message",
            "let REDIS_URL lead to the master: after a fail-over, is its address the new one's?",
        )
    policy = str(info.get("maxmemory_policy", "unknown"))
    yield (
        ok("Redis maxmemory-policy", policy)
        if policy == "noeviction"
        else wrong(
            "Redis maxmemory-policy",
            policy,
            "set it to noeviction (redis-cli config set, and in redis.conf): an evicted message is a lost call",
        )
    )
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if most and used > most * _FULL:
        yield wrong(
            "Redis memory", f"{used / most:.0%} of maxmemory used", "raise maxmemory: a full Redis refuses messages"
        )
    foreign = _foreign_keys(client)
    yield (
        ok("Redis database", "contains our keys only")
        if not foreign
        else warning(
            "Redis database",
            f"contains foreign keys, such as {', '.join(foreign)}",
            "use a separate database (the number at the end of REDIS_URL): another program's FLUSHDB would empty ours",
        )
    )
    seconds, micros = client.time()
    yield _clock("Redis clock", float(seconds) + float(micros) / 1e6)


def _foreign_keys(client: redis.Redis) -> list[str]:
    """Return how foreign keys begin: the rest may be a secret, such as a session."""
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
    """Check version, clock, schema and the platform's tables of Postgres."""
    if not is_readable(url):
        return [wrong("Postgres", "DATABASE_URL is not a URL", "write it as postgresql://user:password@host/database, "
                      "the password %-encoded")]  # fmt: skip
    reach = "is it running, and are host, user, password and database in DATABASE_URL right?"
    try:
        pending = migrations.pending(url)
    except errors.PipelineError as exc:
        return [wrong("Postgres", without_password(str(exc), url), reach)]
    except Exception as exc:  # noqa: BLE001 - a library's message about a URL may contain its password
        return [wrong("Postgres", f"not usable: {type(exc).__name__}", reach)]
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
        in_force = {
            one["name"]: one["setting"]
            for one in connection.execute(
                "SELECT lower(name) AS name, setting FROM pg_settings WHERE lower(name) = ANY(%s)", [list(db.settings)]
            ).fetchall()
        }
        is_direct = connection.is_direct
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
    yield from _settings(db, in_force, is_direct=is_direct)
    yield (
        wrong("migrations", "the schema of the database is not this release's", "run arictl db upgrade")
        if pending
        else ok("migrations", "current")
    )
    present: dict[str, set[str]] = {}
    for one in columns:
        present.setdefault(one["table_name"], set()).add(one["column_name"])
    used = tables.of(newest="telephony_configurations" in present)
    missing = [f"{table}.{column}" for table, wanted in used.items() for column in sorted(wanted)
               if column not in present.get(table, ())]  # fmt: skip
    yield (
        ok("platform's tables", f"{len(used)} tables with the columns we use")
        if not missing
        else wrong(
            "platform's tables",
            f"missing, or not visible to this user: {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
            "is this the platform's database, is its layout one of those served, may this user read it? If it has"
            " no table at all, arictl db upgrade creates them",
        )
    )


def _settings(db: database.Database, in_force: Mapping[str, str], *, is_direct: bool) -> Iterator[Finding]:
    """Compare the settings that a connection has with those it asked for."""
    lost = [
        f"{name} is {in_force.get(name, 'unknown')} and not {value}"
        for name, value in db.settings.items()
        if in_force.get(name) != value
    ]
    yield (
        ok(
            "Postgres settings",
            f"in force: statement_timeout {in_force['statement_timeout']} ms and {len(in_force) - 1} more",
        )
        if not lost
        else wrong(
            "Postgres settings",
            ", ".join(lost),
            "what lies between here and Postgres? See docs/operations.md, A pooler",
        )
    )
    if not is_direct:
        prepared = "it keeps prepared statements" if db.prepares else "it loses prepared statements, so none are used"
        yield ok("pooler", f"between here and Postgres: settings travel with each transaction; {prepared}")


def _clock(what: str, theirs: float) -> Finding:
    difference = theirs - time.time()
    at = f"{datetime.fromtimestamp(theirs, UTC):%H:%M:%S} UTC"
    if abs(difference) <= _CLOCK_SECONDS:
        return ok(what, at)
    return warning(
        what,
        f"{at}, {difference:+.1f} s from this machine's",
        "synchronise both clocks with NTP: a clock that jumps makes deadlines and heartbeats early or late",
    )
