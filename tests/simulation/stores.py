"""The store of calls in memory: the rules of `postgres_calls.PostgresCalls`, row locks and transactions included.

A property test compares the two: test_stores.py.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol, TypeVar, cast
from uuid import UUID

from shared import errors
from shared.call import facts, states, steps
from shared.call.calls import Call, Change
from shared.call.ids import ConnectionVersion
from shared.call.states import State
from shared.storage import database
from shared.storage.call_store import ClaimRequest, OpenCall
from shared.storage.timeline import TimelineEntry, worth_writing
from tests.simulation.world import Latch

_T = TypeVar("_T")
_LOCK_SECONDS = 2.0


class Postgres(Protocol):
    """The database server under the store: a clock, and statements that take time and may fail."""

    def moment(self) -> datetime:
        """Return Postgres's clock."""

    def statement(self, what: str, effect: Callable[[], _T], call_id: UUID | None = None) -> _T:
        """Run one statement, or a commit, on the row of a call if that is known. Raises DatabaseUnavailable."""

    def wait(self, latch: Latch, seconds: float) -> bool:
        """Wait for a lock; return whether it was released."""

    def connected(self, roll_back: Callable[[], None]) -> None:
        """Register what to do if the process with this connection dies."""


@dataclass(slots=True)
class Row:
    """One row of ari.calls."""

    call: Call
    changed_at: datetime
    claim_owner: str | None = None
    claim_until: datetime | None = None
    #: The owner of every claim that the call ever had, and when its last claim ends or would have ended.
    owners: dict[str, datetime] = field(default_factory=dict)

    def take(self, claim: ClaimRequest, now: datetime) -> None:
        """Let an owner have the call for a while."""
        self.claim_owner, self.claim_until = claim.owner, now + claim.duration
        self.owners[claim.owner] = self.claim_until


@dataclass(slots=True)
class Transaction:
    """The writes of a transaction, done at its commit, and the locks that it releases at its end."""

    writes: list[Callable[[], None]] = field(default_factory=list)
    #: Statements that travel with the commit.
    unsent: list[Callable[[], None]] = field(default_factory=list)
    releases: list[Callable[[], None]] = field(default_factory=list)
    held: set[object] = field(default_factory=set)

    def holds(self, key: object) -> bool:
        """True if it has locked this."""
        return key in self.held

    def end(self) -> None:
        """Release its locks."""
        for release in self.releases:
            release()
        self.releases.clear()


class Locks:
    """Rows and keys that transactions lock until they end."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._held: dict[object, Latch] = {}

    def wait(self, *keys: object) -> None:
        """Wait until no transaction has locked any of these. Raises DatabaseUnavailable when that takes too long."""
        while (latch := next((self._held[key] for key in keys if key in self._held), None)) is not None:
            if not self._postgres.wait(latch, _LOCK_SECONDS):
                raise errors.DatabaseUnavailable("canceling statement due to lock timeout")

    def acquire(self, transaction: Transaction, *keys: object) -> None:
        """Wait for these, and lock them."""
        self.wait(*keys)
        for key in keys:
            latch = self._held[key] = Latch()
            transaction.held.add(key)
            transaction.releases.append(lambda key=key, latch=latch: self._unlock(key, latch))  # type: ignore[misc]

    def _unlock(self, key: object, latch: Latch) -> None:
        del self._held[key]
        latch.open()


class MemoryStore:
    """Calls and their claims; of the timeline only the number of rows.

    Args:
        watch: Called with each change of a call: before (None for a new call), after, and the fact.
    """

    def __init__(self, postgres: Postgres, watch: Callable[[Call | None, Call, facts.Fact | None], None]) -> None:
        self._postgres = postgres
        self._watch = watch
        self.locks = Locks(postgres)
        self.rows: dict[UUID, Row] = {}
        #: When an organization's slots were last counted for an admission.
        self.counted_at: dict[int, datetime] = {}
        self._entries: dict[tuple[int, str, str], list[UUID]] = {}
        #: Call → how many rows its timeline has.
        self.timeline_rows: Counter[UUID] = Counter()
        #: How often calls were written with their admission.
        self.quick_admissions = 0
        #: Called before changes are written against a claim that stands: with the row, and the owner that writes them,
        #: which is empty for a writer without a claim.
        self.overruled: Callable[[Row, Sequence[Change], str], None] = lambda _row, _changes, _owner: None
        #: How often a call ended without proof that its legs are gone.
        self.unverified_ends = 0

    # ── the port ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def now(self) -> datetime:
        return self._postgres.moment()

    def load(self, call_id: UUID) -> Call | None:
        return self._postgres.statement("load", lambda: self._call(call_id), call_id)

    def load_all(self, call_ids: Collection[UUID]) -> Mapping[UUID, Call | errors.CallUnreadable]:
        return self._postgres.statement(
            "load all", lambda: {call_id: call for call_id in call_ids if (call := self._call(call_id)) is not None}
        )

    def last_entry(self, connection_id: int, channel_id: str, channel_created: str) -> Call | None:
        return self._postgres.statement("last_entry", lambda: self.newest(connection_id, channel_id, channel_created))

    def originated(self, connection_id: int, channel_id: str) -> Call | None:
        return self._postgres.statement("originated", lambda: self.request_of(connection_id, channel_id))

    def originated_all(
        self, connection_id: int, channel_ids: Collection[str]
    ) -> Mapping[str, Call | errors.CallUnreadable]:
        def find() -> Mapping[str, Call | errors.CallUnreadable]:
            found = {channel_id: self.request_of(connection_id, channel_id) for channel_id in channel_ids}
            return {channel_id: call for channel_id, call in found.items() if call is not None}

        return self._postgres.statement("originated all", find)

    def transferred(self, connection_id: int, channel_id: str) -> Call | None:
        def find() -> Call | None:
            wanted = (connection_id, channel_id, State.CONNECTED)
            calls = (row.call for row in self.rows.values())
            return next((one for one in calls if (one.connection_id, one.destination_id, one.state) == wanted), None)

        return self._postgres.statement("transferred", find)

    def requested(self, organization_id: int, request_id: str) -> Call | None:
        def find() -> Call | None:
            wanted = (organization_id, request_id)
            found = [
                one.call for one in self.rows.values() if (one.call.organization_id, one.call.request_id) == wanted
            ]
            return min(found, key=lambda call: call.received_at, default=None)

        return self._postgres.statement("requested", find)

    def insert(
        self,
        call: Call,
        timeline: Iterable[TimelineEntry],
        claim: ClaimRequest | None,
        *,
        changes: Sequence[Change] = (),
    ) -> bool:
        what = "insert" if not changes else f"insert as {changes[-1].after.state}"
        return self._postgres.statement(what, lambda: self._insert(call, claim, changes, None))

    def insert_in(
        self,
        connection: database.Connection,
        call: Call,
        timeline: Iterable[TimelineEntry] = (),
        claim: ClaimRequest | None = None,
        *,
        changes: Sequence[Change] = (),
    ) -> bool:
        transaction = cast(Transaction, connection)
        return self._postgres.statement("insert_in", lambda: self._insert(call, claim, changes, transaction))

    def insert_with_commit(
        self,
        connection: database.Connection,
        call: Call,
        timeline: Iterable[TimelineEntry],
        claim: ClaimRequest | None,
        *,
        changes: Sequence[Change],
    ) -> None:
        def insert() -> None:
            if not self._insert(call, claim, changes, transaction):
                raise errors.DuplicateKey('duplicate key value violates unique constraint "calls_identity"')

        transaction = cast(Transaction, connection)
        transaction.unsent.append(insert)

    def claim(self, call_id: UUID, claim: ClaimRequest) -> Call | None:
        return self._postgres.statement(f"claim for {claim.step}", lambda: self._claim(call_id, claim), call_id)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[database.Connection]:
        transaction = Transaction()
        self._postgres.connected(transaction.end)
        try:
            yield cast(database.Connection, transaction)
            self._postgres.statement("commit", lambda: self._commit(transaction))
        finally:
            transaction.end()

    def lock(self, connection: database.Connection, call_id: UUID) -> Call | None:
        return self._postgres.statement("lock", lambda: self._lock(cast(Transaction, connection), call_id), call_id)

    def lock_organization(self, connection: database.Connection, organization_id: int) -> None:
        self._postgres.statement(
            "lock organization",
            lambda: self.locks.acquire(cast(Transaction, connection), ("organization", organization_id)),
        )

    def slots_used(self, connection: database.Connection, organization_id: int) -> int:
        def taken() -> int:
            self.counted_at[organization_id] = self.now()
            return self.slots_used_now(organization_id)

        return self._postgres.statement("count slots", taken)

    def save_in(
        self,
        connection: database.Connection,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
    ) -> Call | None:
        transaction, call_id = cast(Transaction, connection), changes[0].before.call_id

        def save() -> Call | None:
            if not transaction.holds(call_id):
                self.locks.acquire(transaction, call_id)
            row = self.rows.get(call_id)
            if row is None or not _may_save(row, changes, claim, self.now()):
                return None
            after = changes[-1].after
            self._check_run(after)
            transaction.writes.append(lambda: self._write(row, changes, owner, claim, timeline))
            return replace(after, lock_version=after.lock_version + 1)

        return self._postgres.statement("save_in", save)

    def save(
        self, changes: Sequence[Change], *, timeline: Sequence[TimelineEntry], owner: str, claim: ClaimRequest | None
    ) -> Call | None:
        names = ", ".join(type(change.fact).__name__ for change in changes)
        return self._postgres.statement(
            f"save {names}", lambda: self._save(changes, timeline, owner, claim), changes[0].before.call_id
        )

    def overdue(self, limit: int) -> list[Call]:
        return self._postgres.statement("overdue", lambda: self.overdue_now()[:limit])

    def release(self, call_id: UUID, owner: str) -> None:
        self._postgres.statement("release", lambda: self._release(call_id, owner), call_id)

    def append_new(self, timeline: Sequence[TimelineEntry], *, connection_id: int, within: timedelta) -> None:
        self._postgres.statement("append new", lambda: None)

    def open_calls(self, connection: ConnectionVersion) -> list[OpenCall]:
        return self._postgres.statement("open_calls", lambda: self._open(connection.connection_id))

    def append_timeline(
        self, timeline: Sequence[TimelineEntry], *, call: Call | None = None, connection_id: int | None = None
    ) -> None:
        def note() -> None:
            if call is not None:
                self.timeline_rows[call.call_id] += len(timeline)

        self._postgres.statement("note", note)

    # ── the rules ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def request_of(self, connection_id: int, channel_id: str) -> Call | None:
        """Return the newest call whose leg the product originates under this id."""
        found = [
            row.call
            for row in self.rows.values()
            if row.call.request_id is not None
            and (row.call.connection_id, row.call.channel_id) == (connection_id, channel_id)
        ]
        return max(found, key=lambda call: call.received_at, default=None)

    def slots_used_now(self, organization_id: int, *, besides: Collection[UUID] = ()) -> int:
        """Return how many slots the organization's calls use, some of the calls aside."""
        since = self.now() - timedelta(seconds=states.ENDING_SLOT_SECONDS)
        return sum(
            call.state in states.USES_SLOT
            or (call.state is State.ENDING and call.workflow_id is not None and (call.ending_at or since) > since)
            for call in (row.call for row in self.rows.values())
            if call.organization_id == organization_id and call.call_id not in besides
        )

    def newest(self, connection_id: int, channel_id: str, channel_created: str) -> Call | None:
        """Return the newest call of a channel."""
        found = self._entries.get((connection_id, channel_id, channel_created))
        return self.rows[found[-1]].call if found else None

    def overdue_now(self) -> list[Call]:
        """Return unclaimed calls past their deadline, the longest overdue first."""
        now = self.now()
        late = [
            (row.call.deadline_at, row.call)
            for row in self.rows.values()
            if row.call.state is not State.ENDED and row.call.deadline_at is not None and row.call.deadline_at <= now
            and _is_free(row, now)
        ]  # fmt: skip
        return [call for _, call in sorted(late, key=lambda found: (found[0], found[1].call_id))]

    def _call(self, call_id: UUID) -> Call | None:
        row = self.rows.get(call_id)
        return row.call if row is not None else None

    def _insert(
        self, call: Call, claim: ClaimRequest | None, changes: Sequence[Change], transaction: Transaction | None
    ) -> bool:
        keys = _unique(changes[-1].after if changes else call)
        if transaction is not None and any(transaction.holds(key) for key in keys):
            return False
        self.locks.wait(*keys)
        if any(keys & _unique(row.call) for row in self.rows.values()):
            return False
        if transaction is None:
            self._add(call, claim, changes)
        else:
            self.locks.acquire(transaction, *keys)
            transaction.writes.append(lambda: self._add(call, claim, changes))
        return True

    def _add(self, call: Call, claim: ClaimRequest | None, changes: Sequence[Change]) -> None:
        row = self.rows[call.call_id] = Row(changes[-1].after if changes else call, self.now())
        if claim is not None:
            row.take(claim, self.now())
        self.timeline_rows[call.call_id] += 1 + len(changes)
        self._file(call)
        self.quick_admissions += any(isinstance(change.fact, facts.RunCreated) for change in changes)
        self._watch(None, call, None)
        for change in changes:
            self._watch(change.before, change.after, change.fact)

    def _file(self, call: Call) -> None:
        entries = self._entries.setdefault((call.connection_id, call.channel_id, call.channel_created), [])
        entries.append(call.call_id)
        entries.sort(key=lambda other: self.rows[other].call.entry)

    def _check_run(self, call: Call) -> None:
        """A run belongs to one call."""
        run_id = call.workflow_run_id
        others = (row.call for row in self.rows.values() if row.call.call_id != call.call_id)
        if run_id is not None and any(other.workflow_run_id == run_id for other in others):
            raise errors.DuplicateKey('duplicate key value violates unique constraint "calls_run"')

    def _claim(self, call_id: UUID, claim: ClaimRequest) -> Call | None:
        row = self._unlocked(call_id)
        now = self.now()
        if row is None or row.call.state is not steps.STEPS[claim.step].state or not _is_free(row, now):
            return None
        row.take(claim, now)
        row.changed_at = now
        row.call = replace(row.call, lock_version=row.call.lock_version + 1)
        return row.call

    def _save(
        self, changes: Sequence[Change], timeline: Sequence[TimelineEntry], owner: str, claim: ClaimRequest | None
    ) -> Call | None:
        row = self._unlocked(changes[0].before.call_id)
        if row is None or not _may_save(row, changes, claim, self.now()):
            return None
        self._check_run(changes[-1].after)
        self._write(row, changes, owner, claim, timeline)
        return row.call

    def _write(
        self,
        row: Row,
        changes: Sequence[Change],
        owner: str,
        claim: ClaimRequest | None,
        timeline: Sequence[TimelineEntry],
    ) -> None:
        before, after, now = row.call, changes[-1].after, self.now()
        if not _is_free(row, now) and row.claim_owner != owner:
            self.overruled(row, changes, owner)
        self.unverified_ends += after.unverified and not before.unverified
        self.timeline_rows[after.call_id] += sum(map(len, worth_writing(timeline, changes)))
        if claim is not None:
            row.take(claim, now)
        elif before.state is not after.state or (owner and row.claim_owner == owner):
            row.claim_owner = row.claim_until = None
        row.call = replace(after, lock_version=before.lock_version + 1)
        row.changed_at = now
        if after.channel_created != before.channel_created:
            self._entries[before.connection_id, before.channel_id, before.channel_created].remove(before.call_id)
            self._file(after)
        for change in changes[:-1]:
            self._watch(change.before, change.after, change.fact)
        self._watch(changes[-1].before, row.call, changes[-1].fact)

    def _release(self, call_id: UUID, owner: str) -> None:
        row = self._unlocked(call_id)
        if row is not None and row.claim_owner == owner:
            row.claim_owner = row.claim_until = None
            row.call, row.changed_at = replace(row.call, lock_version=row.call.lock_version + 1), self.now()

    def _open(self, connection_id: int) -> list[OpenCall]:
        now = self.now()
        return [
            OpenCall(call=row.call, changed_at=row.changed_at, is_claimed=not _is_free(row, now))
            for row in self.rows.values()
            if row.call.connection_id == connection_id and row.call.state is not State.ENDED
        ]

    def _lock(self, transaction: Transaction, call_id: UUID) -> Call | None:
        self.locks.acquire(transaction, call_id)
        return self._call(call_id)

    def _commit(self, transaction: Transaction) -> None:
        for statement in transaction.unsent:
            statement()
        for write in transaction.writes:
            write()

    def _unlocked(self, call_id: UUID) -> Row | None:
        """Return a row once no transaction has locked it."""
        self.locks.wait(call_id)
        return self.rows.get(call_id)


def _unique(call: Call) -> set[tuple[object, ...]]:
    """Return the unique keys of a call."""
    keys: set[tuple[object, ...]] = {
        ("id", call.call_id),
        ("entry", call.connection_id, call.channel_id, call.channel_created, call.entry),
    }
    if call.request_id is not None:
        keys.add(("request", call.connection_id, call.request_id))
    if call.workflow_run_id is not None:
        keys.add(("run", call.workflow_run_id))
    return keys


def _is_free(row: Row, now: datetime) -> bool:
    return row.claim_until is None or row.claim_until <= now


def _may_save(row: Row, changes: Sequence[Change], claim: ClaimRequest | None, now: datetime) -> bool:
    before, after = changes[0].before, changes[-1].after
    is_unchanged = row.call.lock_version == before.lock_version
    return is_unchanged and (claim is None or before.state is not after.state or _is_free(row, now))
