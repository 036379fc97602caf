"""What the pipeline does now: a sample for `arictl top` and the console, of one question to Postgres, a few to Redis.

Either may be away: then its part is missing, and the sample says why.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import redis

from shared import errors, keys, messages, redaction
from shared.broker import letter_store, scripts, session
from shared.call import faults
from shared.storage import database

#: Rates are over so many seconds, set-up times and outcomes over so many.
RATE_SECONDS = 60
WINDOW_SECONDS = 300
#: Of the calls of the window the newest are looked at: what a sample costs has a bound at any load.
MOST_CALLS = 20_000
#: A call that is past its deadline for longer is missed by the sweep, or its Asterisk gives no answer.
_OVERDUE_SECONDS = 10
#: A listener without a heartbeat for so long is not counted.
_LISTENER_SECONDS = 5

_LIVE = "SELECT state, count(*) AS number FROM ari.calls WHERE state <> 'ended' GROUP BY state"

#: now() and not the clock: an index serves it.
_RECENT = f"""
WITH recent AS MATERIALIZED (
    SELECT direction, outcome, {faults.SQL} AS fault, received_at, connected_at FROM ari.calls
    WHERE received_at > now() - interval '{WINDOW_SECONDS} seconds' ORDER BY received_at DESC LIMIT {MOST_CALLS}
), ended AS (
    SELECT outcome, count(*) AS number FROM recent WHERE outcome IS NOT NULL GROUP BY outcome
), failed AS (
    SELECT fault, count(*) AS number FROM recent WHERE fault IS NOT NULL GROUP BY fault
)
SELECT count(*) AS looked_at, min(received_at) AS since,
       count(*) FILTER (WHERE received_at > now() - interval '{RATE_SECONDS} seconds') AS received,
       count(connected_at) AS connected,
       percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM connected_at - received_at))
           FILTER (WHERE connected_at IS NOT NULL AND direction = 'inbound') AS setup,
       (SELECT json_object_agg(outcome, number) FROM ended) AS outcomes,
       (SELECT json_object_agg(fault, number) FROM failed) AS faults
FROM recent
"""  # noqa: S608 - built from constants

_CONNECTIONS = """
SELECT CASE WHEN c.state <> 'active' THEN c.state
            WHEN c.suspension = 'park' THEN 'parked' WHEN c.suspension = 'drain' THEN 'drained'
            ELSE coalesce(v.socket_state, 'unassigned') END AS state, count(*) AS number
FROM ari.connections c LEFT JOIN ari.connection_versions v USING (connection_id, version)
WHERE c.state <> 'removed' GROUP BY 1
"""
_LEADER = "SELECT holder FROM ari.leases WHERE name = 'scheduler' AND expires_at > now()"
_OVERDUE = f"""
SELECT count(*) AS number FROM ari.calls
WHERE state <> 'ended' AND deadline_at < now() - interval '{_OVERDUE_SECONDS} seconds'
"""  # noqa: S608 - built from a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Of Postgres: calls, connections, the leader."""

    #: State → calls that have not ended.
    live: Mapping[str, int]
    #: Calls received a second, over the last minute.
    received_per_second: float
    #: How many calls of the last five minutes the rest is about; how many of them were connected.
    looked_at: int
    connected: int
    #: Seconds from the caller's arrival to connected; None without a call.
    setup_p50: float | None
    setup_p95: float | None
    setup_p99: float | None
    #: Outcome → calls that have ended.
    outcomes: Mapping[str, int]
    #: Failure class → calls that have not ended well.
    faults: Mapping[str, int]
    #: State of the event socket, or `parked`, `drained`, `refused` → connections.
    connections: Mapping[str, int]
    #: The leading scheduler; None if none leads.
    leader: str | None
    #: Calls past their deadline for 10 s.
    overdue: int

    @property
    def up(self) -> int:
        """Connections whose event socket is open and that take calls."""
        return self.connections.get("connected", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One queue of the broker."""

    name: str
    waiting: int
    delayed: int
    #: In work.
    in_flight: int
    #: How long the message has waited that has waited longest, in seconds; None if none waits.
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Of Redis: queues, dead letters, processes."""

    queues: tuple[Queue, ...]
    dead_letters: int
    #: Those dropped for later ones within the last seven days.
    dead_letters_dropped: int
    listeners: tuple[str, ...]
    workers: tuple[str, ...]
    #: Since when a worker has been at its oldest message, in seconds; None if none has one.
    oldest_work_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was seen at one moment. A part is None while its server is away, and `missing` tells why."""

    #: By the clock of this process.
    at: datetime
    #: How long it took to ask, in seconds.
    took_seconds: float
    calls: Calls | None
    traffic: Traffic | None
    #: In a sentence each.
    missing: tuple[str, ...]


def take(db: database.Database, client: redis.Redis) -> Sample:
    """Ask once. Raises nothing for a server that is away.

    Args:
        client: Bounds each request; returns bytes.
    """
    began, missing = time.monotonic(), []
    calls = traffic = None
    try:
        calls = calls_of(db)
    except errors.PipelineError as exc:
        missing.append(f"{exc}" if str(exc).startswith("Postgres") else f"Postgres: {exc}")
    try:
        traffic = _traffic(client)
    except redis.RedisError as exc:
        missing.append(redaction.redact(f"Redis: {type(exc).__name__}: {exc}"))
    return Sample(
        at=datetime.now(UTC),
        took_seconds=time.monotonic() - began,
        calls=calls,
        traffic=traffic,
        missing=tuple(missing),
    )


def calls_of(db: database.Database) -> Calls:
    """Return the part of Postgres, by one round trip. Raises DatabaseUnavailable."""
    with db.connection() as connection:
        sent = [connection.send(query) for query in (_LIVE, _RECENT, _CONNECTIONS, _LEADER, _OVERDUE)]
        connection.flush()
    live, recent, sockets, leader, overdue = (each.fetchall() for each in sent)
    (row,) = recent
    p50, p95, p99 = row["setup"] or (None, None, None)
    return Calls(
        live={each["state"]: each["number"] for each in live},
        received_per_second=round(row["received"] / _rate_seconds(row), 2),
        looked_at=row["looked_at"],
        connected=row["connected"],
        setup_p50=p50,
        setup_p95=p95,
        setup_p99=p99,
        outcomes=row["outcomes"] or {},
        faults=row["faults"] or {},
        connections={each["state"]: each["number"] for each in sockets},
        leader=leader[0]["holder"] if leader else None,
        overdue=overdue[0]["number"],
    )


def _rate_seconds(row: database.Row) -> float:
    """Return over how many seconds calls were counted: fewer than a minute if there were more than are looked at."""
    if row["looked_at"] < MOST_CALLS:
        return RATE_SECONDS
    since: datetime = row["since"]
    seconds = (datetime.now(UTC) - since).total_seconds()
    return min(float(RATE_SECONDS), max(1.0, seconds))


def _traffic(client: redis.Redis) -> Traffic:
    names = list(messages.QUEUES)
    pipe = client.pipeline(transaction=False)
    pipe.time()
    pipe.zrange(keys.LISTENERS, 0, -1, withscores=True)
    pipe.zrange(f"{keys.NAMESPACE}:sessions", 0, -1, withscores=True)
    pipe.hgetall(f"{keys.NAMESPACE}:oldest")
    (seconds, micros), heartbeats, sessions, oldest = cast(Any, pipe.execute())
    counts = iter(scripts.COUNT.run(client, keys.NAMESPACE, *names))
    waited_ms = scripts.OLDEST.run(client, keys.NAMESPACE, *names)
    now_ms = seconds * 1000 + micros / 1000
    live = {name: at_ms for name, at_ms in sessions if now_ms - at_ms < session.TIMEOUT_MS}
    letters = letter_store.DeadLetters(client, keys.NAMESPACE)
    return Traffic(
        queues=tuple(
            Queue(
                name=name,
                waiting=waiting,
                delayed=delayed,
                in_flight=in_flight,
                oldest_seconds=age_ms / 1000 if waiting else None,
            )
            for name, waiting, delayed, in_flight, age_ms in zip(names, counts, counts, counts, waited_ms, strict=True)
        ),
        dead_letters=letters.count(),
        dead_letters_dropped=letters.dropped(),
        listeners=tuple(
            sorted(name.decode() for name, at_ms in heartbeats if now_ms - at_ms < _LISTENER_SECONDS * 1000)
        ),
        workers=tuple(sorted({name.decode().split("/", 1)[0] for name in live})),
        oldest_work_seconds=max(
            ((now_ms - float(oldest[name])) / 1000 for name in live if name in oldest), default=None
        ),
    )
