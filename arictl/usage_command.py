"""`arictl usage`: calls, minutes and outcomes by organization and day, limits and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from arictl import options, output, tools
from shared.operator import organization_usage as usage
from shared.platform import dograh
from shared.storage import postgres_calls, quotas


def show_usage(
    organization: Annotated[int | None, options.organization("Only this organization, with its limits.")] = None,
    days: Annotated[int, options.number(largest=usage.MOST_DAYS, help="So many days, today's included (UTC).")] = 7,
    as_json: output.AsJson = False,
) -> None:
    """Show calls, minutes and outcomes by organization and day; limits, and what is left."""
    with tools.opened() as (_, db):
        accounts = dograh.Accounts(db)
        if organization is not None:
            accounts.require_organization(organization)
        now = postgres_calls.PostgresCalls(db, who="arictl", prefix="").now
        found = usage.read(db, quotas.Quotas(db, now=now), accounts, days=days, organization=organization)
    output.answer(found, lambda: _show(found), as_json=as_json)


def _show(found: usage.Usage) -> None:
    table = tools.table("day", "org", "calls", "connected", "minutes", "outcomes", "faults")
    for day in found.days:
        outcomes, faults = _counted(day.outcomes), _counted(day.faults)
        table.add_row(
            f"{day.day}", str(day.organization_id), str(day.calls), str(day.connected), f"{day.minutes:.1f}",
            tools.plain(outcomes), tools.plain(faults),
        )  # fmt: skip
    tools.out.print(table if found.days else f"No calls since {found.since}.")
    if not found.limits:
        return
    limits = tools.table("org", "state", "calls now", "left", "minutes this month", "left")
    for one in found.limits:
        limits.add_row(
            str(one.organization_id), "blocked" if one.blocked else "allowed", str(one.calls_now),
            _left(one.calls_left), f"{one.minutes_this_month:.1f}", _left(one.minutes_left),
        )  # fmt: skip
    tools.out.print()
    tools.out.print(limits)


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(numbers.items()))


def _left(number: float | None) -> str:
    return "no limit" if number is None else f"{number:g}"
