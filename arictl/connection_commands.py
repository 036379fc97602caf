"""`arictl connection`: tenants' Asterisks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from arictl import doctor, operators, options, output, tools
from shared import errors, queues
from shared.asterisk import tcp_connector
from shared.call import call_settings
from shared.operator import connection_actions as operated
from shared.operator import connection_list, connection_tests
from shared.operator.connection_actions import ActedOn
from shared.operator.connection_list import ConnectionList, ListedConnection
from shared.operator.connection_tests import ConnectionReport
from shared.platform import dograh
from shared.platform.dograh import configurations as platform_configurations
from shared.platform.dograh import telephony_configuration
from shared.storage import database

app = typer.Typer(help="Tenants' Asterisks.", no_args_is_help=True, rich_markup_mode=None)

_NOT_SUSPENDED = "was neither parked nor drained (if another process holds its app: arictl connection take-over)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """What an order has come to, of each connection."""

    connections: tuple[ActedOn, ...]


class Refusal(StrEnum):
    """What happens to a refused caller."""

    HANGUP = "hangup"
    CONTINUE = "continue"


Organization = Annotated[int, options.organization("The organization's id.")]
Connection = Annotated[
    int | None,
    typer.Argument(metavar="CONNECTION", min=1, max=options.LARGEST, help="As arictl connection list names it."),
]
OfOrganization = Annotated[int | None, options.organization("Every connection of this organization.")]
Reason = Annotated[str, typer.Option(help="Why: shown by arictl connection list, and kept in the audit.")]


@app.command()
def add(  # noqa: PLR0917 - typer reads these as options
    organization: Organization,
    endpoint: Annotated[str, typer.Option(help="http(s)://host[:port][/prefix] of the Asterisk's ARI.")],
    app_name: Annotated[str, typer.Option("--app", help="The ARI user; without --stasis-app also the Stasis app.")],
    ws_client: Annotated[str, typer.Option(help="The client in websocket_client.conf that connects to the agent.")],
    workflow: Annotated[int | None, options.number(help="The workflow that serves inbound calls.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the existing configuration.")] = False,
    ca_bundle: Annotated[
        Path | None, typer.Option(help="For https: a file of certificates in PEM to trust instead of the system's.")
    ] = None,
    from_number: Annotated[
        list[str] | None,
        typer.Option(
            help="A number of the organization: the first is the caller id. On the newest layout its callers get"
            " the workflow."
        ),
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
    stasis_app: Annotated[
        str | None, typer.Option(help="The Stasis app, if it has another name than the ARI user.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="On the platform's newest layout: which of the organization's configurations.")
    ] = platform_configurations.DEFAULT_NAME,
    as_json: output.AsJson = False,
) -> None:
    """Add an organization's Asterisk.

    The ARI password is read from ARI_PASSWORD, or from standard input if that is not a terminal, or asked for.
    """
    value = telephony_configuration.write(
        endpoint=endpoint,
        app=app_name,
        stasis_app=stasis_app,
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
    detail = {
        "endpoint": configuration.endpoint,
        "app": configuration.app,
        "workflow": workflow,
        "name": name,
        "replace": replace,
    }
    with (
        tools.opened() as (config, db),
        operators.recorded(
            db, "connection add", f"organization {organization}", organization=organization, detail=detail
        ) as recording,
    ):
        configurations = dograh.Configurations(recording, watch=dograh.Watch(db, config.platform_layout, quiet=True))
        configurations.write(organization, value, replace=replace, name=name)
    output.done(
        f"Organization {organization}: app {configuration.app} on {configuration.endpoint}."
        " The scheduler connects it within seconds: arictl connection list",
        as_json=as_json,
    )


@app.command()
def remove(
    organization: Organization,
    name: Annotated[
        str | None, typer.Option(help="On the platform's newest layout: which of the organization's configurations.")
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Remove an organization's Asterisk. New calls are refused, running calls continue."""
    with (
        tools.opened() as (config, db),
        operators.recorded(
            db, "connection remove", f"organization {organization}", organization=organization, detail={"name": name}
        ) as recording,
    ):
        dograh.Configurations(recording, watch=dograh.Watch(db, config.platform_layout, quiet=True)).remove(
            organization, name=name
        )
    output.done(f"Organization {organization}: removed. Its running calls continue.", as_json=as_json)


@app.command("list")
def list_connections(as_json: output.AsJson = False) -> None:
    """List connections: the state of each event socket, its listener, and the reason if it is not connected.

    A reason in brackets is the last one of the past.
    """
    with tools.opened() as (config, db):
        configurations = dograh.Configurations(db, watch=dograh.Watch(db, config.platform_layout, quiet=True))
        found = connection_list.read(db, configurations)
    if found.unserved:
        sys.stderr.write(f"arictl: {found.unserved}\n")
    output.answer(found, lambda: _show_list(found), as_json=as_json)


@app.command("test")
def run_test(
    connection: Connection = None, organization: OfOrganization = None, as_json: output.AsJson = False
) -> None:
    """Check one connection as arictl doctor does: its configuration, its event socket, its Asterisk.

    Status 1 if anything is wrong. Nothing is changed.
    """
    with tools.acting() as (config, db):
        meant = _meant(db, connection, organization)
        operated.require(db, meant)
        connector = tcp_connector.TcpConnector(config.guard())
        watch = dograh.Watch(db, config.platform_layout, quiet=True)
        found = connection_tests.run(db, config.sealer(), connector, watch, meant)
    output.answer(found, lambda: _show_tests(found), as_json=as_json)
    if any(one.is_wrong for one in found.connections):
        raise typer.Exit(1)


@app.command()
def park(
    connection: Connection = None,
    organization: OfOrganization = None,
    reason: Reason = "",
    as_json: output.AsJson = False,
) -> None:
    """Close the event socket of a connection, and open none until it is unparked. Its calls in progress go on."""
    done = _each("park", connection, organization, lambda db, one: operated.park(db, operators.actor(), one, reason))
    output.answer(done, lambda: _tell(done, "is parked", "was parked already"), as_json=as_json)


@app.command()
def drain(
    connection: Connection = None,
    organization: OfOrganization = None,
    reason: Reason = "",
    as_json: output.AsJson = False,
) -> None:
    """Refuse the new calls of a connection until it is unparked. Its calls in progress go on, and its event socket."""
    done = _each("drain", connection, organization, lambda db, one: operated.drain(db, operators.actor(), one, reason))
    output.answer(done, lambda: _tell(done, "is drained", "was drained already"), as_json=as_json)


@app.command()
def unpark(connection: Connection = None, organization: OfOrganization = None, as_json: output.AsJson = False) -> None:
    """Let a connection take calls again that is parked, drained or quarantined.

    It was parked by an operator, or because a competing client took over its app twice; or quarantined because reading
    its events stopped several listeners. Of an app that another process holds: arictl connection take-over.
    """
    done = _each("unpark", connection, organization, lambda db, one: operated.release(db, operators.actor(), one))
    output.answer(done, lambda: _tell(done, "takes calls again", _NOT_SUSPENDED), as_json=as_json)


@app.command()
def resync(connection: Connection = None, organization: OfOrganization = None, as_json: output.AsJson = False) -> None:
    """Compare a connection's calls with its Asterisk now; what a worker finds is in the calls' timelines."""
    with tools.with_redis() as (_, db, broker):
        queue = queues.BrokerCommandQueue(broker)
        meant = _acted_on(db, "resync", connection, organization)
        done = Acted(connections=tuple(operated.resync(db, queue, operators.actor(), one) for one in meant))

    def show() -> None:
        for one in done.connections:
            versions = ", ".join(one.versions)
            asked = f"resync asked for, of {versions}" if versions else "has nothing to compare"
            tools.out.print(f"Connection {one.connection_id}: {asked}.")

    output.answer(done, show, as_json=as_json)


@app.command("take-over")
def take_over(
    organization: Organization,
    connection: Annotated[int | None, options.number(help="Only this connection of the organization.")] = None,
    as_json: output.AsJson = False,
) -> None:
    """Connect a connection whose app another process holds: that process hears no more of it.

    Stop that process first: its calls go on, and new callers come here. Without a worker's answer to who holds it, the
    connection waits, and this connects it as well.
    """
    with tools.opened() as (_, db):
        rows = operated.take_over(db, operators.actor(), organization, connection)
    taken = [f"Connection {row['connection_id']}:{row['version']}: app {row['app']} is taken over." for row in rows]
    output.done("\n".join(taken), as_json=as_json)


def _each(
    verb: str,
    connection: int | None,
    organization: int | None,
    act: Callable[[database.Database, int], ActedOn],
) -> Acted:
    with tools.opened() as (_, db):
        return Acted(connections=tuple(act(db, one) for one in _acted_on(db, verb, connection, organization)))


def _acted_on(db: database.Database, verb: str, connection: int | None, organization: int | None) -> list[int]:
    """Return the connections that are meant; that an organization has none is recorded."""
    if organization is None:
        return _meant(db, connection, organization)
    with operators.refusals(db, f"connection {verb}", f"organization {organization}", organization=organization):
        return _meant(db, connection, organization)


def _meant(db: database.Database, connection: int | None, organization: int | None) -> list[int]:
    """Return the connections that are meant. Raises InvalidRequest unless one thing is named."""
    if (connection is None) == (organization is None):
        raise errors.InvalidRequest("name a connection, or --organization for all of an organization")
    return [connection] if connection is not None else operated.of_organization(db, cast(int, organization))


def _tell(done: Acted, changed: str, unchanged: str) -> None:
    for one in done.connections:
        live = f"; {one.live_calls} calls in progress" if one.live_calls else ""
        tools.out.print(f"Connection {one.connection_id} {changed if one.changed else unchanged}{live}.")


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


def _show_list(found: ConnectionList) -> None:
    table = tools.table(
        "connection", "org", "endpoint", "app", "socket", "since", "reconnects", "last event", "live calls", "listener",
        "reason",
    )  # fmt: skip
    for one in found.connections:
        table.add_row(
            f"{one.connection_id}:{one.version or '-'}",
            str(one.organization_id),
            tools.plain(one.endpoint or "-"),
            tools.plain(one.app or "-"),
            _socket(one),
            tools.moment(one.socket_since),
            str(one.reconnects),
            tools.moment(one.last_event_at),
            str(one.live_calls),
            tools.plain(_listener(one)),
            tools.plain(_reason(one)),
        )
    if found.connections:
        tools.out.print(table)
    elif not found.waiting:
        tools.out.print("No connections. Add one: arictl connection add --help")
    if found.waiting:
        tools.out.print(f"{found.waiting} not connected yet: a running scheduler does so within seconds.")
    if not found.scheduler_leads:
        tools.out.print(
            "[bold red]No scheduler is running: this list may be out of date, and no configuration is read.[/]"
        )


def _show_tests(found: ConnectionReport) -> None:
    for one in found.connections:
        doctor.show(f"connection {one.connection_id}", one.findings)


def _socket(one: ListedConnection) -> str:
    socket_state = one.socket_state or "none"
    if one.state != "active" or one.superseded:
        return f"{socket_state} ({'superseded' if one.state == 'active' else one.state})"
    return f"{socket_state} (drained)" if one.suspension == "drain" else socket_state


def _listener(one: ListedConnection) -> str:
    if one.listener is None:
        return "-"
    return f"{one.listener} (from {one.previous_listener})" if one.previous_listener is not None else one.listener


def _reason(one: ListedConnection) -> str:
    """Return what is wrong now; or, in brackets, the last past error."""
    if one.problem or not one.past_problem:
        return one.problem
    return f"({tools.moment(one.past_problem_at)} {one.past_problem})"
