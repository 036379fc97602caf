"""Whether our processes are at work: a leading scheduler, listeners, workers, queues that move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from arictl.checks.findings import Finding, ok, warning, wrong
from shared import keys, messages
from shared.broker import scripts, session
from shared.storage import database

#: Queues that no process of this release serves.
_UNSERVED = frozenset({"originate"})
#: More waiting than this is more than a moment's work.
_WAITING = 100
#: Past its deadline for longer than this, a call is not driven on by the sweep.
_OVERDUE_SECONDS = 10
#: Only this many of the newest rows of the timeline are looked through, which has no index for it.
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


def check_scheduler(db: database.Database) -> list[Finding]:
    """Whether one leads."""
    with db.connection() as connection:
        row = connection.execute(
            "SELECT holder, term, expires_at, expires_at > clock_timestamp() AS leads FROM ari.leases"
            " WHERE name = 'scheduler'"
        ).fetchone()
    start = "start one: python -m scheduler.main. Until then no configuration is taken up and no overdue call driven on"
    if row is None:
        return [wrong("scheduler", "none has ever led", start)]
    if not row["leads"]:
        return [wrong("scheduler", f"none leads since {row['expires_at']:%m-%d %H:%M:%S}", start)]
    return [ok("scheduler", f"{row['holder']} leads, term {row['term']}")]


def check_calls(db: database.Database) -> list[Finding]:
    """Calls nobody step_retries on, and messages that were given up."""
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
                f"{overdue['number']}, the longest since {overdue['since']:%m-%d %H:%M:%S}",
                f"does a scheduler lead, do workers serve every queue? arictl trace {overdue['one']}",
            )
        )
    else:
        found.append(ok("overdue calls", "none"))
    if dead["number"]:
        found.append(
            warning(
                "dead letters",
                f"{dead['number']} in the last day, the last at {dead['last']:%m-%d %H:%M:%S}, most of {dead['usual']}",
                "a worker's log has each with its traceback; the sweep has gone on"
                " without them. The same one again and again is a fault to report",
            )
        )
    else:
        found.append(ok("dead letters", "none in the last day"))
    return found


def check_redis(url: str, *, listener_timeout_seconds: float, requests_each: int) -> list[Finding]:
    """Listeners, workers and queues, as Redis knows them. Raises nothing: an absent Redis has a finding of its own."""
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=3, decode_responses=True)
    except ValueError:
        return []
    try:
        return list(_processes(client, listener_timeout_seconds, requests_each))
    except redis.RedisError:
        return []
    finally:
        client.close()


def _processes(client: redis.Redis, timeout_seconds: float, requests_each: int) -> Iterator[Finding]:
    pipe = client.pipeline(transaction=False)
    pipe.time()
    pipe.zrange(keys.LISTENERS, 0, -1, withscores=True)
    pipe.exists(keys.BOOT_MARKER)
    pipe.zrange(f"{keys.NAMESPACE}:sessions", 0, -1, withscores=True)
    (seconds, micros), beats, sentinel, crews = pipe.execute()
    counts = scripts.COUNT.run(client, keys.NAMESPACE, *messages.QUEUES)
    now_ms = seconds * 1000 + micros / 1000
    yield _listeners([(str(who), now_ms - at_ms) for who, at_ms in beats], timeout_seconds)
    # A worker has one session per pool.
    workers = {str(who).split("/", 1)[0] for who, at_ms in crews if now_ms - at_ms < session.TIMEOUT_MS}
    yield from _workers(len(workers), requests_each)
    if not sentinel:
        yield warning(
            "Redis sentinel",
            "missing: Redis was emptied, or no scheduler has started yet",
            "nothing, if it is back in a few seconds; otherwise start a scheduler",
        )
    yield from _queues(dict(zip(messages.QUEUES, counts[::3], strict=True)))


def _listeners(beats: list[tuple[str, float]], timeout_seconds: float) -> Finding:
    live = sorted(who for who, age_ms in beats if age_ms < timeout_seconds * 1000)
    if live:
        return ok("listener", f"{', '.join(live[:5])} ({len(live)} live)")
    seen = "none has a heartbeat"
    if beats:
        who, age_ms = min(beats, key=lambda beat: beat[1])
        seen = f"none is live; the last was {who}, {age_ms / 1000:.0f} s ago"
    return wrong("listener", seen, "start one: python -m listener.main. Until then nothing arrives from any Asterisk")


def _workers(workers: int, requests_each: int) -> Iterator[Finding]:
    if not workers:
        yield wrong(
            "workers",
            "none listens for messages",
            "start some: python -m workers.main. Until then callers ring and are lost",
        )
        return
    yield ok("workers", f"{workers} listen for messages; which queues each serves (WORKER_QUEUES) is not told")
    # Beside the requests: the event socket, its successor at a hand-over, and room for operators.
    most = workers * requests_each
    seen = (
        f"up to {most} requests of ours at once ({workers} workers, each ASTERISK_REQUESTS {requests_each}), 2 sockets"
    )
    least = f"http.conf's sessionlimit must be {most + 40} or more on each Asterisk (default 100; ARI cannot read it)"
    if most <= 60:
        yield ok("sessions", f"{seen}; {least}")
    else:
        yield warning("sessions", seen, f"{least}: compare by hand, or set ASTERISK_REQUESTS lower")


def _queues(waiting: dict[str, int]) -> Iterator[Finding]:
    long = {queue: number for queue, number in waiting.items() if number > _WAITING and queue not in _UNSERVED}
    if not long:
        shown: Any = ", ".join(f"{queue} {number}" for queue, number in waiting.items() if number) or "all empty"
        yield ok("queues", shown)
    for queue, number in long.items():
        yield wrong(
            f"queue {queue}",
            f"{number} messages wait",
            f"does a worker serve it (WORKER_QUEUES={queue} or unset)? If so, start more workers",
        )
