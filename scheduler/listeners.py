"""The listeners as Redis shows them: which are alive, what they report, and the assignments written for them."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

#: Begins each script: a leader that was frozen, and has been followed by another one, writes nothing. KEYS[1] is the
#: boot marker, ARGV[1] the caller's own. Two leaders may have one term, if a fail-over or a restore of Postgres has
#: forgotten the first of them. Then the one that the marker does not name has to raise its term.
_FENCE = """
local marker = redis.call('GET', KEYS[1])
local led = tonumber(string.match(marker or '', '%d+$')) or 0
local term = tonumber(string.match(ARGV[1], '%d+$'))
if led > term or led == term and marker and marker ~= ARGV[1] then return redis.error_reply('TERM ' .. led) end
"""
#: Parts of the time-out. Longer than the longest interval of heartbeats, a third: a listener is late.
_LATE_PART = 3 / 8
#: And so long it is without a subscription, and sends no heartbeat, before it counts as gone.
_CONFIRMED_PART = 1 / 4
_REFUSAL = re.compile(r"TERM (\d+)$")

#: → the boot marker as it was. With NX it is not written each time, and yet a server that is master no more refuses it.
_MARK = f"""{_FENCE}
redis.call('SET', KEYS[1], ARGV[1], 'NX')
if led ~= term then redis.call('SET', KEYS[1], ARGV[1]) end
return marker
"""

#: Further KEYS listeners, capacities, its assignments, its revision, its reports; ARGV listener, the last heartbeat
#: that was seen of it → 1 if it was evicted, 0 if it has sent another one meanwhile.
_EVICT = f"""{_FENCE}
local beat = redis.call('ZSCORE', KEYS[2], ARGV[2])
if beat and tonumber(beat) ~= tonumber(ARGV[3]) then return 0 end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('DEL', KEYS[4], KEYS[5], KEYS[6])
return 1
"""

#: Further KEYS suspects; ARGV listener → its suspect, which is deleted.
_TAKE_SUSPECT = f"""{_FENCE}
local suspect = redis.call('HGET', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
return suspect
"""

#: Further KEYS its assignments, its revision; ARGV channel of its wake-ups, lifetime in seconds, then field and value
#: of each → the revision.
_WRITE = f"""{_FENCE}
redis.call('DEL', KEYS[2])
for at = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1]) end
redis.call('EXPIRE', KEYS[2], ARGV[3])
local revision = redis.call('INCR', KEYS[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('PUBLISH', ARGV[2], '')
return revision
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The listeners at one moment."""

    #: Listener → most sockets it may have, of those that are alive.
    live: dict[str, int]
    #: Listeners whose last heartbeat is too old, or whose process is gone.
    silent: frozenset[str]
    #: Counts the heartbeats that brought reports.
    reports_revision: int
    #: Redis had been emptied: a listener that is missing may still be alive.
    emptied: bool
    #: How long Redis took to answer.
    took_seconds: float
    #: Listener → its last heartbeat, which is compared for equality.
    beats: Mapping[str, float]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """A listener's last heartbeat, and when that was, by this process's monotonic clock."""

    beat: float
    at: float
    #: It has been seen with a subscription to its wake-ups: one of v0.1.0-rc1 never has.
    subscribes: bool
    #: Since when it was seen without one, and sent no heartbeat; None if it was not.
    deserted_at: float | None = None

    def is_lost(self, now: float, timeout_seconds: float) -> bool:
        """Return whether the listener counts as dead: without a heartbeat for the time-out, or with its process gone.

        A process that was killed has no sockets any more, one that stalls has. And one that lives, and has lost its
        connections, sends a heartbeat before it is looked again.
        """
        silent_seconds = now - self.at
        if silent_seconds > timeout_seconds:
            return True
        is_deserted = self.deserted_at is not None and now - self.deserted_at >= timeout_seconds * _CONFIRMED_PART
        return is_deserted and silent_seconds >= timeout_seconds * _LATE_PART


class Listeners:
    """Reads and writes the listeners' keys, under the term of the last snapshot.

    Every method raises redis's own errors, which the assigner translates; those that write raise LeadershipLost when
    Redis knows of a leader with a higher term.

    Args:
        timeout_seconds: A listener without a heartbeat for this long is considered dead.
        leader: Names this process, as in its lease.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        timeout_seconds: float,
        leader: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = client
        self._timeout_seconds = timeout_seconds
        self._leader = leader
        self._monotonic = monotonic
        #: What this process writes into the boot marker.
        self._marker = self._marker_of(0)
        #: The term that this process has written into the boot marker.
        self._marked_term: int | None = None
        #: By the monotonic clock: when the heartbeats were last read.
        self._looked_at = float("-inf")
        self._heard: dict[bytes, _Heard] = {}
        self._written: dict[str, _Written] = {}
        #: Listener → field → the report as it was last read, and what it says: only what has changed is decoded.
        self._read: dict[str, dict[bytes, tuple[bytes, Report]]] = {}

    def snapshot(self, term: int) -> Snapshot:
        """Read which listeners are alive, and leave the term in the boot marker.

        Args:
            term: Under which this process leads. What it writes from here on is refused once another one leads.
        """
        self._marker = self._marker_of(term)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.eval(_MARK, 1, keys.BOOT_MARKER, self._marker)
        pipeline.zrange(keys.LISTENERS, 0, -1, withscores=True)
        pipeline.hgetall(keys.CAPACITIES)
        pipeline.get(keys.REPORTS_REVISION)
        known = list(self._heard)
        pipeline.pubsub_numsub(*(keys.wakeups(name.decode(errors="replace")) for name in known))
        asked, asked_at = time.monotonic(), self._monotonic()
        with _refusals():
            (seconds, micros), marker, beats, capacities, revision, subscriptions = pipeline.execute()
        subscribed = {name for name, (_, number) in zip(known, subscriptions, strict=True) if number}
        self._note_heartbeats(dict(beats), seconds * 1000 + micros / 1000, asked_at, subscribed)
        live = {
            name: _number(capacities.get(name), _DEFAULT_CAPACITY)
            for name, heard in self._heard.items()
            if not heard.is_lost(asked_at, self._timeout_seconds)
        }
        # Another leader, with a lower term, may have been the first to find Redis empty: it was frozen, and woke up.
        was_replaced = self._marked_term == term and marker != self._marker.encode()
        self._marked_term = term
        return Snapshot(
            live={name.decode(errors="replace"): capacity for name, capacity in live.items()},
            silent=frozenset(name.decode(errors="replace") for name in self._heard if name not in live),
            reports_revision=_number(revision, 0),
            emptied=marker is None or was_replaced,
            took_seconds=time.monotonic() - asked,
            beats={name.decode(errors="replace"): heard.beat for name, heard in self._heard.items()},
        )

    def _note_heartbeats(
        self, beats: Mapping[bytes, float], redis_ms: float, now: float, subscribed: Collection[bytes]
    ) -> None:
        """Note when each listener was last heard of, by the monotonic clock: Redis's may be set back or forth.

        A heartbeat that differs from the one before came since the last look, and Redis's clock says when, within that.
        """
        before, self._heard = self._heard, {}
        for name, beat in beats.items():
            known = before.get(name)
            age = max(0.0, min((redis_ms - beat) / 1000, now - self._looked_at))
            subscribes = name in subscribed or (known is not None and known.subscribes)
            if known is None or known.beat != beat:
                self._heard[name] = _Heard(beat=beat, at=now - age, subscribes=subscribes)
            elif subscribes and name not in subscribed:
                self._heard[name] = replace(known, deserted_at=known.deserted_at or now)
            else:
                self._heard[name] = replace(known, subscribes=subscribes, deserted_at=None)
        self._looked_at = now

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
        touched = (
            keys.LISTENERS, keys.CAPACITIES, keys.assignments(name), keys.revision(name), keys.reports(name)
        )  # fmt: skip
        return bool(self._run(_EVICT, touched, name, snapshot.beats.get(name, 0.0)))

    def take_suspect(self, name: str) -> ConnectionVersion | None:
        """Return, once, whose event socket an evicted listener was reading when its event loop stopped."""
        text = self._run(_TAKE_SUSPECT, (keys.SUSPECTS,), name)
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
        touched = (keys.assignments(listener), keys.revision(listener))
        parts = itertools.chain.from_iterable(fields.items())
        written_as = self._run(_WRITE, touched, keys.wakeups(listener), _HASH_SECONDS, *parts)
        self._written[listener] = _Written(fields=dict(fields), revision=int(written_as))

    def _marker_of(self, term: int) -> str:
        return f"{self._leader} term {term}".lstrip()

    def _run(self, script: str, touched: Sequence[str], *arguments: str | float) -> Any:
        """Run a script under the term. Raises LeadershipLost."""
        with _refusals():
            return self._redis.eval(script, 1 + len(touched), keys.BOOT_MARKER, *touched, self._marker, *arguments)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Translate the refusal of a script."""
    try:
        yield
    except redis.ResponseError as exc:
        refused = _REFUSAL.search(str(exc))
        if refused is None:
            raise
        term = int(refused[1])
        raise errors.LeadershipLost(f"Redis knows a leader with the term {term}", term=term) from None


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
