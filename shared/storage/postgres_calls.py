"""Calls in Postgres: the truth. Every write names the lock version it has read, and writes its timeline along."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from shared import current_message, errors, spans
from shared.call import facts, states, steps
from shared.call.calls import Call, Change, replace
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.storage import call_sql, database, quotas
from shared.storage.call_store import ClaimedCall, ClaimRequest, OpenCall
from shared.storage.timeline import TimelineEntry, is_prompt, of_message, tries, worth_writing
from shared.storage.timeline_allowance import TimelineAllowance

log = structlog.stdlib.get_logger(__name__)

_EPOCH = datetime.fromtimestamp(0, UTC)

#: The advisory lock of an organization, beside its id: the platform may use such locks, too. An arbitrary number.
_ORGANIZATION_LOCK = 0x617269


class PostgresCalls:
    """The store of calls in Postgres: the adapter of `call_store.CallStore`.

    Args:
        who: This process, for the timeline.
        prefix: Begins the ids of calls that an earlier release wrote, without the prefix of each.
        rows_an_hour: Timeline rows of one kind that are written without a change of a call; see `TimelineAllowance`.
    """

    def __init__(self, db: database.Database, *, who: str, prefix: str, rows_an_hour: int = 120) -> None:
        self.db = db
        self._who = who
        self._naming = Naming(prefix)
        self._allowance = TimelineAllowance(rows_an_hour)
        self._offset: timedelta | None = None

    # ── reads ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def now(self) -> datetime:
        """Return Postgres's clock, kept from the last answer: asking each time would cost a round trip."""
        if self._offset is None:
            with self.db.connection() as connection:
                row = connection.execute("SELECT clock_timestamp() AS now").fetchone()
            assert row is not None
            self._observe(row["now"])
        assert self._offset is not None
        return _monotonic() + self._offset

    def load(self, call_id: UUID) -> Call | None:
        return self._one(f"{call_sql.CALLS} WHERE call_id = %s", [call_id])

    def load_all(self, call_ids: Collection[UUID]) -> Mapping[UUID, Call | errors.CallUnreadable]:
        rows = self._rows(call_sql.LOAD_ALL, [list(call_ids)])
        return {row["call_id"]: _call_or_error(row) for row in rows}

    def last_entry(self, connection_id: int, channel_id: str, channel_created: str) -> Call | None:
        return self._one(call_sql.LAST_ENTRY, [connection_id, channel_id, channel_created])

    def originated(self, connection_id: int, channel_id: str) -> Call | None:
        return self._one(call_sql.ORIGINATED, [connection_id, channel_id])

    def originated_all(
        self, connection_id: int, channel_ids: Collection[str]
    ) -> Mapping[str, Call | errors.CallUnreadable]:
        rows = self._rows(call_sql.ORIGINATED_ALL, [connection_id, list(channel_ids)])
        return {row["channel_id"]: _call_or_error(row) for row in rows}

    def transferred(self, connection_id: int, channel_id: str) -> Call | None:
        return self._one(call_sql.TRANSFERRED, [connection_id, channel_id])

    def replaced_by(self, connection_id: int, channel_id: str) -> Call | None:
        return self._one(call_sql.REPLACED_BY, [connection_id, channel_id])

    def of_channel(self, connection_id: int, channel_id: str) -> Call | None:
        return self._one(call_sql.OF_CHANNEL, [connection_id, channel_id])

    def requested(self, organization_id: int, request_id: str) -> Call | None:
        return self._one(call_sql.REQUESTED, [request_id, organization_id])

    def is_requested(self, connection: database.Connection, organization_id: int, request_id: str) -> bool:
        return connection.execute(call_sql.REQUESTED, [request_id, organization_id]).fetchone() is not None

    def overdue(self, limit: int) -> list[Call]:
        """Return unclaimed calls past their deadline, the longest overdue first. Unreadable ones are skipped."""
        rows = self._rows(call_sql.OVERDUE, [[str(state) for state in states.State], limit])
        return [call for _, call in _readable(rows)]

    def claimed_by_others(self, workers: Collection[str], limit: int) -> list[ClaimedCall]:
        """Return calls that others than these workers have claimed. Unreadable ones are skipped."""
        rows = self._rows(call_sql.CLAIMED_BY_OTHERS, [list(workers), limit])
        return [ClaimedCall(call=call, owner=row["claim_owner"]) for row, call in _readable(rows)]

    def recall_misdated(self, wait: timedelta) -> None:
        """Make overdue what is due too late to be true: Postgres's clock was set back since it was written.

        Args:
            wait: More than any claim lasts, and than any state waits but those of a leg that rings or talks.
        """
        with self.db.connection() as connection:
            recalled = connection.execute(call_sql.RECALL_MISDATED, {"wait": wait}).rowcount
        if recalled:
            log.warning("deadlines recalled, postgres's clock was set back", calls=recalled)

    def connected_runs(self) -> dict[int, UUID]:
        """Return the run of each connected call that was not transferred, and the call."""
        with self.db.connection() as connection:
            rows = connection.execute(call_sql.CONNECTED_RUNS).fetchall()
        return {row["workflow_run_id"]: row["call_id"] for row in rows}

    def open_calls(self, connection: ConnectionVersion) -> list[OpenCall]:
        """Return the open calls of an app instance, as `call_store.CallStore` says. Unreadable ones are skipped."""
        values = {"connection_id": connection.connection_id, "number": connection.number}
        rows = _readable(self._rows(call_sql.OPEN_CALLS, values))
        return [OpenCall(call=call, changed_at=row["changed"], is_claimed=row["claimed"]) for row, call in rows]

    # ── writes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def insert(
        self,
        call: Call,
        timeline: Iterable[TimelineEntry],
        claim: ClaimRequest | None,
        *,
        changes: Sequence[Change] = (),
    ) -> bool:
        with self.db.connection() as connection:
            return self.insert_in(connection, call, timeline, claim, changes=changes)

    def insert_in(
        self,
        connection: database.Connection,
        call: Call,
        timeline: Iterable[TimelineEntry] = (),
        claim: ClaimRequest | None = None,
        *,
        changes: Sequence[Change] = (),
    ) -> bool:
        text, values = self._inserted(call, timeline, claim, changes, or_nothing=True)
        row = connection.execute(text, values).fetchone()
        assert row is not None
        if row["done"]:
            _note_stored(None, changes[-1].after if changes else call)
        return bool(row["done"])

    def insert_with_commit(
        self,
        connection: database.Connection,
        call: Call,
        timeline: Iterable[TimelineEntry],
        claim: ClaimRequest | None,
        *,
        changes: Sequence[Change],
    ) -> None:
        connection.send(*self._inserted(call, timeline, claim, changes, or_nothing=False))
        _note_stored(None, changes[-1].after if changes else call)

    def _inserted(
        self,
        call: Call,
        timeline: Iterable[TimelineEntry],
        claim: ClaimRequest | None,
        changes: Sequence[Change],
        *,
        or_nothing: bool,
    ) -> tuple[str, dict[str, Any]]:
        """Return the statement that writes a new call, and its values."""
        after = changes[-1].after if changes else call
        arrival = {
            "call_id": str(call.call_id),
            "kind": "transition",
            "name": call_sql.ARRIVALS.get(call.state, "CallRecorded"),
            "at": call.received_at,
            "state_to": call.state,
            "who": self._who,
            "detail": _storable(f"{call.caller_number} → {call.called_number}, channel {call.channel_id}"),
        }
        rows = [arrival, *(self._row(entry, call=call) for entry in timeline), *map(self._transition, changes)]
        rows += self._message(call, is_new=True)
        values = _values(after) | _claim_values(claim) | {"timeline": json.dumps(rows, default=str)}
        begun = after.attempt != call.attempt
        return call_sql.insert(begun=begun, or_nothing=or_nothing), values | (self._begun(after) if begun else {})

    def claim(self, call_id: UUID, claim: ClaimRequest) -> Call | None:
        values = {"call_id": call_id, "state": steps.STEPS[claim.step].state, **_claim_values(claim)}
        return self._one(call_sql.CLAIM, values)

    def release(self, call_id: UUID, owner: str) -> None:
        with self.db.connection() as connection:
            connection.execute(call_sql.RELEASE, [call_id, owner])

    def save(
        self,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
        keeps_claim: bool = False,
    ) -> Call | None:
        text, values = self._saved(changes, timeline, owner, claim, keeps_claim=keeps_claim, or_nothing=True)
        with self.db.connection() as connection:
            row = connection.execute(text, values).fetchone()
        return _as_saved(changes, row)

    def save_with_commit(
        self,
        connection: database.Connection,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
    ) -> Callable[[], Call]:
        text, values = self._saved(changes, timeline, owner, claim, keeps_claim=False, or_nothing=False)
        sent = connection.send(text, values)

        def saved() -> Call:
            call = _as_saved(changes, sent.fetchone())
            assert call is not None, "it raises when nothing is saved"
            return call

        return saved

    def _saved(
        self,
        changes: Sequence[Change],
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
        *,
        keeps_claim: bool,
        or_nothing: bool,
    ) -> tuple[str, dict[str, Any]]:
        """Return the statement that writes what has become of a call, and its values."""
        before, after = changes[0].before, changes[-1].after
        changed = tuple(name for name in call_sql.CHANGEABLE if getattr(before, name) != getattr(after, name))
        entries, moves = worth_writing(timeline, changes)
        rows = [*(self._row(entry, call=after) for entry in entries), *map(self._transition, moves)]
        # Where repetition is left out, its messages are too.
        rows += self._message(after) if rows else []
        values = {name: _value(after, name) for name in changed} | {
            "call_id": before.call_id,
            "lock_version": before.lock_version,
            "owner": owner,
            "timeline": json.dumps(rows, default=str),
        }
        claim_part, condition = "", call_sql.IF_CLAIMED
        if not keeps_claim:
            claim_part, condition = _claim_part(claim, owner=owner, moved=before.state is not after.state)
        values |= _claim_values(claim) if claim is not None else {}
        attempts = ""
        if after.attempt != before.attempt:
            attempts += call_sql.ATTEMPT_BEGUN
            values |= self._begun(after)
        if outcome := _attempt_outcome(changes):
            attempts += call_sql.ATTEMPT_OUTCOME
            values |= outcome
        return call_sql.save(changed, claim_part, condition, attempts, or_nothing=or_nothing), values

    def _begun(self, call: Call) -> dict[str, Any]:
        return {
            "begun": call.attempt,
            "media_id": self._naming.media_id(call),
            "bridge_id": self._naming.bridge_id(call),
            "begun_in_doubt_until": call.attempt_in_doubt_until,
        }

    # ── transactions and locks ───────────────────────────────────────────────────────────────────────────────────────

    def transaction(self) -> AbstractContextManager[database.Connection]:
        return self.db.transaction()

    def lock(self, connection: database.Connection, call_id: UUID) -> Call | None:
        row = connection.execute(call_sql.LOCK, [call_id]).fetchone()
        return _call(row) if row is not None else None

    def lock_organization(self, connection: database.Connection, organization_id: int) -> None:
        """Wait for the organization's advisory lock, a statement's time at most: its row belongs to the platform.

        Count in the next statement: only its snapshot is taken while the lock is held. They travel together.
        """
        connection.send("SELECT pg_advisory_xact_lock(%s, %s)", [_ORGANIZATION_LOCK, organization_id])

    def slots_used(self, connection: database.Connection, organization_id: int) -> int:
        row = connection.execute(quotas.SLOTS_USED, [organization_id]).fetchone()
        assert row is not None
        return int(row["used"])

    # ── the timeline ─────────────────────────────────────────────────────────────────────────────────────────────────

    def append_timeline(
        self, timeline: Sequence[TimelineEntry], *, call: Call | None = None, connection_id: int | None = None
    ) -> None:
        admitted = self._allowance.admitted(timeline, call=call, connection_id=connection_id)
        if not admitted:
            return
        rows = [self._row(entry, call=call, connection_id=connection_id) for entry in admitted]
        with self.db.connection() as connection:
            connection.execute(call_sql.APPEND_TIMELINE, {"timeline": json.dumps(rows, default=str)})

    def append_once(self, entry: TimelineEntry, *, call: Call) -> bool:
        values = {"timeline": json.dumps([self._row(entry, call=call)], default=str), "call": call.call_id,
                  "name": entry.name}  # fmt: skip
        with self.db.connection() as connection:
            return connection.execute(call_sql.APPEND_ONCE, values).rowcount == 1

    def append_new(self, timeline: Sequence[TimelineEntry], *, connection_id: int, within: timedelta) -> None:
        known = self._recent_notes(connection_id, within)
        new = [entry for entry in timeline if (_storable(entry.name), _storable(entry.detail)) not in known]
        self.append_timeline(new, connection_id=connection_id)

    def is_noted(self, entry: TimelineEntry, *, connection_id: int, within: timedelta) -> bool:
        name, detail = _storable(entry.name), _storable(entry.detail)
        # What was counted before it may stand behind it.
        recent = self._recent_notes(connection_id, within)
        return any(noted == name and text.startswith(detail) for noted, text in recent)

    def _recent_notes(self, connection_id: int, within: timedelta) -> set[tuple[str, str]]:
        with self.db.connection() as connection:
            written = connection.execute(call_sql.RECENT_NOTES, [connection_id, within]).fetchall()
        return {(row["name"], row["detail"]) for row in written}

    def _message(self, call: Call, *, is_new: bool = False) -> list[dict[str, Any]]:
        """Return the row of the message that this thread works on, unless the call's timeline has it.

        Args:
            is_new: The call is not stored yet: if it was written before, that was rolled back.
        """
        message = current_message.current()
        if message is None or is_prompt(message) or (call.call_id in message.told and not is_new):
            return []
        return [self._row(of_message(message, now=self.now(), monotonic=time.monotonic()), call=call)]

    def _row(
        self, entry: TimelineEntry, *, call: Call | None = None, connection_id: int | None = None
    ) -> dict[str, Any]:
        return {
            "at": entry.at,
            "call_id": call.call_id if call is not None else None,
            "connection_id": connection_id,
            "kind": entry.kind,
            "name": _storable(entry.name),
            "attempt": entry.attempt,
            "took_ms": entry.took_ms,
            "who": self._who,
            "detail": _storable(entry.detail),
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
            "detail": _storable(_detail(change, moved=moved)),
        }

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

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


def _as_saved(changes: Sequence[Change], row: database.Row | None) -> Call | None:
    """Return the call as a save has left it, by its answer; None on a version conflict."""
    before, after = changes[0].before, changes[-1].after
    assert row is not None
    if row["lock_version"] is None:
        return None
    _note_stored(before, after)
    return replace(after, lock_version=row["lock_version"])


def _note_stored(before: Call | None, after: Call) -> None:
    """A call was written: its timeline tells of the message in work, and its trace of its end."""
    current_message.note_told(after.call_id)
    if after.state is states.State.ENDED and (before is None or before.state is not states.State.ENDED):
        spans.note_ended(after)


def _monotonic() -> datetime:
    return _EPOCH + timedelta(seconds=time.monotonic())


def _storable(text: str) -> str:
    """Return a text without what Postgres cannot hold: NUL, and the halves of a character that is no pair."""
    if text.isprintable():
        return text
    return text.replace("\x00", "�").encode("utf-8", "replace").decode()


def _readable(rows: Iterable[database.Row]) -> Iterator[tuple[database.Row, Call]]:
    for row in rows:
        try:
            yield row, _call(row)
        except errors.CallUnreadable as exc:
            connection = f"{row['connection_id']}:{row['connection_version']}"
            log.warning(
                "skipping call written by a newer release",
                call=str(row["call_id"]),
                connection=connection,
                reason=str(exc),
            )


def _call_or_error(row: database.Row) -> Call | errors.CallUnreadable:
    try:
        return _call(row)
    except errors.CallUnreadable as exc:
        return exc


def _call(row: database.Row) -> Call:
    values = {name: row[name] for name in call_sql.COLUMNS}
    try:
        values["direction"] = states.Direction(values["direction"])
        values["state"] = states.State(values["state"])
        values["outcome"] = states.Outcome(values["outcome"]) if values["outcome"] is not None else None
        values["fault"] = states.Fault(values["fault"]) if values["fault"] is not None else None
    except ValueError as exc:
        raise errors.CallUnreadable(str(exc)) from exc
    values["args"] = tuple(values["args"])
    values["attempt_nonces"] = tuple(values["attempt_nonces"])
    values["replacements"] = tuple(values["replacements"] or ())
    # An earlier release wrote none.
    values["id_prefix"] = values["id_prefix"] or ""
    return Call(**values)


def _values(call: Call) -> dict[str, Any]:
    values = {name: _value(call, name) for name in call_sql.COLUMNS}
    values["id_prefix"] = call.id_prefix or None
    # The index has the few calls that have some.
    values["replacements"] = list(call.replacements) or None
    return values


def _value(call: Call, name: str) -> Any:
    value = getattr(call, name)
    return list(value) if isinstance(value, tuple) else value


def _claim_values(claim: ClaimRequest | None) -> dict[str, Any]:
    if claim is None:
        return {"owner": None, "step": None, "claim": None}
    return {"owner": claim.owner, "step": str(claim.step), "claim": claim.duration}


def _claim_part(claim: ClaimRequest | None, *, owner: str, moved: bool) -> tuple[str, str]:
    """Return what a save does to the claim, and the condition that this adds to it."""
    if claim is not None:
        return call_sql.CLAIM_TAKEN, "" if moved else call_sql.IF_UNCLAIMED
    if moved:
        return call_sql.CLAIM_ENDED, ""
    return call_sql.OWN_CLAIM_ENDED if owner else "", ""


def _attempt_outcome(changes: Sequence[Change]) -> dict[str, Any]:
    """Return how an attempt came out; nothing when none of the facts says it."""
    for fact in (change.fact for change in reversed(changes)):
        match fact:
            case facts.LegsCreated() | facts.LegsFound():
                return {"attempt_outcome": "created", "outcome_attempt": fact.attempt}
            case facts.LegsRefused():
                return {"attempt_outcome": "refused", "outcome_attempt": fact.attempt}
            case facts.LegsUnknown():
                return {"attempt_outcome": "unknown", "outcome_attempt": fact.attempt}
    return {}


#: Fields of facts that the timeline does not tell in words.
_UNTOLD = (
    "attempt",
    "nonce",
    "leg_id",
    "is_up",
    "in_doubt_until",
    "stamp",
    "run_is_over",
    "is_complete",
    "is_found",
    "state",
    "limit",
)


def _detail(change: Change, *, moved: bool) -> str:
    """Return the fact's fields in words; with outcome and reason when the call is over, and how often it was tried."""
    after, fact = change.after, change.fact
    said = [
        f"{field.name}={value}"
        for field in fields(fact)
        if field.name not in _UNTOLD and (value := getattr(fact, field.name)) is not None
    ]
    if moved and after.state is states.State.ENDING:
        said.append(f"→ {after.outcome}: {after.reason}")
    if count := tries(change):
        said.append(f"tries={count}")
    return ", ".join(said)
