"""`arictl quota`: our limits of organizations, and what they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from arictl import operators, options, output, tools
from shared import errors
from shared.call.quota_rules import Quota
from shared.operator import organization_usage
from shared.operator.organization_usage import Limits
from shared.platform import dograh
from shared.storage import database, postgres_calls, quotas

app = typer.Typer(help="The limits of organizations.", no_args_is_help=True, rich_markup_mode=None)

Organization = Annotated[int, options.organization("The organization's id.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaList:
    """The organizations that have limits of ours, and what they use."""

    limits: tuple[Limits, ...]


@app.command("list")
def list_quotas(as_json: output.AsJson = False) -> None:
    """List organizations with limits, and what they use."""
    with tools.opened() as (_, db):
        own = _quotas(db)
        limited = organization_usage.limits_of(own, dograh.Accounts(db), own.all())
    output.answer(QuotaList(limits=limited), lambda: _show_list(limited), as_json=as_json)


@app.command()
def show(organization: Organization, as_json: output.AsJson = False) -> None:
    """Show an organization's limits, and what it uses."""
    with tools.opened() as (_, db):
        accounts, own = dograh.Accounts(db), _quotas(db)
        accounts.require_organization(organization)
        (found,) = organization_usage.limits_of(own, accounts, [own.of(organization)])
    output.answer(found, lambda: _show(found), as_json=as_json)


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
    as_json: output.AsJson = False,
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
    with (
        tools.opened() as (_, db),
        operators.recorded(
            db, "quota set", f"organization {organization}", organization=organization, detail=changes
        ) as recording,
    ):
        dograh.Accounts(db).require_organization(organization)
        quota = _quotas(recording).change(organization, changes)
    output.done(
        f"Organization {organization}: {_state(quota)}; simultaneous calls: {_limit(quota.concurrent_calls)};"
        f" minutes per month: {_limit(quota.minutes_per_month)}.",
        as_json=as_json,
    )


@app.command()
def remove(organization: Organization, as_json: output.AsJson = False) -> None:
    """Remove our limits from an organization. The platform's limit stays."""
    with (
        tools.opened() as (_, db),
        operators.recorded(db, "quota remove", f"organization {organization}", organization=organization) as recording,
    ):
        if not _quotas(recording).remove(organization):
            raise errors.PermanentError(f"organization {organization} has no limits: arictl quota list")
    output.done(f"Organization {organization}: limits removed.", as_json=as_json)


def _show_list(limited: tuple[Limits, ...]) -> None:
    table = tools.table("org", "calls", "minutes this month", "state")
    for one in limited:
        table.add_row(
            str(one.organization_id),
            _of(one.calls_now, one.concurrent_calls),
            _of(int(one.minutes_this_month), one.minutes_per_month),
            _state(one),
        )
    tools.out.print(table if limited else "No limits. Set one: arictl quota set --help")


def _show(found: Limits) -> None:
    limits = _limits(found.concurrent_calls, found.platform_concurrent_calls)
    tools.out.print(f"Organization {found.organization_id}: {_state(found)}")
    tools.out.print(f"calls now:           {found.calls_now} (limit: {limits})")
    tools.out.print(f"minutes this month:  {found.minutes_this_month:.1f} (limit: {_limit(found.minutes_per_month)})")


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


def _state(quota: Quota | Limits) -> str:
    return "blocked" if quota.blocked else "allowed"
