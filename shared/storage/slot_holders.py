"""The calls that hold a slot at the platform, as far as the scheduler compares them: a few columns of many rows."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from shared.call import states
from shared.storage import database

#: A call is compared once its admission has had this time.
_ADMITTED_SECONDS = 5
#: The platform drops the slot of an older call.
_OLDEST_SECONDS = 1200
#: As long as a leg may ring, and its end be looked for.
_UNANSWERED_SECONDS = 300

#: Calls that may hold a slot. One that ends holds it until its legs are gone, as ours do. After a transfer the platform
#: has given it back.
_HOLDERS = f"""
SELECT call_id, organization_id, channel_id, channel_created, entry, workflow_run_id,
       state <> 'ending' AND workflow_run_id IS NOT NULL AND destination_id IS NULL
           AND received_at BETWEEN clock_timestamp() - interval '{_OLDEST_SECONDS} seconds'
                               AND clock_timestamp() - interval '{_ADMITTED_SECONDS} seconds' AS needs_one,
       extract(epoch FROM clock_timestamp() - received_at)::float AS age_seconds
FROM ari.calls
WHERE state <> 'ended'
  AND (state <> 'ending' OR ending_at > clock_timestamp() - interval '{states.ENDING_SLOT_SECONDS} seconds')
"""  # noqa: S608 - built from constants

#: Legs that the platform originated, and that were not answered: their slots are the platform's.
_UNANSWERED = f"""
SELECT workflow_run_id, call_id FROM ari.calls
WHERE received_at > clock_timestamp() - interval '{_OLDEST_SECONDS + _UNANSWERED_SECONDS} seconds'
  AND state = 'ended' AND direction = 'outbound' AND connected_at IS NULL AND workflow_run_id IS NOT NULL
"""  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHolder:
    """A call that may hold a slot."""

    call_id: UUID
    organization_id: int
    channel_id: str
    channel_created: str
    entry: int
    workflow_run_id: int | None
    #: It is to have a slot, and lacks it if there is none.
    needs_one: bool
    age_seconds: float


class SlotHolders:
    """Reads them."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def all(self) -> list[SlotHolder]:
        """Return every call that may hold a slot."""
        with self._db.connection() as connection:
            rows = connection.execute(_HOLDERS).fetchall()
        return [SlotHolder(**row) for row in rows]

    def unanswered(self) -> dict[int, UUID]:
        """Return the calls of the last minutes that were dialled and not answered, by their runs."""
        with self._db.connection() as connection:
            rows = connection.execute(_UNANSWERED).fetchall()
        return {row["workflow_run_id"]: row["call_id"] for row in rows}
