"""Sockets to listeners: who holds which connection version, under which epoch.

Postgres has the truth (listener and epoch of each version), Redis a copy for the listeners. A tick reads both, moves
what a dead listener held, and writes to Redis what differs; so Redis may be emptied at any time.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import redis
import structlog

from scheduler.leases import Lease
from shared import database, errors, keys
from shared.core import assignments
from shared.core.assignments import Assignment, Report, SocketState

log = structlog.stdlib.get_logger(__name__)

_HASH_SECONDS = 3600
#: Between losing an app to another socket and trying to take it back under a new epoch.
_RETAKE_SECONDS = 30.0

_WANTED = """
SELECT v.connection_id, v.version, c.organization_id, v.endpoint, v.app, v.ari_user, v.sealed_password, v.ca_bundle,
       v.listener_id, v.epoch, v.superseded_at IS NOT NULL AS superseded, v.socket_state, v.socket_since,
       v.last_event_at, v.reconnects, v.last_error,
       c.state = 'active' AND n.endpoint = v.endpoint AND n.app = v.app AS same_place,
       n.socket_state = 'connected' AS successor_connected,
       EXISTS (SELECT 1 FROM ari.calls k WHERE k.connection_id = v.connection_id
               AND k.connection_version = v.version AND k.state <> 'ended') AS has_calls,
       coalesce(clock_timestamp() - v.superseded_at > %(drain)s * interval '1 second', false) AS drained_long
FROM ari.connection_versions v
JOIN ari.connections c USING (connection_id)
LEFT JOIN ari.connection_versions n ON n.connection_id = c.connection_id AND n.version = c.version
WHERE v.retired_at IS NULL ORDER BY v.connection_id, v.version
"""

#: Fenced by the leader's term: one that lost its lease without noticing assigns nothing.
_ASSIGN = """
UPDATE ari.connection_versions SET listener_id = %(listener)s, epoch = epoch + 1
WHERE connection_id = %(connection)s AND version = %(version)s AND epoch = %(epoch)s AND EXISTS (
    SELECT 1 FROM ari.leases WHERE name = 'scheduler' AND term = %(term)s AND expires_at > clock_timestamp())
RETURNING epoch
"""

_STATUS = """
UPDATE ari.connection_versions SET socket_state = %(state)s, socket_since = %(since)s, last_event_at = %(last_event)s,
    reconnects = %(reconnects)s, last_error = %(error)s
WHERE connection_id = %(connection)s AND version = %(version)s
"""


@dataclass(slots=True, kw_only=True)
class _Held:
    """What was last written for one listener."""

    fields: dict[str, str]
    revision: int


class Assigner:
    """Assigns sockets, tick by tick."""

    def __init__(
        self, db: database.Database, client: redis.Redis, lease: Lease, *, listener_timeout_seconds: float,
        drain_seconds: float,
    ) -> None:  # fmt: skip
        self._db = db
        self._redis = client
        self._lease = lease
        self._timeout_seconds = listener_timeout_seconds
        self._drain_seconds = drain_seconds
        self._written: dict[str, _Held] = {}
        self._term = 0
        self._patient_until = 0.0
        #: Connection key → the epoch under which it was replaced, and since when.
        self._replaced_at: dict[str, tuple[int, float]] = {}
        #: Redis was found empty: everything wants a resync.
        self.redis_was_emptied = False

    def tick(self) -> None:
        """One look. Raises TransientError when Redis or Postgres is away; the next tick goes on."""
        try:
            self._tick()
        except redis.RedisError as exc:
            # Whoever could not reach Redis could not send a heartbeat either: nobody is dead for that.
            self._be_patient()
            raise errors.QueueUnavailable(f"Redis: {type(exc).__name__}") from exc

    def _tick(self) -> None:
        self._begin()
        live = self._live_listeners()
        reports = {listener: self._reports(listener) for listener in live}
        desired: dict[str, dict[str, str]] = {listener: {} for listener in live}
        with self._db.connection() as connection:
            for row in connection.execute(_WANTED, {"drain": self._drain_seconds}).fetchall():
                report = reports.get(row["listener_id"], {}).get(_key(row))
                self._note_status(connection, row, report, live)
                if self._is_done(row):
                    self._retire(connection, row)
                    continue
                holder, epoch = self._place(connection, row, report, live)
                if holder in desired:
                    desired[holder][_key(row)] = assignments.encode(_assignment(row, epoch))
        for listener, fields in desired.items():
            self._write(listener, fields)

    def _begin(self) -> None:
        led_before = self._lease.term == self._term
        if not led_before:
            self._term = self._lease.term
            self._written.clear()
        if self._redis.set(keys.SENTINEL, f"term {self._term}", nx=True):
            # To a leader that has just begun an empty Redis is nothing strange: the system may be starting.
            (log.warning if led_before else log.info)("Redis is empty: assignments are written anew")
            self._written.clear()
            self._be_patient()
            self.redis_was_emptied = True

    def _be_patient(self) -> None:
        self._patient_until = time.monotonic() + self._timeout_seconds

    def _live_listeners(self) -> list[str]:
        seconds, micros = self._redis.time()
        oldest = seconds * 1000 + micros // 1000 - int(self._timeout_seconds * 1000)
        self._redis.zremrangebyscore(keys.LISTENERS, "-inf", oldest - 60_000)
        names = self._redis.zrangebyscore(keys.LISTENERS, oldest, "+inf")
        return sorted(name.decode() for name in names if isinstance(name, bytes))

    def _reports(self, listener: str) -> dict[str, Report]:
        found: dict[str, Report] = {}
        for text in self._redis.hgetall(keys.reports(listener)).values():
            try:
                report = assignments.decode_report(text)
            except errors.InvalidMessage as exc:
                log.warning("unreadable report", listener=listener, why=str(exc))
                continue
            found[report.key] = report
        return found

    def _place(
        self, connection: database.Connection, row: database.Row, report: Report | None, live: list[str]
    ) -> tuple[str | None, int]:
        """Who holds it from now on, under which epoch."""
        holder, epoch = row["listener_id"], row["epoch"]
        lost = holder not in live and (holder is None or time.monotonic() >= self._patient_until)
        if not live or not (lost or self._may_retake(row, report)):
            return holder, epoch
        chosen = _highest(live, _key(row))
        moved = connection.execute(
            _ASSIGN,
            {
                "listener": chosen,
                "connection": row["connection_id"],
                "version": row["version"],
                "epoch": epoch,
                "term": self._term,
            },
        ).fetchone()
        if moved is None:
            return holder, epoch
        log.info("assigned", connection=_key(row), listener=chosen, epoch=moved["epoch"])
        return chosen, moved["epoch"]

    def _may_retake(self, row: database.Row, report: Report | None) -> bool:
        """Another socket took the app: back under a new epoch after a while, never in a tug-of-war."""
        key = _key(row)
        if report is None or report.state is not SocketState.REPLACED or report.epoch != row["epoch"]:
            return False
        if row["superseded"]:
            return False
        epoch, since = self._replaced_at.get(key, (0, 0.0))
        if epoch != report.epoch:
            since = time.monotonic()
            self._replaced_at[key] = (report.epoch, since)
        return time.monotonic() - since >= _RETAKE_SECONDS

    @staticmethod
    def _is_done(row: database.Row) -> bool:
        """A version in whose place another stands: its socket goes when it is of no more use.

        Of the same endpoint and app: when the successor is connected, which takes over its calls' events. Of another:
        when its calls have ended, or have had long enough.
        """
        if not row["superseded"]:
            return False
        if row["same_place"]:
            return bool(row["successor_connected"])
        return not row["has_calls"] or row["drained_long"]

    @staticmethod
    def _retire(connection: database.Connection, row: database.Row) -> None:
        connection.execute(
            "UPDATE ari.connection_versions SET retired_at = clock_timestamp(), socket_state = 'retired'"
            " WHERE connection_id = %s AND version = %s",
            [row["connection_id"], row["version"]],
        )
        log.info("retired", connection=_key(row))

    def _write(self, listener: str, fields: dict[str, str]) -> None:
        held = self._written.get(listener)
        revision = self._redis.get(keys.revision(listener))
        in_place = held is not None and revision is not None and int(revision) == held.revision
        if held is not None and in_place and held.fields == fields:
            return
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.delete(keys.assignments(listener))
        for field, text in fields.items():
            pipeline.hset(keys.assignments(listener), field, text)
        pipeline.expire(keys.assignments(listener), _HASH_SECONDS)
        pipeline.incr(keys.revision(listener))
        pipeline.expire(keys.revision(listener), _HASH_SECONDS)
        written = int(pipeline.execute()[-2])
        self._written[listener] = _Held(fields=fields, revision=written)

    @staticmethod
    def _note_status(
        connection: database.Connection, row: database.Row, report: Report | None, live: list[str]
    ) -> None:
        """Copies what its listener says into Postgres, where operators and the resync look."""
        if report is not None and report.epoch == row["epoch"]:
            status = (str(report.state), _moment(report.since_ms), report.reconnects, report.error)
            last_event = _moment(report.last_event_ms)
        elif row["listener_id"] in live:
            return
        else:
            status = ("unassigned", row["socket_since"], row["reconnects"], row["last_error"])
            last_event = row["last_event_at"]
        before = (row["socket_state"], row["socket_since"], row["reconnects"], row["last_error"])
        if status == before and not _is_news(row["last_event_at"], last_event):
            return
        connection.execute(
            _STATUS,
            {
                "state": status[0],
                "since": status[1],
                "reconnects": status[2],
                "error": status[3],
                "last_event": last_event,
                "connection": row["connection_id"],
                "version": row["version"],
            },
        )


def _assignment(row: database.Row, epoch: int) -> Assignment:
    return Assignment(
        connection_id=row["connection_id"],
        version=row["version"],
        organization_id=row["organization_id"],
        epoch=epoch,
        endpoint=row["endpoint"],
        app=row["app"],
        user=row["ari_user"],
        sealed_password=row["sealed_password"],
        ca_bundle=row["ca_bundle"],
        # A version is never changed once written: it is its own fingerprint.
        fingerprint=_key(row),
    )


def _key(row: database.Row) -> str:
    return assignments.connection_key(row["connection_id"], row["version"])


def _highest(listeners: list[str], key: str) -> str:
    """Rendezvous hashing: a listener that comes or goes moves only its own share."""
    return max(listeners, key=lambda listener: hashlib.sha256(f"{listener}\n{key}".encode()).digest())


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def _is_news(before: datetime | None, now: datetime | None) -> bool:
    """Whether the time of the last event is worth a write: every ten seconds is enough for an operator."""
    if now is None or before is None:
        return now is not before
    return (now - before).total_seconds() > 10
