"""Transactions, the locks they hold, and how to undo a commit: a standby that takes over may lack the last ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar
from uuid import UUID

from shared import errors
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
class Transaction:
    """The writes of a transaction, done at its commit, and the locks that it releases at its end."""

    writes: list[Callable[[], None]] = field(default_factory=list)
    #: Statements that travel with the commit.
    unsent: list[Callable[[], None]] = field(default_factory=list)
    releases: list[Callable[[], None]] = field(default_factory=list)
    #: How often the server had failed over when it began.
    generation: int = 0
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


@dataclass(frozen=True, slots=True)
class Write:
    """A row that was written, by which commit, and how to undo it."""

    commit: int
    #: None for a row of another table.
    call_id: UUID | None
    undo: Callable[[], object]


class CommitLog:
    """The commits of a database server."""

    def __init__(self) -> None:
        self._writes: list[Write] = []
        self._commits = 0
        self._is_committing = False

    @contextlib.contextmanager
    def one_commit(self) -> Iterator[None]:
        """Take the writes in this block for one commit."""
        self._commits += 1
        self._is_committing = True
        try:
            yield
        finally:
            self._is_committing = False

    def note(self, call_id: UUID | None, undo: Callable[[], object]) -> None:
        """Note how to undo a write that is about to be made: in the commit that goes on, or one of its own."""
        if not self._is_committing:
            self._commits += 1
        self._writes.append(Write(self._commits, call_id, undo))

    def number_of(self, call_id: UUID) -> int:
        """Return how many commits have written a call."""
        return len(self._of(call_id))

    def undo(self, call_id: UUID, count: int) -> None:
        """Undo the last commits that have written a call, and every other commit since the first of these."""
        first = sorted(self._of(call_id))[-count]
        while self._writes and self._writes[-1].commit >= first:
            self._writes.pop().undo()

    def _of(self, call_id: UUID) -> set[int]:
        return {write.commit for write in self._writes if write.call_id == call_id}
