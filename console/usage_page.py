"""The page Usage: calls and minutes by day and organization, as a chart with its table, and what is left of limits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta

from starlette.responses import Response

from console import calls_page, queries
from console.pages import Page, Visit
from shared import errors
from shared.operator import organization_usage
from shared.operator.organization_usage import DayUsage
from shared.storage import database, quotas

PATH = "/usage"
#: Days that are shown unless the URL says otherwise, and those that are offered.
_DAYS = 14
OFFERED = (7, 14, 31, 92)
#: Rows of days, and organizations whose limits are looked up: a page has a bound, `arictl usage` tells all.
_MOST_ROWS = 300
_MOST_LIMITS = 50


def show(visit: Visit) -> Response:
    """Show the usage of the last days; of one organization, or of all together."""
    days = queries.number(visit, "days") or _DAYS
    if days > organization_usage.MOST_DAYS:
        raise errors.InvalidRequest(f"days is {organization_usage.MOST_DAYS} at most")
    organization = visit.organization_id if visit.organization_id is not None else queries.number(visit, "organization")
    db = visit.console.db
    own = quotas.Quotas(db, now=lambda: _now(db))
    limits = visit.console.platform.limits
    read = organization_usage.read(db, own, limits, days=days, organization=organization, most=_MOST_LIMITS)
    dates = [read.since + timedelta(days=number) for number in range(days)]
    return visit.render(
        "usage.html",
        usage=read,
        rows=[(day, _calls_of(visit, day)) for day in read.days[:_MOST_ROWS]],
        may_have_more_limits=len(read.limits) == _MOST_LIMITS,
        chart=json.dumps(_series(read.days, dates)),
        days=days,
        offered=OFFERED,
        organization="" if organization is None else organization,
        is_whole=visit.organization_id is None,
        total_calls=sum(day.calls for day in read.days),
        total_connected=sum(day.connected for day in read.days),
        total_minutes=sum(day.minutes for day in read.days),
    )


def _calls_of(visit: Visit, day: DayUsage) -> str:
    """Return the address of a day's calls."""
    values: dict[str, object] = {"since": day.day, "until": day.day + timedelta(days=1)}
    if visit.organization_id is None:
        values["organization"] = day.organization_id
    return queries.url(calls_page.PATH, values)


def _series(used: Iterable[DayUsage], dates: Sequence[date]) -> list[list[float]]:
    """Return the chart's columns: days as seconds since 1970, calls, minutes. A day without a call is 0."""
    calls, minutes = dict.fromkeys(dates, 0.0), dict.fromkeys(dates, 0.0)
    for each in used:
        if each.day in calls:
            calls[each.day] += each.calls
            minutes[each.day] += each.minutes
    at = [datetime.combine(day, time(), UTC).timestamp() for day in dates]
    return [at, [calls[day] for day in dates], [round(minutes[day], 1) for day in dates]]


def _now(db: database.Database) -> datetime:
    with db.connection() as connection:
        row = connection.execute("SELECT clock_timestamp() AS now").fetchone()
    assert row is not None
    now: datetime = row["now"]
    return now


PAGE = Page(path=PATH, title="Usage", navigation="Usage", show=show, for_organizations=True)
