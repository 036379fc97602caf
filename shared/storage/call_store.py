"""Calls in Postgres: the truth. Every write names the version it read, and writes its timeline along."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol
from uuid import UUID

import structlog

from shared import errors
from shared.call import calls, facts, ids
from shared.call.calls import Call, Change
from shared.call.limits import Step
from shared.storage import database, quotas

log = structlog.stdlib.get_logger(__name__)

#: Of an organization's advisory lock, beside its id: the platform may use such locks as well. The number is arbitrary.
_ORGANIZATION_LOCK = 0x617269

_FIXED = frozenset({
    "call_id", "connection_id", "connection_version", "organization_id", "entry", "direction", "received_at",
    "lock_version",    "args", "request_id", "dial_endpoint", "ring_seconds",
})  # fmt: skip
_COLUMNS = [field.name for field in fields(Call)]
_SELECT = ", ".join(_COLUMNS)
_CHANGEABLE = [name for name in _COLUMNS if name not in _FIXED]
_VALUES = ", ".join(f"%({name})s" for name in _COLUMNS)

#: A call as it is, and the time.
_CALLS = f"SELECT {_SELECT}, clock_timestamp() AS now FROM ari.calls"  # noqa: S608 - built from constants

_TIMELINE_COLUMNS = "at, call_id, connection_id, kind, name, state_from, state_to, attempt, took_ms, who, detail"
_TIMELINE_ROWS = """
    SELECT coalesce(at, clock_timestamp()), call_id, connection_id, kind, name, state_from, state_to, attempt, took_ms,
           who, coalesce(detail, '')
    FROM jsonb_to_recordset(%(timeline)s::jsonb) AS row (
        at timestamptz, call_id uuid, connection_id integer, kind text, name text, state_from text, state_to text,
        attempt integer, took_ms real, who text, detail text)
"""

_INSERT = f"""
WITH inserted AS (
    INSERT INTO ari.calls ({_SELECT}, claim_owner, claim_step, claim_until)
    VALUES ({_VALUES}, %(owner)s, %(step)s, clock_timestamp() + %(hold)s::interval)
    ON CONFLICT DO NOTHING RETURNING call_id
), noted AS (
    INSERT INTO ari.timeline ({_TIMELINE_COLUMNS}) {_TIMELINE_ROWS} WHERE EXISTS (SELECT 1 FROM inserted)
)
SELECT EXISTS (SELECT 1 FROM inserted) AS done
"""  # noqa: S608 - built from constants

#: How a call's timeline begins.
_ARRIVALS = {calls.State.RECEIVED: "CallReceived", calls.State.ORIGINATING: "CallRequested"}

#: What a save is put together from: what is not needed is not there, so that each is short, and few are different.
_CLAIM_TAKEN = ", claim_owner = %(owner)s, claim_step = %(step)s, claim_until = clock_timestamp() + %(hold)s::interval"
_CLAIM_GONE = ", claim_owner = NULL, claim_step = NULL, claim_until = NULL"
_CLAIM_KEPT_BY_OTHERS = "".join(
    f", {name} = CASE WHEN claim_owner = %(owner)s THEN NULL ELSE {name} END"
    for name in ("claim_owner", "claim_step", "claim_until")
)
_FREE = " AND (claim_until IS NULL OR claim_until <= clock_timestamp())"
_BEGUN = """, begun AS (
    INSERT INTO ari.attempts (call_id, attempt, media_id, bridge_id, in_doubt_until)
    SELECT call_id, %(begun)s, %(media_id)s, %(bridge_id)s, %(begun_in_doubt_until)s FROM saved
)"""
_SETTLED = """, settled AS (
    UPDATE ari.attempts SET outcome = %(settled)s, outcome_at = clock_timestamp()
    WHERE call_id = (SELECT call_id FROM saved) AND attempt = %(settled_attempt)s
)"""


@functools.cache
def _save_statement(changed: tuple[str, ...], claim: str, condition: str, attempts: str) -> str:
    """The compare-and-set of a call, with its timeline; `done` says whether it was the version it names."""
    sets = ", ".join([*(f"{name} = %({name})s" for name in changed), "lock_version = lock_version + 1"]) + claim
    return f"""
WITH saved AS (
    UPDATE ari.calls SET {sets}
    WHERE call_id = %(call_id)s AND lock_version = %(lock_version)s{condition}
    RETURNING call_id
){attempts}, noted AS (
    INSERT INTO ari.timeline ({_TIMELINE_COLUMNS}) {_TIMELINE_ROWS}
    WHERE kind = 'request' OR EXISTS (SELECT 1 FROM saved)
)
SELECT EXISTS (SELECT 1 FROM saved) AS done
"""  # noqa: S608 - built from constants


_CLAIM = f"""
UPDATE ari.calls SET claim_owner = %(owner)s, claim_step = %(step)s, lock_version = lock_version + 1,
    claim_until = clock_timestamp() + %(hold)s::interval
WHERE call_id = %(call_id)s AND state = %(state)s AND (claim_until IS NULL OR claim_until <= clock_timestamp())
RETURNING {_SELECT}, clock_timestamp() AS now
"""  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """A row of the timeline that is not a transition: a request, a refusal, something found."""

    kind: Literal["request", "refusal", "note", "dead-letter"]
    name: str
    detail: str = ""
    at: datetime | None = None
    took_ms: float | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """A claim to be taken: who, for which step, for how long."""

    owner: str
    step: Step
    duration: timedelta


class Store(Protocol):
    """What is asked of the calls' store. Times are of the store's own clock."""

    def now(self) -> datetime:
        """The store's clock."""

    def load(self, call_id: UUID) -> Call | None:
        """The call as it is."""

    def last_entry(self, connection_id: int, channel_id: str, channel_created: str) -> Call | None:
        """The newest call of this channel."""

    def originated(self, connection_id: int, channel_id: str) -> Call | None:
        """The newest call whose leg we originate under this id, answered or not."""

    def requested(self, organization_id: int, request_id: str) -> Call | None:
        """The first call that this request of an organization's has led to."""

    def insert(self, call: Call, timeline: Iterable[TimelineEntry], hold: ClaimRequest | None) -> bool:
        """Writes a new call; False when it was there already."""

    def insert_in(self, connection: database.Connection, call: Call) -> bool:
        """As `insert`, inside a transaction and unclaimed."""

    def claim(self, call_id: UUID, hold: ClaimRequest) -> Call | None:
        """Takes the call for a step; None when it is in another state, or in somebody's hands."""

    def transaction(self) -> AbstractContextManager[database.Connection]:
        """A transaction, for writes that must happen together."""

    def lock(self, connection: database.Connection, call_id: UUID) -> Call | None:
        """The call, its row locked until the transaction ends."""

    def lock_organization(self, connection: database.Connection, organization_id: int) -> None:
        """Lets nobody else count the organization's slots until the transaction ends.

        Under it no row of another call is waited for: whoever holds that row may be waiting for this.
        """

    def slots_used(self, connection: database.Connection, organization_id: int) -> int:
        """How many slots the organization's calls take up: exact until the transaction ends, under its lock."""

    def save_in(
        self,
        connection: database.Connection,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry],
        owner: str,
        hold: ClaimRequest | None,
    ) -> Call | None:
        """As `save`, inside a transaction."""

    def save(
        self, changes: Sequence[Change], *, timeline: Sequence[TimelineEntry], owner: str, hold: ClaimRequest | None
    ) -> Call | None:
        """Writes what facts made of a call, one after the other, if nobody wrote since; None when somebody did.

        Args:
            owner: Whose claim ends with it; every claim does when the state changes.
            hold: The claim to be taken instead. None is taken from another who works in the same state.
        """

    def release(self, call_id: UUID, owner: str) -> None:
        """Gives a claim back without a result."""

    def append_new(self, timeline: Sequence[TimelineEntry], *, connection_id: int, within: timedelta) -> None:
        """Writes those rows that do not say again what was said of the connection within this time."""

    def open_calls(self, connection_id: int, connection_version: int) -> list[tuple[Call, datetime, bool]]:
        """Calls that have not ended: each with when it last changed, and whether it is claimed."""

    def append_timeline(
        self, timeline: Sequence[TimelineEntry], *, call: Call | None = None, connection_id: int | None = None
    ) -> None:
        """Writes rows of the timeline by themselves."""


class PostgresStore:
    """The store in Postgres.

    Args:
        who: This process, for the timeline.
        prefix: Begins our channel and bridge ids.
    """

    def __init__(self, db: database.Database, *, who: str, prefix: str) -> None:
        self.db = db
        self._who = who
        self._prefix = prefix
        self._offset: timedelta | None = None

    def now(self) -> datetime:
        """Postgres's clock, kept from the last answer: asking each time would cost a round trip."""
        if self._offset is None:
            with self.db.connection() as connection:
                row = connection.execute("SELECT clock_timestamp() AS now").fetchone()
            assert row is not None
            self._observe(row["now"])
        assert self._offset is not None
        return _monotonic() + self._offset

    def load(self, call_id: UUID) -> Call | None:
        return self._one(f"{_CALLS} WHERE call_id = %s", [call_id])

    def last_entry(self, connection_id: int, channel_id: str, channel_created: str) -> Call | None:
        return self._one(
            f"{_CALLS} WHERE connection_id = %s AND channel_id = %s"
            " AND channel_created = %s ORDER BY entry DESC LIMIT 1",
            [connection_id, channel_id, channel_created],
        )

    def originated(self, connection_id: int, channel_id: str) -> Call | None:
        return self._one(
            f"{_CALLS} WHERE connection_id = %s AND channel_id = %s"
            " AND request_id IS NOT NULL ORDER BY received_at DESC LIMIT 1",
            [connection_id, channel_id],
        )

    def requested(self, organization_id: int, request_id: str) -> Call | None:
        return self._one(
            f"{_CALLS} WHERE request_id = %s AND connection_id IN"  # noqa: S608 - built from constants
            " (SELECT connection_id FROM ari.connections WHERE organization_id = %s) ORDER BY received_at LIMIT 1",
            [request_id, organization_id],
        )

    def insert(self, call: Call, timeline: Iterable[TimelineEntry], hold: ClaimRequest | None) -> bool:
        with self.db.connection() as connection:
            return self._insert(connection, call, timeline, hold)

    def insert_in(self, connection: database.Connection, call: Call) -> bool:
        return self._insert(connection, call, (), None)

    def _insert(
        self, connection: database.Connection, call: Call, timeline: Iterable[TimelineEntry], hold: ClaimRequest | None
    ) -> bool:
        arrival = {
            "call_id": str(call.call_id),
            "kind": "transition",
            "name": _ARRIVALS.get(call.state, "CallRecorded"),
            "state_to": call.state,
            "who": self._who,
            "detail": f"{call.caller_number} → {call.called_number}, channel {call.channel_id}",
        }
        rows = [arrival, *(self._row(entry, call=call) for entry in timeline)]
        values = _values(call) | _holding(hold) | {"timeline": json.dumps(rows, default=str)}
        row = connection.execute(_INSERT, values).fetchone()
        assert row is not None
        return bool(row["done"])

    def claim(self, call_id: UUID, hold: ClaimRequest) -> Call | None:
        values = {"call_id": call_id, "state": calls.WORKS_IN[hold.step], **_holding(hold)}
        return self._one(_CLAIM, values)

    def save(
        self, changes: Sequence[Change], *, timeline: Sequence[TimelineEntry], owner: str, hold: ClaimRequest | None
    ) -> Call | None:
        with self.db.connection() as connection:
            return self.save_in(connection, changes, timeline=timeline, owner=owner, hold=hold)

    def transaction(self) -> AbstractContextManager[database.Connection]:
        return self.db.transaction()

    def save_in(
        self,
        connection: database.Connection,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry] = (),
        owner: str = "",
        hold: ClaimRequest | None = None,
    ) -> Call | None:
        """As `save`, on a connection that may have a transaction open."""
        before, after = changes[0].before, changes[-1].after
        moved = before.state is not after.state
        changed = tuple(name for name in _CHANGEABLE if getattr(before, name) != getattr(after, name))
        rows = [*(self._row(entry, call=after) for entry in timeline), *map(self._transition, changes)]
        values = {name: getattr(after, name) for name in changed} | {
            "call_id": before.call_id,
            "lock_version": before.lock_version,
            "owner": owner,
            "timeline": json.dumps(rows, default=str),
        }
        claim, condition = "", ""
        if hold is not None:
            values |= _holding(hold)
            claim, condition = _CLAIM_TAKEN, "" if moved else _FREE
        elif moved:
            claim = _CLAIM_GONE
        elif owner:
            claim = _CLAIM_KEPT_BY_OTHERS
        attempts = ""
        if after.attempt != before.attempt:
            attempts += _BEGUN
            values |= self._begun(after)
        if settled := _settled(changes):
            attempts += _SETTLED
            values |= settled
        row = connection.execute(_save_statement(changed, claim, condition, attempts), values).fetchone()
        assert row is not None
        return replace(after, lock_version=after.lock_version + 1) if row["done"] else None

    def _begun(self, call: Call) -> dict[str, Any]:
        return {
            "begun": call.attempt,
            "media_id": ids.media_id(self._prefix, call.call_id, call.attempt),
            "bridge_id": ids.bridge_id(self._prefix, call.call_id, call.attempt),
            "begun_in_doubt_until": call.attempt_in_doubt_until,
        }

    def lock(self, connection: database.Connection, call_id: UUID) -> Call | None:
        """The call, its row locked until the transaction on `connection` ends."""
        row = connection.execute(
            f"SELECT {_SELECT} FROM ari.calls WHERE call_id = %s FOR UPDATE",  # noqa: S608 - built from constants
            [call_id],
        ).fetchone()
        return _call(row) if row is not None else None

    def lock_organization(self, connection: database.Connection, organization_id: int) -> None:
        """Waits for its turn; a statement's time at most.

        An advisory lock: the platform's own row of the organization is not ours to lock. What is counted must be
        counted by the next statement, whose snapshot is taken when the lock is held.
        """
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [_ORGANIZATION_LOCK, organization_id])

    def slots_used(self, connection: database.Connection, organization_id: int) -> int:
        row = connection.execute(
            f"SELECT count(*) AS taken FROM ari.calls WHERE organization_id = %s AND {quotas.TAKES_SLOT}",  # noqa: S608 - built from constants
            [organization_id],
        ).fetchone()
        assert row is not None
        return int(row["taken"])

    def overdue(self, limit: int) -> list[Call]:
        """Calls past their deadline and in nobody's hands, the longest overdue first.

        What a newer release wrote and we cannot read is left to it.
        """
        rows = self._rows(
            f"{_CALLS}"
            # now(), which does not change within a statement: the index is searched by it, not read from end to end.
            " WHERE state <> 'ended' AND state = ANY(%s) AND deadline_at <= now()"
            " AND (claim_until IS NULL OR claim_until <= clock_timestamp()) ORDER BY deadline_at LIMIT %s",
            [[str(state) for state in calls.State], limit],
        )
        return [call for _, call in _readable(rows)]

    def connected_runs(self) -> dict[int, UUID]:
        """The run of each connected call, and the call."""
        with self.db.connection() as connection:
            rows = connection.execute(
                "SELECT workflow_run_id, call_id FROM ari.calls"
                " WHERE state = 'connected' AND workflow_run_id IS NOT NULL"
            ).fetchall()
        return {row["workflow_run_id"]: row["call_id"] for row in rows}

    def open_calls(self, connection_id: int, connection_version: int) -> list[tuple[Call, datetime, bool]]:
        """Calls that have not ended of a connection version, and of its others in the same endpoint and app.

        Each with when it last changed, by its newest timeline row, and whether it is claimed. What a newer release
        wrote and we cannot read is left to it.
        """
        rows = self._rows(
            f"SELECT {_SELECT}, clock_timestamp() AS now,"  # noqa: S608 - built from constants
            " coalesce((SELECT max(t.at) FROM ari.timeline t WHERE t.call_id = c.call_id), received_at) AS changed,"
            " coalesce(claim_until > clock_timestamp(), false) AS claimed"
            " FROM ari.calls c WHERE connection_id = %s AND state <> 'ended' AND connection_version IN ("
            " SELECT o.version FROM ari.connection_versions o"
            " JOIN ari.connection_versions v USING (connection_id, endpoint, app)"
            " WHERE v.connection_id = %s AND v.version = %s)",
            [connection_id, connection_id, connection_version],
        )
        return [(call, row["changed"], row["claimed"]) for row, call in _readable(rows)]

    def release(self, call_id: UUID, owner: str) -> None:
        with self.db.connection() as connection:
            connection.execute(
                "UPDATE ari.calls SET claim_owner = NULL, claim_step = NULL, claim_until = NULL,"
                " lock_version = lock_version + 1"
                " WHERE call_id = %s AND claim_owner = %s",
                [call_id, owner],
            )

    def append_timeline(
        self, timeline: Sequence[TimelineEntry], *, call: Call | None = None, connection_id: int | None = None
    ) -> None:
        rows = [self._row(entry, call=call, connection_id=connection_id) for entry in timeline]
        with self.db.connection() as connection:
            connection.execute(
                f"INSERT INTO ari.timeline ({_TIMELINE_COLUMNS}) {_TIMELINE_ROWS}",
                {"timeline": json.dumps(rows, default=str)},
            )

    def append_new(self, timeline: Sequence[TimelineEntry], *, connection_id: int, within: timedelta) -> None:
        with self.db.connection() as connection:
            said = connection.execute(
                "SELECT DISTINCT name, detail FROM ari.timeline WHERE connection_id = %s AND call_id IS NULL"
                " AND kind = 'note' AND at > now() - %s::interval",
                [connection_id, within],
            ).fetchall()
        known = {(row["name"], row["detail"]) for row in said}
        news = [entry for entry in timeline if (entry.name, entry.detail) not in known]
        if news:
            self.append_timeline(news, connection_id=connection_id)

    def _row(
        self, entry: TimelineEntry, *, call: Call | None = None, connection_id: int | None = None
    ) -> dict[str, Any]:
        return {
            "at": entry.at,
            "call_id": call.call_id if call is not None else None,
            "connection_id": connection_id,
            "kind": entry.kind,
            "name": entry.name,
            "attempt": entry.attempt,
            "took_ms": entry.took_ms,
            "who": self._who,
            "detail": entry.detail.replace("\x00", "�"),
        }

    def _transition(self, change: Change) -> dict[str, Any]:
        before, after, fact = change.before, change.after, change.fact
        moved = before.state is not after.state
        return {
            "call_id": after.call_id,
            "kind": "transition" if moved else "fact",
            "name": type(fact).__name__,
            "state_from": before.state if moved else None,
            "state_to": after.state if moved else None,
            "attempt": getattr(fact, "attempt", None),
            "who": self._who,
            "detail": _detail(after, fact, moved=moved),
        }

    def _one(self, query: str, values: Any) -> Call | None:
        found = self._rows(query, values)
        return _call(found[0]) if found else None

    def _rows(self, query: str, values: Any) -> list[database.Row]:
        with self.db.connection() as connection:
            rows = connection.execute(query, values).fetchall()
        if rows:
            self._observe(rows[0]["now"])
        return rows

    def _observe(self, now: datetime) -> None:
        self._offset = now - _monotonic()


def _monotonic() -> datetime:
    return datetime.fromtimestamp(0).astimezone() + timedelta(seconds=time.monotonic())


def _readable(rows: Iterable[database.Row]) -> Iterator[tuple[database.Row, Call]]:
    for row in rows:
        try:
            yield row, _call(row)
        except errors.CallUnreadable as exc:
            log.warning("left to a newer release", call=str(row["call_id"]), reason=str(exc))


def _call(row: database.Row) -> Call:
    values = {name: row[name] for name in _COLUMNS}
    try:
        values["direction"] = calls.Direction(values["direction"])
        values["state"] = calls.State(values["state"])
        values["outcome"] = calls.Outcome(values["outcome"]) if values["outcome"] is not None else None
    except ValueError as exc:
        raise errors.CallUnreadable(str(exc)) from exc
    values["args"] = tuple(values["args"])
    return Call(**values)


def _values(call: Call) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(call, name) for name in _COLUMNS}
    values["args"] = list(call.args)
    return values


def _holding(hold: ClaimRequest | None) -> dict[str, Any]:
    if hold is None:
        return {"owner": None, "step": None, "hold": None}
    return {"owner": hold.owner, "step": str(hold.step), "hold": hold.duration}


def _settled(changes: Sequence[Change]) -> dict[str, Any]:
    """How an attempt came out; empty when none of the facts says it."""
    for fact in (change.fact for change in reversed(changes)):
        match fact:
            case facts.LegsCreated():
                return {"settled": "created", "settled_attempt": fact.attempt}
            case facts.LegsRefused():
                return {"settled": "refused", "settled_attempt": fact.attempt}
            case facts.LegsUnknown():
                return {"settled": "unknown", "settled_attempt": fact.attempt}
    return {}


def _detail(after: Call, fact: facts.Fact, *, moved: bool) -> str:
    """The fact's own words; with what the call came to when it is over."""
    said = [
        f"{field.name}={value}"
        for field in fields(fact)
        if field.name not in ("attempt", "in_doubt_until", "stamp") and (value := getattr(fact, field.name)) is not None
    ]
    if moved and after.state is calls.State.ENDING:
        said.append(f"→ {after.outcome}: {after.reason}")
    return ", ".join(said)
