"""The processes: a leading scheduler, listeners, workers, and queues that move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from shared import keys, messages
from shared.broker import redis_clients, scripts, session
from shared.call import ids
from shared.operator.checks.findings import Finding, ok, warning, wrong
from shared.storage import database, id_prefixes

#: More waiting messages than this are more than a moment's work.
_WAITING = 100
#: No message takes a worker so long: the bound of a resync is a third of it.
_OLD_WORK_SECONDS = 60
#: A call that is past its deadline for longer than this is missed by the sweep.
_OVERDUE_SECONDS = 10
#: Only this many of the newest rows of the timeline are read, which has no index for it.
_TIMELINE_ROWS = 200_000

_DEAD = f"""
SELECT count(*) AS number, max(at) AS last, mode() WITHIN GROUP (ORDER BY name) AS usual FROM ari.timeline
WHERE kind = 'dead-letter' AND at > clock_timestamp() - interval '1 day'
  AND id > (SELECT coalesce(max(id), 0) FROM ari.timeline) - {_TIMELINE_ROWS}
"""  # noqa: S608 - built from a constant

_OVERDUE = f"""
SELECT count(*) AS number, min(deadline_at) AS since, (array_agg(left(call_id::text, 8) ORDER BY deadline_at))[1] AS one
FROM ari.calls WHERE state <> 'ended' AND deadline_at < clock_timestamp() - interval '{_OVERDUE_SECONDS} seconds'
  AND (claim_until IS NULL OR claim_until <= clock_timestamp())
"""  # noqa: S608 - built from a constant


def check_id_prefix(db: database.Database, override: str | None) -> list[Finding]:
    """Check whether the ids that the workers make are this installation's alone."""
    what = "id prefix"
    if override is not None:
        return [ok(what, f"{override}, by ID_PREFIX")]
    prefixes = id_prefixes.IdPrefixes(db, override=None).drawn()
    if not prefixes:
        return [ok(what, "none yet: the first worker that starts draws one")]
    newest = prefixes[0]
    if not newest.is_here:
        seen = f"{newest.prefix} was drawn in another database, of which this one is a copy"
        todo = (
            "two installations with one prefix remove each other's bridges on a common Asterisk. For a copy: arictl"
            " installation draw; if the other database is gone: arictl installation keep"
        )
        return [warning(what, seen, todo)]
    if newest.prefix == ids.SHARED_PREFIX:
        seen = f"{newest.prefix}, as every installation had it that is older than its own prefix"
        return [warning(what, seen, "if another installation uses an Asterisk of ours: arictl installation draw")]
    return [ok(what, newest.prefix)]


def check_scheduler(db: database.Database) -> list[Finding]:
    """Check whether a scheduler leads."""
    with db.connection() as connection:
        row = connection.execute(
            "SELECT holder, term, expires_at, expires_at > clock_timestamp() AS leads FROM ari.leases"
            " WHERE name = 'scheduler'"
        ).fetchone()
    start = "start one: python -m scheduler.main. Until then no configuration is read and no overdue call is swept"
    if row is None:
        return [wrong("scheduler", "none has ever led", start)]
    if not row["leads"]:
        return [wrong("scheduler", f"none leads since {row['expires_at']:%m-%d %H:%M:%S}", start)]
    return [ok("scheduler", f"{row['holder']} leads, term {row['term']}")]


def check_calls(db: database.Database) -> list[Finding]:
    """Check for calls that the sweep misses, and for dead letters."""
    with db.connection() as connection:
        overdue = connection.execute(_OVERDUE).fetchone()
        dead = connection.execute(_DEAD).fetchone()
    assert overdue is not None
    assert dead is not None
    found = []
    if overdue["number"]:
        found.append(
            wrong(
                "overdue calls",
                f"{overdue['number']}, the oldest since {overdue['since']:%m-%d %H:%M:%S}",
                f"is a scheduler running, do workers serve every queue? arictl trace {overdue['one']}",
            )
        )
    else:
        found.append(ok("overdue calls", "none"))
    if dead["number"]:
        found.append(
            warning(
                "dead letters",
                f"{dead['number']} in the last day, the last at {dead['last']:%m-%d %H:%M:%S}, mostly {dead['usual']}",
                "see them by their errors: arictl dlq list. The sweep has dispatched their calls again. If one recurs,"
                " report it",
            )
        )
    else:
        found.append(ok("dead letters", "none in the last day"))
    return found


def check_redis(url: str, *, listener_timeout_seconds: float, asterisk_sessions: int) -> list[Finding]:
    """Check listeners, workers and queues in Redis. Raises nothing: an unreachable Redis is a finding of its own."""
    try:
        client = redis_clients.client(url, decodes=True)
    except ValueError:
        return []
    try:
        return list(_processes(client, listener_timeout_seconds, asterisk_sessions))
    except redis.RedisError:
        return []
    finally:
        client.close()


def _processes(client: redis.Redis, timeout_seconds: float, asterisk_sessions: int) -> Iterator[Finding]:
    pipe = client.pipeline(transaction=False)
    pipe.time()
    pipe.zrange(keys.LISTENERS, 0, -1, withscores=True)
    pipe.exists(keys.BOOT_MARKER)
    pipe.zrange(f"{keys.NAMESPACE}:sessions", 0, -1, withscores=True)
    pipe.get(f"{keys.NAMESPACE}:dead-letters-dropped")
    pipe.hgetall(f"{keys.NAMESPACE}:oldest")
    (seconds, micros), heartbeats, boot_marker, sessions, dropped, oldest = pipe.execute()
    counts = scripts.COUNT.run(client, keys.NAMESPACE, *messages.QUEUES)
    now_ms = seconds * 1000 + micros / 1000
    yield _listeners([(str(name), now_ms - at_ms) for name, at_ms in heartbeats], timeout_seconds)
    # A worker has one session for each of its pools.
    live = [str(name) for name, at_ms in sessions if now_ms - at_ms < session.TIMEOUT_MS]
    workers = {name.split("/", 1)[0] for name in live}
    yield from _workers(len(workers), asterisk_sessions)
    if workers:
        yield _oldest_work({name: now_ms - float(oldest[name]) for name in live if name in oldest})
    if not boot_marker:
        yield warning(
            "Redis boot marker",
            "missing: Redis was emptied, or no scheduler has started yet",
            "wait a few seconds; if it is still missing, start a scheduler",
        )
    yield from _queues(dict(zip(messages.QUEUES, counts[::3], strict=True)))
    if dropped:
        yield warning(
            "dead letters in Redis",
            f"{dropped} were dropped for later ones (DEAD_LETTERS)",
            "find out why so many messages fail: arictl dlq list. This is told until seven days have passed without"
            " another",
        )


def _listeners(heartbeats: list[tuple[str, float]], timeout_seconds: float) -> Finding:
    live = sorted(name for name, age_ms in heartbeats if age_ms < timeout_seconds * 1000)
    if live:
        return ok("listener", f"{', '.join(live[:5])} ({len(live)} live)")
    seen = "none has a heartbeat"
    if heartbeats:
        name, age_ms = min(heartbeats, key=lambda heartbeat: heartbeat[1])
        seen = f"none is live; the last was {name}, {age_ms / 1000:.0f} s ago"
    return wrong("listener", seen, "start one: python -m listener.main. Until then nothing arrives from any Asterisk")


def _workers(workers: int, asterisk_sessions: int) -> Iterator[Finding]:
    if not workers:
        yield wrong(
            "workers",
            "none is connected to the broker",
            "start some: python -m workers.main. Until then callers ring and are lost",
        )
        return
    yield ok("workers", f"{workers} connected to the broker; which queues each serves (WORKER_QUEUES) is not checked")
    # One for each process, however many there are.
    most = max(asterisk_sessions, workers)
    seen = f"up to {most} of all workers to one Asterisk (ASTERISK_SESSIONS), and 2 event sockets of each connection"
    # Room for event sockets, their successors at a hand-off, and operators.
    least = f"sessionlimit in http.conf must be {most + 40} or more on each Asterisk (default 100; ARI cannot read it)"
    if most <= 60:
        yield ok("sessions", f"{seen}; {least}")
    else:
        yield warning("sessions", seen, f"{least}: check by hand, or set ASTERISK_SESSIONS lower")


def _oldest_work(ages_ms: dict[str, float]) -> Finding:
    """Say for how long workers have been at their oldest message, those that are longest at it first.

    Args:
        ages_ms: Of the sessions that have one, as of their last polls.
    """
    what = "oldest work"
    of_workers: dict[str, tuple[float, str]] = {}
    for name, age_ms in ages_ms.items():
        worker, pool = name.split("/", 1)[0], name.rsplit("/", 2)[-2]
        of_workers[worker] = max(of_workers.get(worker, (0.0, "")), (age_ms / 1000, pool))
    shown = sorted(of_workers.items(), key=lambda item: item[1], reverse=True)
    seen = ", ".join(f"{worker} {seconds:.1f} s ({pool})" for worker, (seconds, pool) in shown[:5])
    if not shown or shown[0][1][0] < _OLD_WORK_SECONDS:
        return ok(what, seen or "no worker has a message")
    todo = (
        "no message takes so long: python -m shared.process.health beside that worker tells what it is busy with;"
        " restart it, and others go on with its messages"
    )
    return warning(what, seen, todo)


def _queues(waiting: dict[str, int]) -> Iterator[Finding]:
    long = {queue: number for queue, number in waiting.items() if number > _WAITING}
    if not long:
        shown: Any = ", ".join(f"{queue} {number}" for queue, number in waiting.items() if number) or "all empty"
        yield ok("queues", shown)
    for queue, number in long.items():
        yield wrong(
            f"queue {queue}",
            f"{number} waiting messages",
            f"does a worker serve it (WORKER_QUEUES={queue} or not set)? If so, start more workers",
        )
