"""The port to the store of calls. `postgres_calls.PostgresCalls` is the adapter; the simulation has one in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from shared import errors
from shared.call.calls import Call, Change
from shared.call.ids import ConnectionVersion
from shared.call.steps import Step
from shared.storage import database, owners
from shared.storage.timeline import TimelineEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """A claim to take: who, for which step, for how long."""

    owner: str
    step: Step
    duration: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCall:
    """A call that has not ended."""

    call: Call
    #: When its row was last written, claims included.
    changed_at: datetime
    is_claimed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedCall:
    """A call with a claim that stands."""

    call: Call
    owner: str

    @property
    def worker(self) -> str:
        """The worker that has claimed it."""
        return owners.process_of(self.owner)


class CallStore(Protocol):
    """Calls, their claims and their timeline. Times are of the store's own clock."""

    def now(self) -> datetime:
        """Return the store's clock."""

    def load(self, call_id: UUID) -> Call | None:
        """Return the call as it is."""

    def load_all(self, call_ids: Collection[UUID]) -> Mapping[UUID, Call | errors.CallUnreadable]:
        """Return those calls that there are, by one statement: its size is the caller's to bound."""

    def last_entry(self, connection_id: int, channel_id: str, channel_created: str) -> Call | None:
        """Return the newest call of a channel, by any connection of the organization in the same app instance."""

    def originated(self, connection_id: int, channel_id: str) -> Call | None:
        """Return the newest call whose leg the product originates under this id, answered or not."""

    def originated_all(
        self, connection_id: int, channel_ids: Collection[str]
    ) -> Mapping[str, Call | errors.CallUnreadable]:
        """As `originated`, for several channels by one statement."""

    def transferred(self, connection_id: int, channel_id: str) -> Call | None:
        """Return the newest call whose caller was transferred to this leg."""

    def replaced_by(self, connection_id: int, channel_id: str) -> Call | None:
        """Return the newest call in which this channel has taken the place of the caller's leg, by whatever time."""

    def of_channel(self, connection_id: int, channel_id: str) -> Call | None:
        """Return the newest call of a channel whose creation time is not known."""

    def requested(self, organization_id: int, request_id: str) -> Call | None:
        """Return the first call that this request of an organization has led to."""

    def is_requested(self, connection: database.Connection, organization_id: int, request_id: str) -> bool:
        """Return whether there is such a call: exact until the transaction ends, under the organization's lock."""

    def insert(
        self,
        call: Call,
        timeline: Iterable[TimelineEntry],
        claim: ClaimRequest | None,
        *,
        changes: Sequence[Change] = (),
    ) -> bool:
        """Write a new call; return False when it was there already.

        Args:
            call: As it came.
            changes: What facts have made of it since: it is written as they leave it, with a timeline row for each.
        """

    def insert_in(
        self,
        connection: database.Connection,
        call: Call,
        timeline: Iterable[TimelineEntry] = (),
        claim: ClaimRequest | None = None,
        *,
        changes: Sequence[Change] = (),
    ) -> bool:
        """As `insert`, inside a transaction."""

    def insert_with_commit(
        self,
        connection: database.Connection,
        call: Call,
        timeline: Iterable[TimelineEntry],
        claim: ClaimRequest | None,
        *,
        changes: Sequence[Change],
    ) -> None:
        """As `insert_in`, in one round trip with the commit: that raises DuplicateKey when the call was there already.

        Everything else that the transaction has written is undone by that as well.
        """

    def claim(self, call_id: UUID, claim: ClaimRequest) -> Call | None:
        """Claim the call for a step; return None when it is in another state, or claimed already."""

    def transaction(self) -> AbstractContextManager[database.Connection]:
        """Open a transaction, for writes that must happen together."""

    def lock(self, connection: database.Connection, call_id: UUID) -> Call | None:
        """Return the call, its row locked until the transaction ends."""

    def lock_organization(self, connection: database.Connection, organization_id: int) -> None:
        """Serialize the organization's admissions from the next statement until the transaction ends.

        Under this lock, never wait for the row of another call: its holder may be waiting for this lock.
        """

    def slots_used(self, connection: database.Connection, organization_id: int) -> int:
        """Return how many slots the organization's calls use: exact until the transaction ends, under its lock."""

    def save_with_commit(
        self,
        connection: database.Connection,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
    ) -> Callable[[], Call]:
        """As `save`, in one round trip with the commit: that raises RowChanged on a version conflict.

        Everything else that the transaction has written is undone by that as well.

        Returns:
            What returns the call once it is committed.
        """

    def save(
        self,
        changes: Sequence[Change],
        *,
        timeline: Sequence[TimelineEntry],
        owner: str,
        claim: ClaimRequest | None,
        keeps_claim: bool = False,
    ) -> Call | None:
        """Write what facts made of a call, one after the other; return None on a version conflict.

        Args:
            owner: The owner whose claim ends with this write; every claim ends when the state changes.
            claim: The claim to take instead. It never replaces another worker's claim in the same state.
            keeps_claim: The owner's claim goes on; nothing is written if it is over.
        """

    def release(self, call_id: UUID, owner: str) -> None:
        """End a claim without a result."""

    def append_timeline(
        self, timeline: Sequence[TimelineEntry], *, call: Call | None = None, connection_id: int | None = None
    ) -> None:
        """Write timeline entries by themselves. Of what repeats without end, some are counted and not written."""

    def append_once(self, entry: TimelineEntry, *, call: Call) -> bool:
        """Write an entry of a call, unless it has one of this name; return whether it was written."""

    def append_new(self, timeline: Sequence[TimelineEntry], *, connection_id: int, within: timedelta) -> None:
        """Write those entries of a connection that do not repeat one written within this time."""

    def is_noted(self, entry: TimelineEntry, *, connection_id: int, within: timedelta) -> bool:
        """Return True if this entry of a connection was written within this time, as one of its newest."""

    def open_calls(self, connection: ConnectionVersion) -> list[OpenCall]:
        """Return the organization's open calls in the app instance of a connection version."""
