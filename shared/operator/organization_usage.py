"""What organizations have used: calls, minutes and outcomes by day (UTC), their limits, and what is left of these."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Protocol

from shared import errors
from shared.call import faults
from shared.call.quota_rules import Quota
from shared.storage import database, quotas

#: Most days that are asked for at once.
MOST_DAYS = 92
#: Most organizations whose limits are looked up.
MOST_ORGANIZATIONS = 1000

#: Each text by an index of its own: `calls_by_time`, `calls_by_organization`.
_OF_ALL = f"""
SELECT organization_id, (received_at AT TIME ZONE 'UTC')::date AS day, coalesce(outcome, 'in progress') AS outcome,
       {faults.SQL} AS fault,
       count(*) AS calls, count(connected_at) AS connected,
       coalesce(sum(extract(epoch FROM coalesce(ending_at, now()) - connected_at)), 0)::float AS seconds
FROM ari.calls WHERE received_at >= %(since)s {{condition}}
GROUP BY organization_id, day, 3, 4 ORDER BY day DESC, organization_id, 3, 4
"""  # noqa: S608 - built from constants
_OF_ONE = _OF_ALL.format(condition="AND organization_id = %(organization)s")
_OF_EACH = _OF_ALL.format(condition="")


class PlatformLimits(Protocol):
    """The platform's own limits of many organizations. `dograh.Accounts` is the adapter."""

    def concurrent_calls_of(self, organization_ids: Collection[int]) -> Mapping[int, int | None]:
        """Return how many calls it allows at the same time: organization → limit, for those that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUsage:
    """One organization's calls that were received on one day, by UTC."""

    organization_id: int
    day: date
    calls: int
    connected: int
    #: Connected minutes, of calls in progress up to now.
    minutes: float
    #: Outcome, or `in progress` → calls.
    outcomes: Mapping[str, int] = field(default_factory=dict)
    #: Failure class → calls that have not ended well.
    faults: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """An organization's limits, and what is left; None without a limit."""

    organization_id: int
    blocked: bool
    #: Simultaneous calls: ours, the platform's, those in use, and those left by the lower limit.
    concurrent_calls: int | None
    platform_concurrent_calls: int | None
    calls_now: int
    calls_left: int | None
    #: Of the calendar month, by UTC.
    minutes_per_month: int | None
    minutes_this_month: float
    minutes_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of which days, what was used, and the limits of organizations that have any."""

    since: date
    days: tuple[DayUsage, ...]
    limits: tuple[Limits, ...]


def read(
    db: database.Database,
    own: quotas.Quotas,
    platform: PlatformLimits,
    *,
    days: int,
    organization: int | None = None,
    most: int = MOST_ORGANIZATIONS,
) -> Usage:
    """Return the usage of the last days, today's included.

    Args:
        days: 1 to `MOST_DAYS`.
        organization: Of this one alone; its limits are told even if it has none of ours.
        most: Most organizations whose limits are looked up.

    Raises:
        DatabaseUnavailable: Postgres is away, or so many days take too long: ask for fewer.
    """
    used = days_of(db, days=days, organization=organization)
    if organization is not None:
        limited: Collection[Quota] = [own.of(organization)]
    else:
        limited = own.all()[:most]
    return Usage(since=_first_day(days), days=used, limits=limits_of(own, platform, limited))


def days_of(db: database.Database, *, days: int, organization: int | None = None) -> tuple[DayUsage, ...]:
    """Return what was used, the newest day first. Arguments and errors as of `read`."""
    values: dict[str, object] = {"since": datetime.combine(_first_day(days), time(), UTC)}
    query = _OF_EACH
    if organization is not None:
        query, values = _OF_ONE, values | {"organization": organization}
    try:
        with db.connection() as connection:
            return _by_day(connection.execute(query, values).fetchall())
    except errors.DatabaseAway:
        raise
    except errors.DatabaseUnavailable as exc:
        raise errors.DatabaseUnavailable(f"{exc}: {days} days are too many at once, ask for fewer") from exc


def _first_day(days: int) -> date:
    return datetime.now(UTC).date() - timedelta(days=days - 1)


def _by_day(rows: list[database.Row]) -> tuple[DayUsage, ...]:
    grouped: dict[tuple[date, int], list[database.Row]] = {}
    for row in rows:
        grouped.setdefault((row["day"], row["organization_id"]), []).append(row)
    return tuple(
        DayUsage(
            organization_id=organization_id,
            day=day,
            calls=sum(row["calls"] for row in of),
            connected=sum(row["connected"] for row in of),
            minutes=round(sum(row["seconds"] for row in of) / 60, 1),
            outcomes=_summed(of, "outcome"),
            faults=_summed(of, "fault"),
        )
        for (day, organization_id), of in grouped.items()
    )


def _summed(rows: list[database.Row], column: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        if row[column] is not None:
            found[row[column]] = found.get(row[column], 0) + row["calls"]
    return found


def limits_of(own: quotas.Quotas, platform: PlatformLimits, limited: Collection[Quota]) -> tuple[Limits, ...]:
    """Return organizations' limits, and what is left, in their order. Raises DatabaseUnavailable."""
    organization_ids = [quota.organization_id for quota in limited]
    if not organization_ids:
        return ()
    theirs, used = platform.concurrent_calls_of(organization_ids), own.used_by_each(organization_ids)
    return tuple(_limits(quota, theirs.get(quota.organization_id), used[quota.organization_id]) for quota in limited)


def _limits(quota: Quota, theirs: int | None, used: quotas.Used) -> Limits:
    minutes = used.seconds / 60
    lower = min((limit for limit in (quota.concurrent_calls, theirs) if limit is not None), default=None)
    return Limits(
        organization_id=quota.organization_id,
        blocked=quota.blocked,
        concurrent_calls=quota.concurrent_calls,
        platform_concurrent_calls=theirs,
        calls_now=used.calls,
        calls_left=None if lower is None else max(0, lower - used.calls),
        minutes_per_month=quota.minutes_per_month,
        minutes_this_month=round(minutes, 1),
        minutes_left=(
            None if quota.minutes_per_month is None else round(max(0.0, quota.minutes_per_month - minutes), 1)
        ),
    )
