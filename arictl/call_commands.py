"""`arictl calls`, `trace`, `call`, `hangup`: list calls, show their timelines, place and end them."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any

import typer

from arictl import options, tools
from shared import errors, outbound_calls
from shared.call import call_requests, facts
from shared.call.call_requests import CallRequest
from shared.call.states import State
from shared.platform import dograh
from shared.storage import connections, database, id_prefixes, quotas

_CALLS = """
SELECT call_id, organization_id, state, outcome, reason, caller_number, called_number, workflow_run_id, received_at,
       connected_at, ending_at, ended_at,
       extract(epoch FROM connected_at - received_at) * 1000 AS setup_ms,
       extract(epoch FROM coalesce(ending_at, clock_timestamp()) - connected_at) AS talk_seconds
FROM ari.calls
WHERE (%(organization)s::integer IS NULL OR organization_id = %(organization)s)
  AND (NOT %(live)s OR state <> 'ended')
ORDER BY received_at DESC LIMIT %(limit)s
"""

#: A call is named in full by its run, its channel or its id, or by the beginning of its id. Of several calls of a
#: channel the newest is meant.
_FIND = """
SELECT *, coalesce(workflow_run_id = %(run)s OR call_id = %(first)s AND call_id = %(last)s, false) AS whole FROM (
    SELECT * FROM ari.calls WHERE call_id BETWEEN %(first)s AND %(last)s
    UNION SELECT * FROM ari.calls WHERE workflow_run_id = %(run)s
) AS named
ORDER BY whole DESC, received_at DESC LIMIT 2
"""
#: An index of its own would cost every call more than this look-up is worth: the one there is begins with the
#: connection, and OFFSET 0 makes Postgres look up the channel once for each connection.
_FIND_CHANNEL = """
SELECT DISTINCT ON (found.connection_id) found.* FROM ari.connections c CROSS JOIN LATERAL (
    SELECT * FROM ari.calls WHERE connection_id = c.connection_id AND channel_id = %(name)s OFFSET 0
) AS found
ORDER BY found.connection_id, received_at DESC LIMIT 2
"""

_ID_BEGINS = re.compile(r"[0-9a-f]{4,32}")
_BAR = 36
_COLOURS = {"transition": "bold cyan", "request": "green", "refusal": "bold red", "dead-letter": "bold red"}


def list_calls(
    organization: Annotated[int | None, options.organization("List only calls of this organization.")] = None,
    live: Annotated[bool, typer.Option("--live", help="List only calls that have not ended.")] = False,
    limit: Annotated[int, options.number(largest=10_000, help="The largest number of calls to list.")] = 30,
) -> None:
    """List calls, newest first."""
    with tools.opened() as (_, db), db.connection() as connection:
        rows = connection.execute(_CALLS, {"organization": organization, "live": live, "limit": limit}).fetchall()
    table = tools.table(
        "call", "org", "caller → called", "run", "received", "state", "set-up", "talk", "outcome", "reason"
    )
    for row in rows:
        table.add_row(
            str(row["call_id"])[:8],
            str(row["organization_id"]),
            tools.plain(f"{row['caller_number']} → {row['called_number']}"),
            str(row["workflow_run_id"] or "-"),
            f"{row['received_at']:%m-%d %H:%M:%S}",
            row["state"],
            "-" if row["setup_ms"] is None else f"{row['setup_ms']:.0f} ms",
            "-" if row["talk_seconds"] is None else f"{row['talk_seconds']:.0f} s",
            row["outcome"] or "",
            tools.plain(row["reason"] or ""),
        )
    tools.out.print(table if rows else "No calls yet.")


def trace(
    name: Annotated[
        str, typer.Argument(metavar="CALL", help="A call id or its first 4 or more digits, a run id or a channel id.")
    ],
) -> None:
    """Show the timeline of a call as a waterfall."""
    with tools.opened() as (_, db), db.connection() as connection:
        call = _find(connection, name.strip())
        rows = connection.execute(
            "SELECT * FROM ari.timeline WHERE call_id = %s ORDER BY at, id", [call["call_id"]]
        ).fetchall()
    tools.out.print(_heading(call))
    if not rows:
        return
    start = rows[0]["at"]
    moments = [((row["at"] - start).total_seconds() * 1000, row["took_ms"] or 0.0) for row in rows]
    # The bars span the set-up, or the whole call if it was never connected.
    span = max((at + took for at, took in moments if at + took <= _span_of(call, start)), default=0.0) or 1.0
    # Our channel and bridge ids contain the call id, which the heading shows: abbreviated here.
    own = call["call_id"].hex
    table = tools.table("at", "", "event", "ms", "detail", "process")
    for row, (at, took) in zip(rows, moments, strict=True):
        colour = _COLOURS.get(row["kind"], "dim")
        table.add_row(
            f"{at:,.1f} ms",
            f"[{colour}]{_bar(at, took, span)}[/]",
            f"[{colour}]{tools.plain(_what(row).replace(own, '…'))}[/]",
            f"{took:.1f}" if row["took_ms"] is not None else "",
            tools.plain(row["detail"].splitlines()[0] if row["detail"] else ""),
            row["who"],
        )
    tools.out.print(table)


def call(  # noqa: PLR0917 - typer reads these as options
    number: Annotated[str, typer.Argument(help="The number or extension to dial.")],
    organization: Annotated[int, options.organization("The organization whose Asterisk dials.")],
    workflow: Annotated[int | None, options.number(help="The workflow that serves the call, with a new run.")] = None,
    run: Annotated[
        int | None, options.number(help="An existing run that waits for a call, instead of a new one.")
    ] = None,
    caller_id: Annotated[
        str | None, typer.Option(help="The caller id; by default the connection's first number.")
    ] = None,
    ring_seconds: Annotated[
        float | None,
        options.number(
            least=call_requests.SHORTEST_RING_SECONDS,
            largest=call_requests.LONGEST_RING_SECONDS,
            help="How long to let it ring; 60 by default.",
        ),
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(help="Makes the request idempotent: the same id places no second call. Random by default."),
    ] = None,
) -> None:
    """Place a call: dials the number, and connects the voice agent when it is answered."""
    request = CallRequest(
        organization_id=organization,
        number=number,
        request_id=request_id or uuid.uuid4().hex,
        workflow_id=workflow,
        workflow_run_id=run,
        caller_id=caller_id,
        ring_seconds=ring_seconds,
    )
    with tools.acting() as (config, db, writer):
        prefix = id_prefixes.IdPrefixes(db, override=config.id_prefix).current()
        runs = dograh.Runs(db, storage_backend=config.storage_backend, layout=config.platform_layout)
        slots = quotas.Slots(
            quotas.Quotas(db, now=writer.store.now), dograh.Accounts(db), default=config.concurrent_calls
        )
        placed = outbound_calls.OutboundCalls(
            writer,
            dograh.Routes(db, layout=config.platform_layout),
            runs,
            connections.Connections(db),
            slots=slots.of,
            prefix=prefix,
        ).request(request)
    tools.out.print(f"Call {placed.call_id}: arictl trace {str(placed.call_id)[:8]}")


def hang_up(
    name: Annotated[
        str, typer.Argument(metavar="CALL", help="A call id or its first 4 or more digits, a run id or a channel id.")
    ],
) -> None:
    """End a call: hangs up its legs and ends its run."""
    with tools.acting() as (_, db, writer):
        with db.connection() as connection:
            call_id = _find(connection, name.strip())["call_id"]
        before = writer.store.load(call_id)
        assert before is not None
        recorded = writer.record(before, facts.EndRequested(reason="ended by an operator"))
    if recorded.applied:
        tools.out.print(f"Call {call_id} is being ended: arictl trace {str(call_id)[:8]}")
    else:
        tools.out.print(f"Call {call_id} is already {recorded.call.state}.")


def _find(connection: database.Connection, name: str) -> database.Row:
    """Return the call that is meant, of those named in full if there are any. Raises PermanentError unless it is one.

    A channel's id may be any text that the Asterisk's own programs choose: digits as of a run, or of a call id.
    """
    rows = connection.execute(_FIND, _named(name)).fetchall()
    in_full = [row for row in rows if row["whole"]]
    in_full += connection.execute(_FIND_CHANNEL, {"name": name}).fetchall()
    meant = {row["call_id"]: row for row in in_full or rows}
    if not meant:
        raise errors.PermanentError(f"no call {name!r}: arictl calls lists them")
    if len(meant) > 1:
        raise errors.PermanentError(f"{name!r} is ambiguous: give the call id, or more digits of it")
    return meant.popitem()[1]


def _named(name: str) -> dict[str, object]:
    """Return the parameters of `_FIND`: each way to read a name, None where it cannot be read so."""
    begins = name.lower().replace("-", "")
    first = last = run = None
    if _ID_BEGINS.fullmatch(begins):
        first, last = uuid.UUID(begins.ljust(32, "0")), uuid.UUID(begins.ljust(32, "f"))
    if name.isascii() and name.isdigit() and len(name) <= 10 and int(name) <= options.LARGEST:
        run = int(name)
    return {"name": name, "first": first, "last": last, "run": run}


def _heading(call: dict[str, Any]) -> str:
    run = f", run {call['workflow_run_id']}" if call["workflow_run_id"] else ""
    came_to = f": {call['outcome']}, {call['reason']}" if call["outcome"] else ""
    lines = [
        f"Call {call['call_id']} of organization {call['organization_id']}{run}",
        f"{call['direction']} {call['caller_number']} → {call['called_number']}, channel {call['channel_id']}"
        f" on connection {call['connection_id']}:{call['connection_version']}",
        f"{call['state']}{came_to}",
        "",
    ]
    return "\n".join(map(tools.plain, lines))


def _span_of(call: dict[str, Any], start: Any) -> float:
    until = call["connected_at"] or call["ended_at"]
    return float("inf") if until is None else (until - start).total_seconds() * 1000 + 50.0


def _bar(at: float, took: float, span: float) -> str:
    begin = min(int(at / span * _BAR), _BAR - 1)
    length = max(1, min(round(took / span * _BAR), _BAR - begin))
    return " " * begin + ("█" * length if took else "▏")


def _what(row: dict[str, Any]) -> str:
    if row["state_to"]:
        moved = f"{row['state_from']} → {row['state_to']}" if row["state_from"] else f"→ {row['state_to']}"
        return f"{moved} ({row['name']})" if row["state_to"] != State.RECEIVED else moved
    return str(row["name"])
