"""Quotas in Postgres: our limits for each organization, and what its calls use, counted from the calls themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from shared.call import calls, facts, quota_rules
from shared.call.calls import Call
from shared.call.quota_rules import Quota
from shared.platform.ports import PlatformLimits
from shared.storage import database

#: Whether a call takes up a slot. A refused call never had one, however long its legs take to go.
TAKES_SLOT = f"""(
    state <> 'ended' AND (
        state IN ('{"', '".join(sorted(calls.TAKES_SLOT))}')
        OR state = 'ending' AND workflow_id IS NOT NULL
           AND ending_at > clock_timestamp() - interval '{calls.ENDING_SLOT_SECONDS} seconds')
)"""

_COLUMNS = [field.name for field in fields(Quota)]
_SELECT = ", ".join(_COLUMNS)
_SET = ", ".join(f"{name} = %({name})s" for name in _COLUMNS if name != "organization_id")

#: The part of each call that lies in the month: of calls that ended since a moment, and of live ones up to now. And how
#: much of that does not change any more: what ended until another moment.
_TALK_SECONDS = """
SELECT coalesce(sum(seconds), 0)::float AS seconds,
       coalesce(sum(seconds) FILTER (WHERE ending_at <= %(until)s), 0)::float AS settled
FROM (
    SELECT ending_at, extract(epoch FROM ending_at - greatest(connected_at, %(month)s)) AS seconds FROM ari.calls
    WHERE organization_id = %(organization_id)s AND connected_at IS NOT NULL AND ending_at > %(since)s
    UNION ALL
    SELECT NULL, extract(epoch FROM greatest(%(now)s, connected_at) - greatest(connected_at, %(month)s)) FROM ari.calls
    WHERE organization_id = %(organization_id)s AND connected_at IS NOT NULL AND ending_at IS NULL
) AS talks
"""

#: No write of a call is on its way for as long as this: what has ended before it is there to be read.
_SETTLES = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settled:
    """What the calls had talked in a month that ended by a moment. It does not change any more."""

    month: datetime
    until: datetime
    seconds: float


class Quotas:
    """Reads and changes our limits; as the adapter `sql` of the quota port, refuses by them.

    Args:
        now: Postgres's clock.
    """

    def __init__(self, db: database.Database, *, now: Callable[[], datetime]) -> None:
        self._db = db
        self._now = now
        # By organization, so that a month's calls are summed up once and not for each new one.
        self._settled: dict[int, _Settled] = {}

    def refusal(self, call: Call, *, user_id: int, budget: object) -> facts.Refused | None:
        """Why the call may not be served, by our limits; None when it may."""
        quota = self.of(call.organization_id)
        limited = quota.minutes_per_month is not None and not quota.blocked
        return quota_rules.exhausted(quota, used_seconds=self.used_seconds(call.organization_id) if limited else 0.0)

    def of(self, organization_id: int) -> Quota:
        """An organization's limits; without a row it has none."""
        with self._db.connection() as connection:
            row = connection.execute(
                f"SELECT {_SELECT} FROM ari.quotas WHERE organization_id = %s",  # noqa: S608 - built from constants
                [organization_id],
            ).fetchone()
        return Quota(**row) if row is not None else Quota(organization_id=organization_id)

    def all(self) -> list[Quota]:
        """Every organization's limits that has any."""
        with self._db.connection() as connection:
            rows = connection.execute(f"SELECT {_SELECT} FROM ari.quotas ORDER BY organization_id").fetchall()  # noqa: S608 - built from constants
        return [Quota(**row) for row in rows]

    def used_seconds(self, organization_id: int) -> float:
        """What an organization's calls have talked this month, live ones included."""
        now = self._now()
        month = quota_rules.month_start(now)
        settled = self._settled.get(organization_id)
        if settled is None or settled.month != month:
            settled = _Settled(month=month, until=month, seconds=0.0)
        until = max(settled.until, now - _SETTLES)
        values = {
            "organization_id": organization_id, "now": now, "month": month, "since": settled.until, "until": until,
        }  # fmt: skip
        with self._db.connection() as connection:
            row = connection.execute(_TALK_SECONDS, values).fetchone()
        assert row is not None
        self._settled[organization_id] = _Settled(month=month, until=until, seconds=settled.seconds + row["settled"])
        return float(settled.seconds + row["seconds"])

    def change(self, organization_id: int, changes: dict[str, Any]) -> Quota:
        """Changes some of an organization's limits and keeps the others; gives back what they are now."""
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
        """Lifts every limit of an organization; False when there was none."""
        with self._db.connection() as connection:
            removed = connection.execute("DELETE FROM ari.quotas WHERE organization_id = %s", [organization_id])
        return removed.rowcount > 0


class Slots:
    """How many slots an organization has: by our row, the platform's row, or the default.

    Args:
        default: Where neither row says anything; None for any number.
    """

    def __init__(self, own: Quotas, platform: PlatformLimits, *, default: int | None) -> None:
        self._own = own
        self._platform = platform
        self._default = default

    def of(self, organization_id: int) -> int | None:
        """None for any number."""
        own = self._own.of(organization_id).concurrent_calls
        return quota_rules.slots(own, self._platform.concurrent_calls(organization_id), self._default)
