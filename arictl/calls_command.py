"""`arictl calls`: list calls by what the operator wants of them, or follow them as they come and end."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta
from typing import Annotated

import typer

from arictl import options, output, tools
from shared import errors
from shared.call.states import Fault, Outcome, State
from shared.operator import call_queries
from shared.operator.call_following import Following
from shared.operator.call_queries import Cursor, Filter, ListedCall, Page
from shared.storage import database

#: How often calls that are followed are looked for, in seconds.
_LOOK_SECONDS = 1.0


def list_calls(  # noqa: PLR0917 - typer reads these as options
    organization: Annotated[int | None, options.organization("List only calls of this organization.")] = None,
    live: Annotated[bool, typer.Option("--live", help="List only calls that have not ended.")] = False,
    past: Annotated[bool, typer.Option("--past", help="List only calls that have ended.")] = False,
    number: Annotated[str | None, typer.Option(help="The caller's or the called number, in full.")] = None,
    channel: Annotated[
        str | None, typer.Option(help="The channel that the call came with, or one that has taken its place.")
    ] = None,
    run: Annotated[int | None, options.number(help="The workflow run.")] = None,
    connection: Annotated[int | None, options.number(help="The number of the connection.")] = None,
    state: Annotated[State | None, typer.Option(help="The state.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="How it came out.")] = None,
    fault: Annotated[Fault | None, typer.Option(help="Whose fault it was that it did not end well.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Received from then on: 90s, 30m, 2h, 7d ago, or a moment (UTC).")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Received before that, given in the same way.")
    ] = None,
    limit: Annotated[
        int, options.number(largest=call_queries.LARGEST_PAGE, help="The largest number of calls to list.")
    ] = 30,
    after: Annotated[
        str | None, typer.Option(metavar="CALL", help="The next page: the calls received before this one.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, and show each call when it comes and when it ends.")
    ] = False,
    as_json: output.AsJson = False,
) -> None:
    """List calls, newest first. Each filter narrows the list.

    With --follow the newest come last, and others follow until Ctrl-C; with --json, each is a line of its own.
    """
    if live and past:
        raise typer.BadParameter("--live and --past exclude each other")
    if follow and (after or until):
        raise typer.BadParameter("--follow goes on from now: without --after and --until")
    first, last = options.moment(since, "--since"), options.moment(until, "--until")
    with tools.opened() as (_, db):
        wanted = Filter(
            is_live=True if live else False if past else None,
            number=number, channel=channel, workflow_run_id=run, organization_id=organization,
            connection_id=connection, state=state, outcome=outcome, fault=fault,
            since=_at(db, first), until=_at(db, last),
        )  # fmt: skip
        if follow:
            _follow(db, wanted, limit=limit, as_json=as_json)
            return
        page = call_queries.list_calls(db, wanted, after=_cursor(db, after), limit=limit)
    output.answer(page, lambda: _show_page(page), as_json=as_json)


def _at(db: database.Database, moment: datetime | timedelta | None) -> datetime | None:
    return call_queries.now(db) - moment if isinstance(moment, timedelta) else moment


def _cursor(db: database.Database, after: str | None) -> Cursor | None:
    return call_queries.get(db, call_queries.find(db, after)).call.cursor if after is not None else None


def _show_page(page: Page) -> None:
    table = tools.table(*_HEADINGS)
    for call in page.calls:
        table.add_row(*_cells(call))
    tools.out.print(table if page.calls else "No such calls.")
    if page.next is not None:
        tools.out.print(f"More: --after {page.next.call_id!s}")


_HEADINGS = (
    "call", "org", "caller → called", "run", "received", "state", "set-up", "talk", "outcome", "fault", "reason"
)  # fmt: skip


def _cells(call: ListedCall) -> tuple[str, ...]:
    return (
        str(call.call_id)[:8],
        str(call.organization_id),
        tools.plain(f"{call.caller_number} → {call.called_number}"),
        str(call.workflow_run_id or "-"),
        f"{call.received_at:%m-%d %H:%M:%S}",
        tools.plain(call.state),
        "-" if call.setup_seconds is None else f"{call.setup_seconds * 1000:.0f} ms",
        "-" if call.talk_seconds is None else f"{call.talk_seconds:.0f} s",
        tools.plain(call.outcome or ""),
        tools.plain(call.fault or ""),
        tools.plain(call.reason or ""),
    )


def _follow(db: database.Database, wanted: Filter, *, limit: int, as_json: bool) -> None:
    """Show the newest calls, and then what comes and ends, until Ctrl-C, or until what they are piped into ends."""
    following = Following(db, wanted)
    try:
        following.look()
        _tell(list(reversed(call_queries.list_calls(db, wanted, limit=limit).calls)), as_json=as_json)
        is_away = False
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                _tell(following.look(), as_json=as_json)
            except errors.DatabaseUnavailable as exc:
                if not is_away:
                    sys.stderr.write(f"arictl: {exc}: trying again\n")
                is_away = True
            else:
                is_away = False
    except (KeyboardInterrupt, BrokenPipeError):
        return


def _tell(calls: list[ListedCall], *, as_json: bool) -> None:
    for call in calls:
        if as_json:
            typer.echo(output.as_line(call))
            continue
        short, org, numbers, run, received, state, setup, talk, outcome, fault, reason = _cells(call)
        came_to = f"{outcome} {fault} {reason}".strip()
        tools.out.print(
            f"{received}  {short}  {org:>5}  {numbers}  run {run}  {state:<11}  {setup:>8}  {talk:>7}  {came_to}"
        )
    sys.stdout.flush()
