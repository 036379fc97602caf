"""`arictl connection`: tenants' Asterisks."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from arictl import options, tools
from shared import errors
from shared.asterisk import circuit_breaker
from shared.call import call_settings
from shared.platform import dograh
from shared.platform.dograh import telephony_configuration
from shared.storage import connections, database

app = typer.Typer(help="Tenants' Asterisks.", no_args_is_help=True, rich_markup_mode=None)

#: What a worker last noted of a breaker counts for this long: twice as long as it takes to note it again.
_BREAKER_SECONDS = 2 * circuit_breaker.REPEAT_SECONDS + circuit_breaker.LONGEST_PAUSE_SECONDS

_LIST = f"""
SELECT c.connection_id, c.organization_id, c.state, c.reason, v.version, v.endpoint, v.app, v.socket_state,
       v.socket_since, v.last_event_at, v.reconnects, v.last_error, v.past_error, v.past_error_at, v.listener_id,
       v.previous_listener_id, v.parked_at,
       v.superseded_at IS NOT NULL AS superseded,
       (SELECT count(*) FROM ari.calls k WHERE k.connection_id = c.connection_id
        AND (v.version IS NULL OR k.connection_version = v.version) AND k.state NOT IN ('ending', 'ended')) AS live,
       (SELECT 'requests held back by ' || string_agg(who || ' (' || why || ')', ', ' ORDER BY who) FROM (
            SELECT DISTINCT ON (t.who) t.who, t.name, split_part(t.detail, ': ', 2) AS why FROM ari.timeline t
            WHERE t.connection_id = c.connection_id AND t.call_id IS NULL AND t.kind = 'note'
              AND t.name IN ('{circuit_breaker.OPENED}', '{circuit_breaker.CLOSED}') AND split_part(t.detail, ': ', 1) = v.version::text
              AND t.at > clock_timestamp() - interval '{_BREAKER_SECONDS} seconds'
            ORDER BY t.who, t.id DESC) AS last WHERE name = '{circuit_breaker.OPENED}') AS held_back
FROM ari.connections c
LEFT JOIN ari.connection_versions v ON v.connection_id = c.connection_id AND v.retired_at IS NULL
WHERE c.state <> 'removed' OR v.version IS NOT NULL
ORDER BY c.connection_id, v.version
"""  # noqa: S608 - built from constants

_TAKEN_UP = "SELECT source_id FROM ari.connections WHERE state <> 'removed'"


class Refusal(StrEnum):
    """What becomes of a refused caller."""

    HANGUP = "hangup"
    CONTINUE = "continue"


Organization = Annotated[int, options.organization("The organization's id.")]


@app.command()
def add(  # noqa: PLR0917 - typer reads these as options
    organization: Organization,
    endpoint: Annotated[str, typer.Option(help="http(s)://host[:port][/prefix] of its ARI.")],
    app_name: Annotated[str, typer.Option("--app", help="ARI user and Stasis app.")],
    ws_client: Annotated[str, typer.Option(help="The client in websocket_client.conf that reaches the agent.")],
    workflow: Annotated[int | None, options.number(help="The workflow that serves inbound calls.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change the configuration it has.")] = False,
    ca_bundle: Annotated[
        Path | None, typer.Option(help="Certificates in PEM to trust instead of the system's, for https.")
    ] = None,
    from_number: Annotated[list[str] | None, typer.Option(help="A number of its own, shown to whom we call.")] = None,
    dial_template: Annotated[
        str | None, typer.Option(help="What is dialled for a number: PJSIP/{number} unless told.")
    ] = None,
    on_refusal: Annotated[
        Refusal | None, typer.Option(help="A refused caller is hung up, unless told, or goes on behind Stasis.")
    ] = None,
    max_call_seconds: Annotated[
        float | None,
        options.number(largest=call_settings.LONGEST_CALL_SECONDS, help="A connected call is ended after this long."),
    ] = None,
) -> None:
    """Add an organization's Asterisk.

    The ARI password is read from ARI_PASSWORD, from standard input when that is no terminal, or asked for.
    """
    value = telephony_configuration.write(
        endpoint=endpoint,
        app=app_name,
        password=_password(),
        media_client=ws_client,
        inbound_workflow_id=workflow,
        caller_ids=from_number or (),
        ca_bundle=_bundle(ca_bundle) if ca_bundle is not None else None,
        continue_in_dialplan=on_refusal is Refusal.CONTINUE if on_refusal is not None else None,
        dial_template=dial_template,
        call_seconds=max_call_seconds,
    )
    configuration = telephony_configuration.parse(value)
    with tools.opened() as (_, db):
        dograh.Configurations(db).write(organization, value, replace=replace)
    tools.out.print(
        f"Organization {organization}: app {tools.plain(configuration.app)} on {tools.plain(configuration.endpoint)}."
        " The scheduler takes it up within seconds: arictl connection list"
    )


@app.command()
def remove(organization: Organization) -> None:
    """Remove an organization's Asterisk. New calls are refused, running ones go on to their end."""
    with tools.opened() as (_, db):
        dograh.Configurations(db).remove(organization)
    tools.out.print(f"Organization {organization}: removed. Its calls go on to their end.")


@app.command("list")
def list_connections() -> None:
    """List connections: connected or not, since when, by whom, and why not.

    What was wrong before, and is not any more, is in brackets.
    """
    table = tools.table(
        "connection", "org", "endpoint", "app", "socket", "since", "reconnects", "last event", "live calls", "held by",
        "what is wrong",
    )  # fmt: skip
    with tools.opened() as (_, db), db.connection() as connection:
        rows = connection.execute(_LIST).fetchall()
        taken_up = {row["source_id"] for row in connection.execute(_TAKEN_UP).fetchall()}
        waiting = len({row.source_id for row in dograh.Configurations(db).all()} - taken_up)
        leads = connection.execute(
            "SELECT 1 FROM ari.leases WHERE name = 'scheduler' AND expires_at > clock_timestamp()"
        ).fetchone()
    for row in rows:
        table.add_row(
            f"{row['connection_id']}:{row['version'] or '-'}",
            str(row["organization_id"]),
            tools.plain(row["endpoint"] or "-"),
            tools.plain(row["app"] or "-"),
            _socket(row["state"], row["socket_state"], superseded=row["superseded"]),
            _time(row["socket_since"]),
            str(row["reconnects"] or 0),
            _time(row["last_event_at"]),
            str(row["live"]),
            tools.plain(_holder(row)),
            tools.plain(_wrong(row)),
        )
    if rows:
        tools.out.print(table)
    elif not waiting:
        tools.out.print("No connections. Add one: arictl connection add --help")
    if waiting:
        tools.out.print(f"{waiting} not taken up yet: a scheduler that is at work does so within seconds.")
    if leads is None:
        tools.out.print("[bold red]No scheduler is at work: this is how things were, and nothing is taken up.[/]")


@app.command()
def unpark(organization: Organization) -> None:
    """Try a parked connection again: one that was left to another client which had taken its app twice."""
    with tools.opened() as (_, db), db.connection() as connection:
        rows = connection.execute(connections.UNPARK, [organization]).fetchall()
    if not rows:
        raise errors.InvalidConfiguration(f"organization {organization} has no connection that is parked")
    for row in rows:
        tools.out.print(
            f"Connection {row['connection_id']}:{row['version']}: app {tools.plain(row['app'])} is tried again."
        )


def _bundle(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            # More than a bundle may have, however large the file is.
            text = file.read(1024 * 1024)
    except OSError as exc:
        raise errors.InvalidConfiguration(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError:
        raise errors.InvalidConfiguration(
            f"{path} is not PEM: openssl x509 -inform der -in {path} makes it so"
        ) from None
    if not text.strip():
        raise errors.InvalidConfiguration(f"{path} is empty")
    return text


def _password() -> str:
    password = os.environ.get("ARI_PASSWORD")
    if password is None:
        password = (
            typer.prompt("ARI password", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
        )
    if not password:
        raise errors.InvalidConfiguration("no password: set ARI_PASSWORD, pipe it in, or type it when asked")
    return password


def _socket(state: str, socket_state: str | None, *, superseded: bool) -> str:
    if state != "active" or superseded:
        return f"{socket_state or 'none'} ({'draining' if state == 'active' else state})"
    return socket_state or "none"


def _holder(row: database.Row) -> str:
    if row["listener_id"] is None:
        return "-"
    return (
        f"{row['listener_id']} (from {row['previous_listener_id']})"
        if row["previous_listener_id"] is not None
        else row["listener_id"]
    )


def _wrong(row: database.Row) -> str:
    """What is wrong now; in brackets what was wrong before."""
    now = [row["reason"] or row["last_error"], row["held_back"]]
    if row["socket_state"] == "unassigned" and row["listener_id"] is None and not any(now):
        return "no listener holds it: none is at work, or none has room (LISTENER_CAPACITY)"
    if any(now):
        return "; ".join(filter(None, now))
    return f"({_time(row['past_error_at'])} {row['past_error']})" if row["past_error"] else ""


def _time(moment: object) -> str:
    return f"{moment:%m-%d %H:%M:%S}" if moment is not None else "-"
