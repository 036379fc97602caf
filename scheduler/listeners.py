"""The listeners as Redis shows them: which are alive, what they report, and the assignments written for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
import structlog

from shared import assignments, errors, keys
from shared.assignments import Report, SocketState
from shared.call.ids import ConnectionVersion
from shared.process import settings

log = structlog.stdlib.get_logger(__name__)

_HASH_SECONDS = 3600
#: Assumed while the capacities hash is missing or cannot be read; a listener's next heartbeat writes it again.
_DEFAULT_CAPACITY = int(settings.Listener.model_fields["listener_capacity"].default)

#: KEYS listeners, capacities, its assignments, its revision; ARGV listener, oldest heartbeat that counts → 1 if it was
#: evicted, 0 if it has sent a heartbeat meanwhile.
_EVICT = """
local beat = redis.call('ZSCORE', KEYS[1], ARGV[1])
if beat and tonumber(beat) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[4])
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The listeners at one moment."""

    #: Listener → most sockets it may have, of those that are alive.
    live: dict[str, int]
    #: Listeners whose last heartbeat is too old.
    silent: frozenset[str]
    #: Counts the heartbeats that brought reports.
    reports_revision: int
    #: Redis had been emptied: a listener that is missing may still be alive.
    emptied: bool
    #: How long Redis took to answer.
    took_seconds: float
    #: The oldest heartbeat that counts, by Redis's clock.
    oldest_ms: int


class Reports:
    """What the listeners report of their sockets.

    Args:
        changed: Of these, the reports that differ from those that were read before, with their listeners.
    """

    def __init__(
        self,
        by_listener: Mapping[str, Mapping[ConnectionVersion, Report]],
        changed: Sequence[tuple[str, Report]] = (),
    ) -> None:
        self._by_listener = by_listener
        self.changed = changed

    def find(self, connection: ConnectionVersion, listener: str | None, epoch: int | None) -> Report | None:
        """Return a listener's report on a socket under this epoch; a report under another epoch is ignored."""
        report = self._by_listener.get(listener or "", {}).get(connection)
        return report if report is not None and report.epoch == epoch else None

    def newest(self) -> dict[ConnectionVersion, tuple[int, str]]:
        """Return, for each open socket, the highest epoch under which a listener has it open, and that listener."""
        newest: dict[ConnectionVersion, tuple[int, str]] = {}
        for listener, reports in self._by_listener.items():
            for connection, report in reports.items():
                if report.state is SocketState.CONNECTED:
                    newest[connection] = max(newest.get(connection, (0, "")), (report.epoch, listener))
        return newest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What was last written for one listener."""

    fields: Mapping[str, str]
    revision: int


class Listeners:
    """Reads and writes the listeners' keys. Every method raises redis's own errors; the assigner translates them.

    Args:
        timeout_seconds: A listener without a heartbeat for this long is considered dead.
    """

    def __init__(self, client: redis.Redis, *, timeout_seconds: float) -> None:
        self._redis = client
        self._timeout_ms = int(timeout_seconds * 1000)
        self._written: dict[str, _Written] = {}
        #: Listener → field → the report as it was last read, and what it says: only what has changed is decoded.
        self._read: dict[str, dict[bytes, tuple[bytes, Report]]] = {}

    def snapshot(self, boot_marker: str) -> Snapshot:
        """Read which listeners are alive, and leave the boot marker in a Redis that has none."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.set(keys.BOOT_MARKER, boot_marker, nx=True)
        pipeline.zrange(keys.LISTENERS, 0, -1, withscores=True)
        pipeline.hgetall(keys.CAPACITIES)
        pipeline.get(keys.REPORTS_REVISION)
        asked = time.monotonic()
        (seconds, micros), emptied, beats, capacities, revision = pipeline.execute()
        oldest_ms = seconds * 1000 + micros // 1000 - self._timeout_ms
        live = {name: _number(capacities.get(name), _DEFAULT_CAPACITY) for name, at_ms in beats if at_ms >= oldest_ms}
        return Snapshot(
            live={name.decode(errors="replace"): capacity for name, capacity in live.items()},
            silent=frozenset(name.decode(errors="replace") for name, at_ms in beats if at_ms < oldest_ms),
            reports_revision=_number(revision, 0),
            emptied=bool(emptied),
            took_seconds=time.monotonic() - asked,
            oldest_ms=oldest_ms,
        )

    def reports(self, names: Iterable[str]) -> Reports:
        """Read the reports of these listeners; skip what cannot be read."""
        names = list(names)
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(keys.reports(name))
        changed: list[tuple[str, Report]] = []
        before, self._read = self._read, {}
        for name, texts in zip(names, pipeline.execute(), strict=True):
            known = before.get(name, {})
            unchanged = {
                field: known[field] for field, text in texts.items() if field in known and known[field][0] == text
            }
            decoded = _decoded(name, {field: text for field, text in texts.items() if field not in unchanged})
            changed += [(name, report) for _, report in decoded.values()]
            self._read[name] = unchanged | decoded
        by_listener = {
            name: {report.connection_version: report for _, report in found.values()}
            for name, found in self._read.items()
        }
        return Reports(by_listener, changed)

    def evict(self, name: str, snapshot: Snapshot) -> bool:
        """Remove a silent listener and its assignments. If it was only frozen, it wakes up without any to open.

        Returns:
            False when it has sent a heartbeat since the snapshot: it is left as it is.
        """
        self._written.pop(name, None)
        touched = (keys.LISTENERS, keys.CAPACITIES, keys.assignments(name), keys.revision(name))
        evicted: Any = self._redis.eval(_EVICT, len(touched), *touched, name, snapshot.oldest_ms)
        return bool(evicted)

    def take_suspect(self, name: str) -> ConnectionVersion | None:
        """Return, once, whose event socket an evicted listener was reading when its event loop stopped."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hget(keys.SUSPECTS, name)
        pipeline.hdel(keys.SUSPECTS, name)
        text, _ = pipeline.execute()
        try:
            return None if text is None else ConnectionVersion.parse(text.decode(errors="replace"))
        except ValueError:
            return None

    def rewrite_all(self) -> None:
        """Write every listener's assignments the next time, changed or not: what was written may be gone."""
        self._written.clear()

    def are_assignments_in_place(self, names: Iterable[str]) -> bool:
        """Return whether Redis still has the assignments of these listeners that were written last."""
        names = list(names)
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.get(keys.revision(name))
        written = {name: self._written[name].revision if name in self._written else None for name in names}
        return [_number(revision, -1) for revision in pipeline.execute()] == list(written.values())

    def write_assignments(self, listener: str, fields: Mapping[str, str]) -> None:
        """Replace a listener's assignments, unless they are what was written last and are still there."""
        written = self._written.get(listener)
        revision: Any = self._redis.get(keys.revision(listener))
        in_place = written is not None and revision is not None and int(revision) == written.revision
        if written is not None and in_place and written.fields == fields:
            return
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.delete(keys.assignments(listener))
        if fields:
            mapping: dict[Any, Any] = dict(fields)
            pipeline.hset(keys.assignments(listener), mapping=mapping)
        pipeline.expire(keys.assignments(listener), _HASH_SECONDS)
        pipeline.incr(keys.revision(listener))
        pipeline.expire(keys.revision(listener), _HASH_SECONDS)
        self._written[listener] = _Written(fields=dict(fields), revision=int(pipeline.execute()[-2]))


def _decoded(listener: str, texts: Mapping[bytes, bytes]) -> dict[bytes, tuple[bytes, Report]]:
    decoded: dict[bytes, tuple[bytes, Report]] = {}
    for field, text in texts.items():
        try:
            decoded[field] = text, assignments.decode_report(text)
        except errors.InvalidMessage as exc:
            log.warning("unreadable report skipped", listener=listener, reason=str(exc))
    return decoded


def _number(text: bytes | None, default: int) -> int:
    try:
        return default if text is None else max(0, int(text))
    except ValueError:
        return default
