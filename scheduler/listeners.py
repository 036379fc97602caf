"""The listeners as Redis shows them: who is alive, what they report, and what they are told to hold."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from shared import assignments, errors, keys
from shared.assignments import Report
from shared.process import settings

log = structlog.stdlib.get_logger(__name__)

_HASH_SECONDS = 3600
#: Of a listener that does not tell, being of the first release.
_CAPACITY = int(settings.Listener.model_fields["listener_capacity"].default)

#: KEYS listeners, capacities, its assignments, its revision; ARGV listener, oldest heartbeat that counts → whether it
#: was forgotten: not when it has come back meanwhile.
_FORGET = """
local beat = redis.call('ZSCORE', KEYS[1], ARGV[1])
if beat and tonumber(beat) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[4])
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The listeners at one moment."""

    #: Listener → most sockets it may hold.
    live: dict[str, int]
    #: Those whose last heartbeat is too old.
    silent: frozenset[str]
    #: Counts the heartbeats that brought reports.
    news: int
    #: Redis was empty: what is not there now is not gone.
    emptied: bool
    #: How long Redis took to answer.
    took_seconds: float
    #: A heartbeat before this, by Redis's clock, counts as none.
    oldest_ms: int


@dataclass(slots=True, kw_only=True)
class _Held:
    """What was last written for one listener."""

    fields: dict[str, str]
    revision: int


class Listeners:
    """Reads and writes; every method raises redis's own errors, which the assigner translates.

    Args:
        timeout_seconds: A listener silent for this long is taken for dead.
    """

    def __init__(self, client: redis.Redis, *, timeout_seconds: float) -> None:
        self._redis = client
        self._timeout_ms = int(timeout_seconds * 1000)
        self._written: dict[str, _Held] = {}

    def look(self, note: str) -> Sight:
        """Who is alive; `note` is left as the sentinel when there is none."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.set(keys.BOOT_MARKER, note, nx=True)
        pipeline.zrange(keys.LISTENERS, 0, -1, withscores=True)
        pipeline.hgetall(keys.CAPACITIES)
        pipeline.get(keys.REPORTS_REVISION)
        asked = time.monotonic()
        (seconds, micros), emptied, beats, capacities, news = pipeline.execute()
        oldest_ms = seconds * 1000 + micros // 1000 - self._timeout_ms
        live = {name: _number(capacities.get(name), _CAPACITY) for name, at_ms in beats if at_ms >= oldest_ms}
        return Sight(
            live={name.decode(errors="replace"): capacity for name, capacity in live.items()},
            silent=frozenset(name.decode(errors="replace") for name, at_ms in beats if at_ms < oldest_ms),
            news=_number(news, 0),
            emptied=bool(emptied),
            took_seconds=time.monotonic() - asked,
            oldest_ms=oldest_ms,
        )

    def reports(self, names: Iterable[str]) -> dict[str, dict[str, Report]]:
        """Listener → connection key → what it reports."""
        names = list(names)
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(keys.reports(name))
        return {name: _reports(name, found) for name, found in zip(names, pipeline.execute(), strict=True)}

    def forget(self, name: str, sight: Sight) -> bool:
        """Strikes out a dead listener with all it was told, so that one that only slept opens nothing by it.

        Returns:
            False when it has come back meanwhile.
        """
        self._written.pop(name, None)
        touched = (keys.LISTENERS, keys.CAPACITIES, keys.assignments(name), keys.revision(name))
        forgotten: Any = self._redis.eval(_FORGET, len(touched), *touched, name, sight.oldest_ms)
        return bool(forgotten)

    def forget_written(self) -> None:
        """What was written may be gone: everything is written again."""
        self._written.clear()

    def write(self, listener: str, fields: Mapping[str, str]) -> None:
        """Tells a listener what to hold, unless that is what it was told last."""
        held = self._written.get(listener)
        revision: Any = self._redis.get(keys.revision(listener))
        in_place = held is not None and revision is not None and int(revision) == held.revision
        if held is not None and in_place and held.fields == fields:
            return
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.delete(keys.assignments(listener))
        if fields:
            mapping: dict[Any, Any] = dict(fields)
            pipeline.hset(keys.assignments(listener), mapping=mapping)
        pipeline.expire(keys.assignments(listener), _HASH_SECONDS)
        pipeline.incr(keys.revision(listener))
        pipeline.expire(keys.revision(listener), _HASH_SECONDS)
        self._written[listener] = _Held(fields=dict(fields), revision=int(pipeline.execute()[-2]))


def _reports(listener: str, found: dict[bytes, bytes]) -> dict[str, Report]:
    reports: dict[str, Report] = {}
    for text in found.values():
        try:
            report = assignments.decode_report(text)
        except errors.InvalidMessage as exc:
            log.warning("unreadable report", listener=listener, reason=str(exc))
            continue
        reports[report.key] = report
    return reports


def _number(text: bytes | None, otherwise: int) -> int:
    try:
        return otherwise if text is None else max(0, int(text))
    except ValueError:
        return otherwise
