"""Quotas in Postgres: each organization's limits, and what its calls use, counted from the calls themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from shared.call import facts, quota_rules, states
from shared.call.calls import Call
from shared.call.quota_rules import Quota
from shared.storage import database

#: True for a call that uses a slot. A refused call never had one, however long its legs take to go.
USES_SLOT = f"""(
    state <> 'ended' AND (
        state IN ('{"', '".join(sorted(states.USES_SLOT))}')
        OR state = 'ending' AND workflow_id IS NOT NULL
           AND ending_at > clock_timestamp() - interval '{states.ENDING_SLOT_SECONDS} seconds')
)"""

#: Counted under the organization's lock, it is exact.
SLOTS_USED = f"SELECT count(*) AS used FROM ari.calls WHERE organization_id = %s AND {USES_SLOT}"  # noqa: S608 - built from constants

_COLUMNS = [field.name for field in fields(Quota)]
_SELECT = ", ".join(_COLUMNS)
_SET = ", ".join(f"{name} = %({name})s" for name in _COLUMNS if name != "organization_id")

#: A statement sums up so many ended calls at most: 10 to 30 ms (measured).
_PIECE = 10_000
#: No write of a call takes as long as this: calls that ended earlier are all there to be read, and do not change.
_FINAL_AFTER = timedelta(seconds=60)
#: A row of usage that ends earlier than this, or is followed by half a piece, is moved on.
_MOVE_AFTER = timedelta(seconds=120)

#: The seconds of the month: those in its row of usage, those of the calls that ended since the row's end, and those of
#: live calls up to now; of each call the part that lies in the month. The same statement moves the row on: what a row
#: says follows from its end alone, so it does not matter which of several processes writes it. Of those that look at
#: once only the first does. A piece has all calls that ended at its last moment.
_USED = """
WITH usage AS (
    SELECT until, seconds FROM ari.usage WHERE organization_id = %(organization_id)s AND month = %(month)s
), piece AS MATERIALIZED (
    SELECT ending_at, extract(epoch FROM ending_at - greatest(connected_at, %(month)s)) AS seconds FROM ari.calls
    WHERE organization_id = %(organization_id)s AND connected_at IS NOT NULL
      AND ending_at > coalesce((SELECT until FROM usage), %(month)s)
    ORDER BY ending_at FETCH FIRST %(piece)s ROWS WITH TIES
), summed AS (
    SELECT count(*) >= %(piece)s AS is_full, coalesce(sum(seconds), 0)::float AS seconds,
           coalesce(sum(seconds) FILTER (WHERE ending_at <= %(final)s), 0)::float AS final,
           least(%(final)s, CASE WHEN count(*) >= %(piece)s THEN max(ending_at) END) AS until,
           count(*) * 2 >= %(piece)s OR coalesce((SELECT until FROM usage), %(month)s) < %(stale)s AS is_behind
    FROM piece
), moved AS (
    INSERT INTO ari.usage AS kept (organization_id, month, until, seconds)
    SELECT %(organization_id)s, %(month)s, until, coalesce((SELECT seconds FROM usage), 0) + final
    FROM summed WHERE is_behind AND until > %(month)s
    ON CONFLICT (organization_id, month) DO UPDATE SET until = EXCLUDED.until, seconds = EXCLUDED.seconds
    WHERE kept.until = (SELECT until FROM usage) AND kept.until < EXCLUDED.until
), live AS (
    SELECT coalesce(sum(extract(epoch FROM greatest(%(now)s, connected_at) - greatest(connected_at, %(month)s))), 0)
           ::float AS seconds FROM ari.calls
    WHERE organization_id = %(organization_id)s AND connected_at IS NOT NULL AND ending_at IS NULL
)
SELECT coalesce((SELECT seconds FROM usage), 0) + summed.seconds + live.seconds AS seconds, is_full FROM summed, live
"""


#: What each of some organizations uses. Of one whose calls since its row's end are more than a few, `is_behind`.
_USED_BY_EACH = f"""
SELECT given.organization_id, slots.used AS calls, ended.is_behind,
       coalesce(usage.seconds, 0) + ended.seconds + live.seconds AS seconds
FROM unnest(%(organizations)s::integer[]) AS given (organization_id)
LEFT JOIN ari.usage ON usage.organization_id = given.organization_id AND usage.month = %(month)s
CROSS JOIN LATERAL (
    SELECT coalesce(sum(talked), 0)::float AS seconds, count(*) >= %(few)s AS is_behind FROM (
        SELECT extract(epoch FROM ending_at - greatest(connected_at, %(month)s)) AS talked FROM ari.calls
        WHERE organization_id = given.organization_id AND connected_at IS NOT NULL
          AND ending_at > coalesce(usage.until, %(month)s) ORDER BY ending_at LIMIT %(few)s
    ) AS piece
) AS ended
CROSS JOIN LATERAL (
    SELECT coalesce(sum(extract(epoch FROM greatest(%(now)s, connected_at) - greatest(connected_at, %(month)s))), 0)
           ::float AS seconds FROM ari.calls
    WHERE organization_id = given.organization_id AND connected_at IS NOT NULL AND ending_at IS NULL
) AS live
CROSS JOIN LATERAL (
    SELECT count(*) AS used FROM ari.calls WHERE organization_id = given.organization_id AND {USES_SLOT}
) AS slots
"""  # noqa: S608 - built from constants
#: So many calls of each organization are read at once: of a thousand of them in a second.
_FEW = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What an organization uses."""

    #: Slots, now.
    calls: int
    #: Seconds that its calls have talked this month, live ones included.
    seconds: float


class Quotas:
    """Reads and changes the product's limits; as the adapter `sql` of the quota port, refuses by them.

    Args:
        now: Postgres's clock.
    """

    asks_network = False

    def __init__(self, db: database.Database, *, now: Callable[[], datetime]) -> None:
        self._db = db
        self._now = now

    def refusal(self, call: Call, *, user_id: int, budget: object, quota: Quota | None = None) -> facts.Refused | None:
        """Return the refusal by the product's limits; None when the call may be served."""
        quota = quota or self.of(call.organization_id)
        limited = quota.minutes_per_month is not None and not quota.blocked
        return quota_rules.exhausted(quota, used_seconds=self.used_seconds(call.organization_id) if limited else 0.0)

    def is_about_runs(self) -> bool:
        """Return False: a call is judged before it has a run."""
        return False

    def authorization(self, call: Call, *, budget: object) -> facts.Refused | None:
        """Return None: it was judged already."""
        return None

    def of(self, organization_id: int) -> Quota:
        """Return an organization's limits; without a row it has none."""
        with self._db.connection() as connection:
            row = connection.execute(
                f"SELECT {_SELECT} FROM ari.quotas WHERE organization_id = %s",  # noqa: S608 - built from constants
                [organization_id],
            ).fetchone()
        return Quota(**row) if row is not None else Quota(organization_id=organization_id)

    def all(self) -> list[Quota]:
        """Return the limits of every organization that has any."""
        with self._db.connection() as connection:
            rows = connection.execute(f"SELECT {_SELECT} FROM ari.quotas ORDER BY organization_id").fetchall()  # noqa: S608 - built from constants
        return [Quota(**row) for row in rows]

    def used_seconds(self, organization_id: int) -> float:
        """Return the seconds that an organization's calls have talked this month, live ones included.

        The answer does not wait for a month that is not summed up yet: it is then too small, and a look adds a piece.
        """
        return self._look(organization_id)[0]

    def summed_seconds(self, organization_id: int) -> float:
        """As `used_seconds`, after all of the month is summed up: a month that no look has summed up takes seconds."""
        is_full = True
        while is_full:
            seconds, is_full = self._look(organization_id)
        return seconds

    def used_by_each(self, organization_ids: Collection[int]) -> dict[int, Used]:
        """Return what organizations use, by one statement.

        One whose calls of the month are not summed up is looked at by itself, which sums them up: as `summed_seconds`.
        """
        now = self._now()
        values = {"organizations": list(organization_ids), "now": now, "month": quota_rules.month_start(now),
                  "few": _FEW}  # fmt: skip
        with self._db.connection() as connection:
            rows = connection.execute(_USED_BY_EACH, values).fetchall()
        return {
            row["organization_id"]: Used(
                calls=row["calls"],
                seconds=self.summed_seconds(row["organization_id"]) if row["is_behind"] else row["seconds"],
            )
            for row in rows
        }

    def _look(self, organization_id: int) -> tuple[float, bool]:
        now = self._now()
        values = {
            "organization_id": organization_id, "now": now, "month": quota_rules.month_start(now), "piece": _PIECE,
            "final": now - _FINAL_AFTER, "stale": now - _MOVE_AFTER,
        }  # fmt: skip
        with self._db.connection() as connection:
            row = connection.execute(_USED, values).fetchone()
        assert row is not None
        return float(row["seconds"]), row["is_full"]

    def change(self, organization_id: int, changes: dict[str, Any]) -> Quota:
        """Change some of an organization's limits and keep the others; return all of them."""
        with self._db.transaction() as connection:
            connection.execute(
                "INSERT INTO ari.quotas (organization_id) VALUES (%s) ON CONFLICT DO NOTHING", [organization_id]
            )
            row = connection.execute(
                f"SELECT {_SELECT} FROM ari.quotas WHERE organization_id = %s FOR UPDATE",  # noqa: S608 - built from constants
                [organization_id],
            ).fetchone()
            assert row is not None
            quota = replace(Quota(**row), **changes)
            connection.execute(
                f"UPDATE ari.quotas SET {_SET}, changed_at = clock_timestamp()"  # noqa: S608 - built from constants
                " WHERE organization_id = %(organization_id)s",
                {name: getattr(quota, name) for name in _COLUMNS},
            )
        return quota

    def remove(self, organization_id: int) -> bool:
        """Remove every limit of an organization; return False when there was none."""
        with self._db.connection() as connection:
            removed = connection.execute("DELETE FROM ari.quotas WHERE organization_id = %s", [organization_id])
        return removed.rowcount > 0


class SlotCount(Protocol):
    """What counting slots asks of the store of calls."""

    def lock_organization(self, connection: database.Connection, organization_id: int) -> None:
        """Serialize the organization's admissions from the next statement until the transaction ends."""

    def slots_used(self, connection: database.Connection, organization_id: int) -> int:
        """Return how many slots the organization's calls use."""


def no_free_slot(
    store: SlotCount, connection: database.Connection, organization_id: int, slots: int | None
) -> facts.Refused | None:
    """Return the refusal of one more call when every slot is used; None when one is free.

    Admissions of one organization are serialized until the transaction on `connection` ends: of any number of calls
    that arrive at the same time, as many are admitted as there are slots. No network request may be made meanwhile.

    Args:
        slots: How many the organization has; None for any number, then nothing is locked or counted.
    """
    if slots is None:
        return None
    store.lock_organization(connection, organization_id)
    used = store.slots_used(connection, organization_id)
    return quota_rules.no_free_slot(used=used, limit=slots)


class PlatformLimits(Protocol):
    """The platform's own limits. `dograh.Accounts` is the adapter."""

    def concurrent_calls(self, organization_id: int) -> int | None:
        """Return the limit of concurrent calls of an organization; None when there is none."""


class Slots:
    """How many slots an organization has: by the product's row, the platform's row, or the default.

    Args:
        default: Without either row; None for any number.
    """

    def __init__(self, own: Quotas, platform: PlatformLimits, *, default: int | None) -> None:
        self._own = own
        self._platform = platform
        self._default = default

    def of(self, organization_id: int) -> int | None:
        """Return the number of slots; None for any number."""
        own = self._own.of(organization_id).concurrent_calls
        return self.among(own, self._platform.concurrent_calls(organization_id))

    def among(self, own: int | None, platform: int | None) -> int | None:
        """Return the number of slots by limits that were read already; None for any number."""
        return quota_rules.slots(own, platform, self._default)
