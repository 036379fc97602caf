"""What the leading scheduler has last seen of the whole installation, and its gauges.

It looks once, whoever asks how often: no scrape asks a server. What was not seen lately is not told.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import redis

from scheduler.assigner import Assigner
from scheduler.leader import Leader
from scheduler.resyncs import AGE
from scheduler.socket_rows import EventSocket
from shared import errors
from shared.broker import redis_broker
from shared.call.states import LIVE, State
from shared.process import metrics
from shared.process.metric_kinds import Gauge, Reading
from shared.storage import database, quotas

_T = TypeVar("_T")

#: What was seen longer ago than so many intervals, and so many seconds, is not told.
_INTERVALS, _SECONDS = 3, 10.0

_CALLS = f"""
SELECT state, count(*) AS calls, count(*) FILTER (WHERE {quotas.USES_SLOT}) AS slots
FROM ari.calls WHERE state <> 'ended' GROUP BY state
"""  # noqa: S608 - built from constants


class Seen(Generic[_T]):
    """What was seen last, for as long as that is recent.

    Args:
        seconds: The interval at which one looks.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: tuple[float, _T] | None = None

    def put(self, value: _T) -> None:
        """Keep what is seen now."""
        self._last = time.monotonic(), value

    def get(self) -> _T | None:
        """Return what was seen; None if that is too long ago."""
        if self._last is None or time.monotonic() - self._last[0] > self._seconds * _INTERVALS + _SECONDS:
            return None
        return self._last[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """The calls that have not ended, and the resyncs."""

    by_state: Mapping[str, int]
    slots: int
    resync_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queues:
    """The broker's queues."""

    counts: Mapping[str, redis_broker.Count]
    oldest_ms: Mapping[str, int]
    dead_letters: int


class Looks:
    """The looks that are made for gauges alone, and what these and others saw last.

    Args:
        seconds: The interval of the looks.
        sweep_seconds: The interval of the sweep, and of the look for dead workers.
        resync_seconds: The interval of a connection's resyncs.
    """

    def __init__(
        self,
        db: database.Database,
        broker: redis_broker.Broker,
        *,
        seconds: float,
        sweep_seconds: float,
        resync_seconds: float,
    ) -> None:
        self._db = db
        self._broker = broker
        self._resync_seconds = resync_seconds
        #: Each look with its interval in seconds: two, so that one server that is away keeps nothing of the other back.
        self.jobs = ((self.look_at_calls, seconds), (self.look_at_queues, seconds))
        self.calls: Seen[_Calls] = Seen(seconds)
        self.queues: Seen[_Queues] = Seen(seconds)
        #: How many overdue calls the sweep found.
        self.overdue: Seen[int] = Seen(sweep_seconds)
        #: How many workers live.
        self.workers: Seen[int] = Seen(sweep_seconds)

    def note_workers(self, live: Callable[[], frozenset[str] | None]) -> Callable[[], frozenset[str] | None]:
        """Wrap what tells which workers live: how many they are is kept."""

        def names() -> frozenset[str] | None:
            found = live()
            if found is not None:
                self.workers.put(len(found))
            return found

        return names

    def look_at_calls(self) -> None:
        """Count the calls that have not ended. Raises DatabaseUnavailable."""
        with self._db.connection() as connection:
            rows = connection.execute(_CALLS).fetchall()
            age = connection.execute(AGE, {"seconds": self._resync_seconds}).fetchone()
        self.calls.put(
            _Calls(
                by_state={row["state"]: row["calls"] for row in rows},
                slots=sum(row["slots"] for row in rows),
                resync_seconds=age["seconds"] if age is not None else None,
            )
        )

    def look_at_queues(self) -> None:
        """Count the messages of the queues. Raises QueueUnavailable."""
        try:
            self.queues.put(
                _Queues(
                    counts=self._broker.count(metrics.QUEUES),
                    oldest_ms=self._broker.oldest_ms(metrics.QUEUES),
                    dead_letters=self._broker.dead_letters(),
                )
            )
        except redis.RedisError as exc:
            raise errors.QueueUnavailable(f"Redis: {type(exc).__name__}") from exc


def read(leader: Leader, assigner: Assigner, looks: Looks, *, connections: int) -> None:
    """Say where the scheduler's gauges read.

    Args:
        connections: The most connections of which each has a series.
    """

    def leads(gauge: Gauge, reading: Callable[[], Reading]) -> None:
        gauge.read(lambda: reading() if leader.is_leader else None)

    metrics.LEADER.read(lambda: leader.is_leader)
    leads(metrics.LISTENERS, assigner.listeners)
    leads(metrics.WORKERS, looks.workers.get)
    leads(metrics.CALLS_OVERDUE, looks.overdue.get)
    leads(metrics.CALLS_LIVE, _of(looks.calls, lambda seen: {(state,): seen.by_state.get(state, 0) for state in LIVE}))
    leads(metrics.CALLS_ENDING, _of(looks.calls, lambda seen: seen.by_state.get(State.ENDING, 0)))
    leads(metrics.SLOTS_TAKEN, _of(looks.calls, lambda seen: seen.slots))
    leads(metrics.RESYNC_AGE, _of(looks.calls, lambda seen: seen.resync_seconds))
    leads(metrics.QUEUE_MESSAGES, _of(looks.queues, _messages))
    leads(metrics.QUEUE_OLDEST,
          _of(looks.queues, lambda seen: {(queue,): ms / 1000 for queue, ms in seen.oldest_ms.items()}))  # fmt: skip
    leads(metrics.DEAD_LETTERS_KEPT, _of(looks.queues, lambda seen: seen.dead_letters))
    leads(metrics.CONNECTIONS, lambda: _number(assigner, is_down=False))
    leads(metrics.CONNECTIONS_DOWN, lambda: _number(assigner, is_down=True))
    leads(metrics.CONNECTIONS_SUSPENDED, lambda: _suspended(assigner))
    leads(metrics.CONNECTION_UP, lambda: _up(assigner, connections))


def _of(seen: Seen[_T], reading: Callable[[_T], Reading]) -> Callable[[], Reading]:
    def read_seen() -> Reading:
        last = seen.get()
        return reading(last) if last is not None else None

    return read_seen


def _messages(seen: _Queues) -> Reading:
    numbers: dict[tuple[str, ...], float] = {}
    for queue, count in seen.counts.items():
        numbers[queue, "waiting"] = count.waiting
        numbers[queue, "delayed"] = count.delayed
        numbers[queue, "in-flight"] = count.in_flight
    return numbers


def _newest(assigner: Assigner) -> list[EventSocket] | None:
    """Return the event socket of each connection's newest version; None if they are not known."""
    sockets = assigner.sockets()
    return None if sockets is None else [each for each in sockets if not each.superseded]


def _is_up(assigner: Assigner) -> dict[int, bool] | None:
    """Return whether each event socket that is wanted is open; None if that is not known.

    An operator wants none of a connection that is parked. One that a competing client has taken is wanted.
    """
    sockets = _newest(assigner)
    if sockets is None:
        return None
    return {each.connection.connection_id: each.is_open for each in sockets if each.suspension != "park"}


def _suspended(assigner: Assigner) -> Reading:
    sockets = _newest(assigner)
    if sockets is None:
        return None
    found = Counter(each.suspension for each in sockets)
    return {(suspension,): found[suspension] for suspension in metrics.SUSPENSIONS}


def _number(assigner: Assigner, *, is_down: bool) -> Reading:
    found = _is_up(assigner)
    return None if found is None else sum(not (is_down and up) for up in found.values())


def _up(assigner: Assigner, most: int) -> Reading:
    found = _is_up(assigner)
    if found is None:
        return None
    # Those that are down first: of these an operator wants to know which.
    shown = sorted(found.items(), key=lambda each: (each[1], each[0]))[:most]
    return {(str(connection_id),): up for connection_id, up in shown}
