"""The rows of ari.calls, as the simulation keeps them in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from shared.call.calls import Call, Change
from shared.storage.call_store import ClaimRequest


@dataclass(slots=True)
class Row:
    """One row of ari.calls."""

    call: Call
    changed_at: datetime
    claim_owner: str | None = None
    claim_until: datetime | None = None
    #: The owner of every claim that the call ever had, and when its last claim ends or would have ended.
    owners: dict[str, datetime] = field(default_factory=dict)
    #: Those of them whose last claim was broken: their worker counted as dead.
    broken: set[str] = field(default_factory=set)

    def take(self, claim: ClaimRequest, now: datetime) -> None:
        """Let an owner have the call for a while."""
        self.claim_owner, self.claim_until = claim.owner, now + claim.duration
        self.owners[claim.owner] = self.claim_until
        self.broken.discard(claim.owner)


def is_free(row: Row, now: datetime) -> bool:
    """True if no claim of the call stands."""
    return row.claim_until is None or row.claim_until <= now


def may_save(row: Row, changes: Sequence[Change], claim: ClaimRequest | None, now: datetime) -> bool:
    """True if the compare-and-set of these changes succeeds."""
    before, after = changes[0].before, changes[-1].after
    is_unchanged = row.call.lock_version == before.lock_version
    return is_unchanged and (claim is None or before.state is not after.state or is_free(row, now))
