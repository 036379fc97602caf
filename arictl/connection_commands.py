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
from shared.asterisk import circuit_breaker, rest
from shared.call import call_settings
from shared.platform import dograh
from shared.platform.dograh import telephony_configuration
from shared.storage import connections, database

app = typer.Typer(help="Tenants' Asterisks.", no_args_is_help=True, rich_markup_mode=None)

#: For this long the last report of a worker's breaker counts: two intervals of its reports.
_BREAKER_SECONDS = 2 * circuit_breaker.REPEAT_SECONDS + circuit_breaker.LONGEST_PAUSE_SECONDS
#: The same for a request that was denied. A teardown that cannot remove a leg makes one a minute.
_DENIED_SECONDS = 2 * rest.DENIED_SECONDS + 60

_LIST = f"""
SELECT c.connection_id, c.organization_id, c.state, c.reason, v.version, v.endpoint, v.app, v.socket_state,
       v.socket_since, v.last_event_at, v.reconnects, v.last_error, v.past_error, v.past_error_at, v.listener_id,
       v.previous_listener_id, v.parked_at,
       v.superseded_at IS NOT NULL AS superseded,
       (SELECT count(*) FROM ari.calls k WHERE k.connection_id = c.connection_id
        AND (v.version IS NULL OR k.connection_version = v.version) AND k.state NOT IN ('ending', 'ended')) AS live,
       (SELECT 'circuit breaker open in ' || string_agg(who || ' (' || reason || ')', ', ' ORDER BY who) FROM (
            SELECT DISTINCT ON (t.who) t.who, t.name, split_part(t.detail, ': ', 2) AS reason FROM ari.timeline t
            WHERE t.connection_id = c.connection_id AND t.call_id IS NULL AND t.kind = 'note'
              AND t.name IN ('{circuit_breaker.OPENED}', '{circuit_breaker.CLOSED}')
              AND split_part(t.detail, ': ', 1) = v.version::text
              AND t.at > clock_timestamp() - interval '{_BREAKER_SECONDS} seconds'
            ORDER BY t.who, t.id DESC) AS last WHERE name = '{circuit_breaker.OPENED}') AS breaker,
       (SELECT 'requests are denied (' || split_part(t.detail, ': ', 2) || '): is the ARI user read_only?'
        FROM ari.timeline t
        WHERE t.connection_id = c.connection_id AND t.call_id IS NULL AND t.kind = 'note' AND t.name = '{rest.DENIED}'
          AND split_part(t.detail, ': ', 1) = v.version::text
          AND t.at > clock_timestamp() - interval '{_DENIED_SECONDS} seconds'
        ORDER BY t.id DESC LIMIT 1) AS denied
FROM ari.connections c
LEFT JOIN ari.connection_versions v ON v.connection_id = c.connection_id AND v.retired_at IS NULL
WHERE c.state <> 'removed' OR v.version IS NOT NULL
ORDER BY c.connection_id, v.version
"""  # noqa: S608 - built from constants

_RECONCILED = "SELECT source_id FROM ari.connections WHERE state <> 'removed'"


class Refusal(StrEnum):
    """What happens to a refused caller."""

    HANGUP = "hangup"
    CONTINUE = "continue"


Organization = Annotated[int, options.organization("The organization's id.")]


@app.command()
def add(  # noqa: PLR0917 - typer reads these as options
    organization: Organization,
    endpoint: Annotated[str, typer.Option(help="http(s)://host[:port][/prefix] of the Asterisk's ARI.")],
    app_name: Annotated[str, typer.Option("--app", help="The ARI user, which is also the name of the Stasis app.")],
    ws_client: Annotated[str, typer.Option(help="The client in websocket_client.conf that connects to the agent.")],
    workflow: Annotated[int | None, options.number(help="The workflow that serves inbound calls.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the existing configuration.")] = False,
    ca_bundle: Annotated[
        Path | None, typer.Option(help="For https: a file of certificates in PEM to trust instead of the system's.")
    ] = None,
    from_number: Annotated[
        list[str] | None, typer.Option(help="A number of the organization, used as caller id.")
    ] = None,
    dial_template: Annotated[
        str | None, typer.Option(help="The endpoint to dial for a number: PJSIP/{number} by default.")
    ] = None,
    on_refusal: Annotated[
        Refusal | None, typer.Option(help="Hang up a refused caller (default), or continue in the dialplan.")
    ] = None,
    max_call_seconds: Annotated[
        float | None,
        options.number(largest=call_settings.LONGEST_CALL_SECONDS, help="A connected call is ended after this time."),
    ] = None,
) -> None:
    """Add an organization's Asterisk.

    The ARI password is read from ARI_PASSWORD, or from standard input if that is not a terminal, or asked for.
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
    with tools.opened() as (config, db):
        dograh.Configurations(db, layout=config.platform_layout).write(organization, value, replace=replace)
    tools.out.print(
        f"Organization {organization}: app {tools.plain(configuration.app)} on {tools.plain(configuration.endpoint)}."
        " The scheduler connects it within seconds: arictl connection list"
    )


@app.command()
def remove(organization: Organization) -> None:
    """Remove an organization's Asterisk. New calls are refused, running calls continue."""
    with tools.opened() as (_, db):
        dograh.Configurations(db).remove(organization)
    tools.out.print(f"Organization {organization}: removed. Its running calls continue.")


@app.command("list")
def list_connections() -> None:
    """List connections: the state of each event socket, its listener, and the reason if it is not connected.

    A reason in brackets is the last one of the past.
    """
    table = tools.table(
        "connection", "org", "endpoint", "app", "socket", "since", "reconnects", "last event", "live calls", "listener",
        "reason",
    )  # fmt: skip
    with tools.opened() as (_, db), db.connection() as connection:
        rows = connection.execute(_LIST).fetchall()
        reconciled = {row["source_id"] for row in connection.execute(_RECONCILED).fetchall()}
        waiting = len({row.source_id for row in dograh.Configurations(db).all()} - reconciled)
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
            tools.plain(_listener(row)),
            tools.plain(_reason(row)),
        )
    if rows:
        tools.out.print(table)
    elif not waiting:
        tools.out.print("No connections. Add one: arictl connection add --help")
    if waiting:
        tools.out.print(f"{waiting} not connected yet: a running scheduler does so within seconds.")
    if leads is None:
        tools.out.print(
            "[bold red]No scheduler is running: this list may be out of date, and no configuration is read.[/]"
        )


@app.command()
def unpark(organization: Organization) -> None:
    """Connect a parked or quarantined connection again.

    It was parked because a competing client took over its app twice, or quarantined because reading its events stopped
    several listeners.
    """
    with tools.opened() as (_, db), db.connection() as connection:
        rows = connection.execute(connections.UNPARK, [organization]).fetchall()
    if not rows:
        raise errors.InvalidConfiguration(f"organization {organization} has no parked connection")
    for row in rows:
        tools.out.print(
            f"Connection {row['connection_id']}:{row['version']}: app {tools.plain(row['app'])} is connected again."
        )


def _bundle(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            # More than a bundle may have, and bounded however large the file is.
            text = file.read(1024 * 1024)
    except OSError as exc:
        raise errors.InvalidConfiguration(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError:
        raise errors.InvalidConfiguration(
            f"{path} is not PEM: openssl x509 -inform der -in {path} converts it"
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
        raise errors.InvalidConfiguration("no password: set ARI_PASSWORD, pipe it in, or type it at the prompt")
    return password


def _socket(state: str, socket_state: str | None, *, superseded: bool) -> str:
    if state != "active" or superseded:
        return f"{socket_state or 'none'} ({'superseded' if state == 'active' else state})"
    return socket_state or "none"


def _listener(row: database.Row) -> str:
    if row["listener_id"] is None:
        return "-"
    return (
        f"{row['listener_id']} (from {row['previous_listener_id']})"
        if row["previous_listener_id"] is not None
        else row["listener_id"]
    )


def _reason(row: database.Row) -> str:
    """Return what is wrong now; or, in brackets, the last past error."""
    now = [row["reason"] or row["last_error"], row["breaker"], row["denied"]]
    if row["socket_state"] == "unassigned" and row["listener_id"] is None and not any(now):
        return "no listener assigned: none is running, or none has capacity (LISTENER_CAPACITY)"
    if any(now):
        return "; ".join(filter(None, now))
    return f"({_time(row['past_error_at'])} {row['past_error']})" if row["past_error"] else ""


def _time(moment: object) -> str:
    return f"{moment:%m-%d %H:%M:%S}" if moment is not None else "-"
