"""The calls that did not end well, by organization and fault: since when, until when, and of how many."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.call.states import Fault, Outcome
from shared.storage import database

#: Of the calls of the time the newest are looked at: what it costs has a bound at any load.
MOST_CALLS = 20_000

#: By `calls_by_time`.
_LOSSES = f"""
WITH recent AS MATERIALIZED (
    SELECT organization_id, outcome, fault, reason, received_at, connected_at FROM ari.calls
    WHERE received_at >= now() - %(seconds)s * interval '1 second' ORDER BY received_at DESC LIMIT {MOST_CALLS}
), every AS (
    SELECT organization_id, count(*) AS received,
           max(received_at) FILTER (WHERE connected_at IS NOT NULL) AS last_connected_at
    FROM recent GROUP BY organization_id
)
SELECT organization_id, coalesce(fault, '{Fault.UNKNOWN}') AS fault, count(*) AS lost, received,
       min(received_at) AS first_at, max(received_at) AS last_at, last_connected_at,
       mode() WITHIN GROUP (ORDER BY reason) AS reason
FROM recent JOIN every USING (organization_id) WHERE outcome <> '{Outcome.COMPLETED}'
GROUP BY organization_id, 2, received, last_connected_at ORDER BY lost DESC, organization_id, fault
"""  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The calls of one organization that one part is at fault for."""

    organization_id: int
    #: Failure class, as `arictl calls --fault` takes it.
    fault: str
    lost: int
    #: The organization's calls of the time, lost or not.
    received: int
    #: When the first and the last of the lost calls were received.
    first_at: datetime
    last_at: datetime
    #: When the last call of the organization was received that was connected; None: none was.
    last_connected_at: datetime | None
    #: The most frequent one.
    reason: str


def read(db: database.Database, within: timedelta) -> tuple[Loss, ...]:
    """Return the losses of the calls received within a time, the largest first. Raises DatabaseUnavailable."""
    with db.connection() as connection:
        rows = connection.execute(_LOSSES, {"seconds": within.total_seconds()}).fetchall()
    return tuple(Loss(**row | {"reason": row["reason"] or ""}) for row in rows)
