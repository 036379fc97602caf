"""`arictl quota`: our limits of organizations, and what they use."""

from __future__ import annotations

from typing import Annotated

import typer

from arictl import options, tools
from shared import errors
from shared.call.quota_rules import Quota
from shared.platform import dograh
from shared.storage import database, postgres_calls, quotas

app = typer.Typer(help="The limits of organizations.", no_args_is_help=True, rich_markup_mode=None)

_TAKEN = f"SELECT organization_id, count(*) AS taken FROM ari.calls WHERE {quotas.USES_SLOT} GROUP BY organization_id"  # noqa: S608 - built from constants

Organization = Annotated[int, options.organization("The organization's id.")]


@app.command("list")
def list_quotas() -> None:
    """List organizations with limits, and what they use."""
    table = tools.table("org", "calls", "minutes this month", "state")
    with tools.opened() as (_, db):
        own = _quotas(db)
        limited = own.all()
        with db.connection() as connection:
            taken = {row["organization_id"]: row["taken"] for row in connection.execute(_TAKEN).fetchall()}
        for quota in limited:
            table.add_row(
                str(quota.organization_id),
                _of(taken.get(quota.organization_id, 0), quota.concurrent_calls),
                _of(int(own.summed_seconds(quota.organization_id) // 60), quota.minutes_per_month),
                _state(quota),
            )
    tools.out.print(table if limited else "No limits. Set one: arictl quota set --help")


@app.command()
def show(organization: Organization) -> None:
    """Show an organization's limits, and what it uses."""
    with tools.opened() as (_, db):
        accounts = dograh.Accounts(db)
        accounts.require_organization(organization)
        own = _quotas(db)
        quota, used_seconds = own.of(organization), own.summed_seconds(organization)
        theirs = accounts.concurrent_calls(organization)
        with db.transaction() as connection:
            taken = _store(db).slots_used(connection, organization)
    tools.out.print(f"Organization {organization}: {_state(quota)}")
    tools.out.print(f"calls now:           {taken} (limit: {_limits(quota.concurrent_calls, theirs)})")
    tools.out.print(f"minutes this month:  {used_seconds / 60:.1f} (limit: {_limit(quota.minutes_per_month)})")


@app.command("set")
def set_quota(
    organization: Organization,
    calls: Annotated[
        str | None, typer.Option(metavar="N|none", help="The largest number of simultaneous calls.")
    ] = None,
    minutes: Annotated[
        str | None,
        typer.Option(metavar="N|none", help="The largest number of connected minutes in a calendar month (UTC)."),
    ] = None,
    blocked: Annotated[
        bool | None, typer.Option("--blocked/--allowed", help="Refuse every new call, or allow new calls.")
    ] = None,
) -> None:
    """Set limits of an organization; the others stay. They apply to new calls at once; running calls continue.

    --minutes and --blocked have an effect only if the workers' QUOTA is sql; --calls always has.
    """
    changes: dict[str, object] = {}
    if calls is not None:
        changes["concurrent_calls"] = _number("--calls", calls)
    if minutes is not None:
        changes["minutes_per_month"] = _number("--minutes", minutes)
    if blocked is not None:
        changes["blocked"] = blocked
    if not changes:
        raise errors.PermanentError("nothing to set: give --calls, --minutes, --blocked or --allowed")
    with tools.opened() as (_, db):
        dograh.Accounts(db).require_organization(organization)
        quota = _quotas(db).change(organization, changes)
    tools.out.print(
        f"Organization {organization}: {_state(quota)}; simultaneous calls: {_limit(quota.concurrent_calls)};"
        f" minutes per month: {_limit(quota.minutes_per_month)}."
    )


@app.command()
def remove(organization: Organization) -> None:
    """Remove our limits from an organization. The platform's limit stays."""
    with tools.opened() as (_, db):
        if not _quotas(db).remove(organization):
            raise errors.PermanentError(f"organization {organization} has no limits: arictl quota list")
    tools.out.print(f"Organization {organization}: limits removed.")


def _store(db: database.Database) -> postgres_calls.PostgresCalls:
    return postgres_calls.PostgresCalls(db, who="arictl", prefix="")


def _quotas(db: database.Database) -> quotas.Quotas:
    return quotas.Quotas(db, now=_store(db).now)


def _number(option: str, text: str) -> int | None:
    if text == "none":
        return None
    # Python refuses to parse a number of thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) > options.LARGEST:
        raise errors.PermanentError(
            f"{option} must be a whole number from 0 to {options.LARGEST}, or none for no limit"
        )
    return int(text)


def _limits(own: int | None, theirs: int | None) -> str:
    """Return both limits; the lower one applies."""
    found = [(own, "by us"), (theirs, "by the platform")]
    shown = [f"{limit} {setter}" for limit, setter in found if limit is not None]
    return ", ".join(shown) or "CONCURRENT_CALLS of the workers, if set"


def _limit(limit: int | None) -> str:
    return "no limit" if limit is None else str(limit)


def _of(used: int, limit: int | None) -> str:
    return f"{used} of {limit}" if limit is not None else f"{used}, no limit"


def _state(quota: Quota) -> str:
    return "blocked" if quota.blocked else "allowed"
