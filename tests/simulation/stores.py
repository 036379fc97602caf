"""The store of calls in memory: the rules of `postgres_calls.PostgresCalls`, row locks and transactions included.

A property test compares the two: test_stores.py.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import cast
from uuid import UUID

from shared import errors
from shared.call import facts, states, steps
from shared.call.calls import Call, Change
from shared.call.ids import ConnectionVersion
from shared.call.states import State
from shared.storage import database
from shared.storage.call_store import ClaimedCall, ClaimRequest, OpenCall
from shared.storage.timeline import TimelineEntry, worth_writing
from tests.simulation.commits import CommitLog, Locks, Postgres, Transaction
from tests.simulation.rows import Row, is_free, may_save


class MemoryStore:
    """Calls and their claims; of the timeline only the number of rows.

    Args:
        watch: Called with each change of a call: before (None for a new call), after, and the fact.
        app_of: Returns the organization and the app instance of a connection; by default each has its own.
    """

    def __init__(
        self,
        postgres: Postgres,
        watch: Callable[[Call | None, Call, facts.Fact | None], None],
        *,
        app_of: Callable[[int], tuple[Hashable, Hashable]] = lambda connection_id: (connection_id, connection_id),
    ) -> None:
        self._postgres = postgres
        self._watch = watch
        self._app_of = app_of
        self.locks = Locks(postgres)
        self.rows: dict[UUID, Row] = {}
        #: When an organization's slots were last counted for an admission.
        self.counted_at: dict[int, datetime] = {}
        self._entries: dict[tuple[object, str, str], list[UUID]] = {}
        self._version = 0
        self.log = CommitLog()
        #: How often the server has failed over.
        self._generation = 0
        #: Call → how many rows its timeline has.
        self.timeline_rows: Counter[UUID] = Counter()
        #: How often calls were written with their admission.
        self.quick_admissions = 0
        #: Called before changes are written against a claim that stands: with the row, and the owner that writes them,
        #: which is empty for a writer without a claim.
        self.overruled: Callable[[Row, Sequence[Change], str], None] = lambda _row, _changes, _owner: None
        #: How often the claim of a dead worker was broken.
        self.broken_claims = 0
        self.connection_notes: dict[tuple[int, TimelineEntry], datetime] = {}
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
        return self._newest("transferred", connection_id, lambda call: call.destination_id == channel_id)

    def replaced_by(self, connection_id: int, channel_id: str) -> Call | None:
        return self._newest("replaced by", connection_id, lambda call: channel_id in call.replacements)

    def of_channel(self, connection_id: int, channel_id: str) -> Call | None:
        return self._newest("of channel", connection_id, lambda call: call.channel_id == channel_id)

    def _newest(self, what: str, connection_id: int, matches: Callable[[Call], bool]) -> Call | None:
        return self._postgres.statement(what, lambda: self._newest_now(connection_id, matches))

    def _newest_now(self, connection_id: int, matches: Callable[[Call], bool]) -> Call | None:
        app = self._app_of(connection_id)
        calls = (row.call for row in self.rows.values() if self._app_of(row.call.connection_id) == app)
        return max(filter(matches, calls), key=lambda call: call.received_at, default=None)

    def requested(self, organization_id: int, request_id: str) -> Call | None:
        return self._postgres.statement("requested", lambda: self._requested(organization_id, request_id))

    def is_requested(self, connection: database.Connection, organization_id: int, request_id: str) -> bool:
        return self.requested(organization_id, request_id) is not None

    def _requested(self, organization_id: int, request_id: str) -> Call | None:
        wanted = (organization_id, request_id)
        found = [one.call for one in self.rows.values() if (one.call.organization_id, one.call.request_id) == wanted]
        return min(found, key=lambda call: call.received_at, default=None)

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
        transaction = Transaction(generation=self._generation)
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

    def save_with_commit(
        self,
        connection: database.Connection,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
    ) -> Callable[[], Call]:
        transaction, call_id = cast(Transaction, connection), changes[0].before.call_id
        saved: list[Call] = []

        def save() -> None:
            if not transaction.holds(call_id):
                self.locks.acquire(transaction, call_id)
            row = self.rows.get(call_id)
            if row is None or not may_save(row, changes, claim, self.now()):
                raise errors.RowChanged("another process has written it since it was read")
            self._check_run(changes[-1].after)
            version = self.new_version(call_id)
            transaction.writes.append(lambda: self._write(row, changes, owner, claim, timeline, version=version))
            saved.append(replace(changes[-1].after, lock_version=version))

        transaction.unsent.append(save)
        return lambda: saved[0]

    def save(
        self,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
        keeps_claim: bool = False,
    ) -> Call | None:
        names = ", ".join(type(change.fact).__name__ for change in changes)
        return self._postgres.statement(
            f"save {names}",
            lambda: self._save(changes, timeline, owner, claim, keeps_claim=keeps_claim),
            changes[0].before.call_id,
        )

    def overdue(self, limit: int) -> list[Call]:
        return self._postgres.statement("overdue", lambda: self.overdue_now()[:limit])

    def claimed_by_others(self, workers: Collection[str], limit: int) -> list[ClaimedCall]:
        return self._postgres.statement("claims of others", lambda: self.claims_of_others(workers)[:limit])

    def release(self, call_id: UUID, owner: str) -> None:
        self._postgres.statement("release", lambda: self._release(call_id, owner), call_id)

    def append_new(self, timeline: Sequence[TimelineEntry], *, connection_id: int, within: timedelta) -> None:
        self._postgres.statement("append new", lambda: None)

    def is_noted(self, entry: TimelineEntry, *, connection_id: int, within: timedelta) -> bool:
        since, notes = self.now() - within, self.connection_notes
        return self._postgres.statement("is noted", lambda: notes.get((connection_id, entry), since) > since)

    def open_calls(self, connection: ConnectionVersion) -> list[OpenCall]:
        return self._postgres.statement("open_calls", lambda: self._open(connection.connection_id))

    def append_timeline(
        self, timeline: Sequence[TimelineEntry], *, call: Call | None = None, connection_id: int | None = None
    ) -> None:
        def note() -> None:
            if call is not None:
                self.timeline_rows[call.call_id] += len(timeline)
            elif connection_id is not None:
                self.connection_notes.update(dict.fromkeys(((connection_id, entry) for entry in timeline), self.now()))

        self._postgres.statement("note", note)

    def append_once(self, entry: TimelineEntry, *, call: Call) -> bool:
        self.append_timeline([entry], call=call)
        return True

    # ── a fail-over ───────────────────────────────────────────────────────────────────────────────────────────────────

    def lose(self, call_id: UUID, count: int) -> list[Call]:
        """Fail over to a server without a call's last commits, and any since. Return what has changed, as it was."""
        before = dict(self.rows)
        self.log.undo(call_id, count)
        self._generation += 1
        self._entries.clear()
        for row in self.rows.values():
            self._file(row.call)
        for one, row in self.rows.items():
            # Who had a claim is remembered: it may go on with it.
            row.owners |= before[one].owners if one in before else {}
        return [row.call for one, row in before.items() if self.rows.get(one) is not row]

    def _keep(self, call_id: UUID) -> None:
        row = self.rows.get(call_id)
        kept = replace(row, owners=dict(row.owners)) if row is not None else None
        self.log.note(call_id, lambda: self._restore(call_id, kept))

    def _restore(self, call_id: UUID, row: Row | None) -> None:
        if row is None:
            del self.rows[call_id]
        else:
            self.rows[call_id] = row

    def new_version(self, _call_id: UUID) -> int:
        """Return the lock version of a write of a call: no other write has it, nor one that was lost."""
        self._version += 1
        return self._version

    # ── the rules ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def request_of(self, connection_id: int, channel_id: str) -> Call | None:
        """Return the newest call whose leg the product originates under this id."""
        return self._newest_now(
            connection_id, lambda call: call.request_id is not None and call.channel_id == channel_id
        )

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
        entries = self._entries.get((self._app_of(connection_id), channel_id, channel_created))
        return self.rows[entries[-1]].call if entries else None

    def overdue_now(self) -> list[Call]:
        """Return unclaimed calls past their deadline, the longest overdue first."""
        now = self.now()
        late = [
            (row.call.deadline_at, row.call)
            for row in self.rows.values()
            if row.call.state is not State.ENDED and row.call.deadline_at is not None and row.call.deadline_at <= now
            and is_free(row, now)
        ]  # fmt: skip
        return [call for _, call in sorted(late, key=lambda found: (found[0], found[1].call_id))]

    def claims_of_others(self, workers: Collection[str]) -> list[ClaimedCall]:
        """Return calls that others than these workers have claimed."""
        now = self.now()
        claimed = (row for row in self.rows.values() if row.call.state is not State.ENDED and not is_free(row, now))
        found = (ClaimedCall(call=row.call, owner=row.claim_owner) for row in claimed if row.claim_owner is not None)
        return [each for each in found if each.worker not in workers]

    def _call(self, call_id: UUID) -> Call | None:
        row = self.rows.get(call_id)
        return row.call if row is not None else None

    def _insert(
        self, call: Call, claim: ClaimRequest | None, changes: Sequence[Change], transaction: Transaction | None
    ) -> bool:
        keys = self._unique(changes[-1].after if changes else call)
        if transaction is not None and any(transaction.holds(key) for key in keys):
            return False
        self.locks.wait(*keys)
        if any(keys & self._unique(row.call) for row in self.rows.values()):
            return False
        if transaction is None:
            self._add(call, claim, changes)
        else:
            self.locks.acquire(transaction, *keys)
            transaction.writes.append(lambda: self._add(call, claim, changes))
        return True

    def _add(self, call: Call, claim: ClaimRequest | None, changes: Sequence[Change]) -> None:
        self._keep(call.call_id)
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
        entries = self._entries_of(call)
        entries.append(call.call_id)
        entries.sort(key=lambda other: (self.rows[other].call.entry, self.rows[other].call.received_at))

    def _entries_of(self, call: Call) -> list[UUID]:
        of = (self._app_of(call.connection_id), call.channel_id, call.channel_created)
        return self._entries.setdefault(of, [])

    def _check_run(self, call: Call) -> None:
        """A run belongs to one call."""
        run_id = call.workflow_run_id
        others = (row.call for row in self.rows.values() if row.call.call_id != call.call_id)
        if run_id is not None and any(other.workflow_run_id == run_id for other in others):
            raise errors.DuplicateKey('duplicate key value violates unique constraint "calls_run"')

    def _claim(self, call_id: UUID, claim: ClaimRequest) -> Call | None:
        row = self._unlocked(call_id)
        now = self.now()
        if row is None or row.call.state is not steps.STEPS[claim.step].state or not is_free(row, now):
            return None
        self._keep(call_id)
        row.take(claim, now)
        row.changed_at = now
        row.call = replace(row.call, lock_version=self.new_version(call_id))
        return row.call

    def _save(
        self,
        changes: Sequence[Change],
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
        *,
        keeps_claim: bool,
    ) -> Call | None:
        row = self._unlocked(changes[0].before.call_id)
        if row is None or not may_save(row, changes, claim, self.now()):
            return None
        if keeps_claim and (is_free(row, self.now()) or row.claim_owner != owner):
            return None
        self._check_run(changes[-1].after)
        self._write(
            row, changes, owner, claim, timeline, version=self.new_version(row.call.call_id), keeps_claim=keeps_claim
        )
        return row.call

    def _write(
        self,
        row: Row,
        changes: Sequence[Change],
        owner: str,
        claim: ClaimRequest | None,
        timeline: Sequence[TimelineEntry],
        *,
        version: int,
        keeps_claim: bool = False,
    ) -> None:
        before, after, now = row.call, changes[-1].after, self.now()
        self._keep(before.call_id)
        if not is_free(row, now) and row.claim_owner != owner:
            self.overruled(row, changes, owner)
        # An owner who reports himself has something else to tell.
        if owner and isinstance(changes[-1].fact, facts.WorkerDied | facts.DeadlinePassed):
            self.broken_claims += 1
            row.broken.add(owner)
        self.unverified_ends += after.unverified and not before.unverified
        self.timeline_rows[after.call_id] += sum(map(len, worth_writing(timeline, changes)))
        if claim is not None:
            row.take(claim, now)
        elif not keeps_claim and (before.state is not after.state or (owner and row.claim_owner == owner)):
            row.claim_owner = row.claim_until = None
        row.call = replace(after, lock_version=version)
        row.changed_at = now
        if after.channel_created != before.channel_created:
            self._entries_of(before).remove(before.call_id)
            self._file(after)
        for change in changes[:-1]:
            self._watch(change.before, change.after, change.fact)
        self._watch(changes[-1].before, row.call, changes[-1].fact)

    def _release(self, call_id: UUID, owner: str) -> None:
        row = self._unlocked(call_id)
        if row is not None and row.claim_owner == owner:
            self._keep(call_id)
            row.claim_owner = row.claim_until = None
            row.call, row.changed_at = replace(row.call, lock_version=self.new_version(call_id)), self.now()

    def _open(self, connection_id: int) -> list[OpenCall]:
        now = self.now()
        return [
            OpenCall(call=row.call, changed_at=row.changed_at, is_claimed=not is_free(row, now))
            for row in self.rows.values()
            if self._app_of(row.call.connection_id) == self._app_of(connection_id) and row.call.state is not State.ENDED
        ]

    def _lock(self, transaction: Transaction, call_id: UUID) -> Call | None:
        self.locks.acquire(transaction, call_id)
        return self._call(call_id)

    def _commit(self, transaction: Transaction) -> None:
        if transaction.generation != self._generation:
            raise errors.DatabaseUnavailable("terminating connection: the server has failed over")
        with self.log.one_commit():
            for statement in transaction.unsent:
                statement()
            for write in transaction.writes:
                write()

    def _unlocked(self, call_id: UUID) -> Row | None:
        """Return a row once no transaction has locked it."""
        self.locks.wait(call_id)
        return self.rows.get(call_id)

    def _unique(self, call: Call) -> set[tuple[object, ...]]:
        """Return the unique keys of a call."""
        entry = (call.channel_id, call.channel_created, call.entry)
        organization, instance = self._app_of(call.connection_id)
        keys: set[tuple[object, ...]] = {
            ("id", call.call_id),
            ("entry", call.connection_id, *entry),
            ("entry of the app", organization, instance, *entry),
        }
        if call.state is not State.ENDED:
            keys.add(("open entry", instance, *entry))
        if call.request_id is not None:
            keys.add(("request", call.connection_id, call.request_id))
        if call.workflow_run_id is not None:
            keys.add(("run", call.workflow_run_id))
        return keys
