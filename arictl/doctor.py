"""`arictl doctor`: looks at everything a call needs, and says what to do about what is not as it should be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from arictl import options, tools
from arictl.checks import connections, processes, servers
from arictl.checks.findings import Finding, Level, warning, wrong
from shared import errors
from shared.asterisk import address_guard, config_files, tcp_connector
from shared.platform import dograh
from shared.process import sealing, settings
from shared.storage import database

_COLOURS = {Level.OK: "green", Level.WARNING: "bold yellow", Level.WRONG: "bold red"}


def doctor(
    organization: Annotated[int | None, options.organization("Only this organization's connection.")] = None,
    dialplan: Annotated[
        int | None, options.number(metavar="ORG", help="Print the files its Asterisk needs instead, by organization.")
    ] = None,
) -> None:
    """Look at settings, servers, processes and each Asterisk; say what to do. Status 1 when something is wrong."""
    if dialplan is not None:
        _print_files(dialplan)
        return
    if _examine(organization):
        raise typer.Exit(1)


def _examine(organization: int | None) -> bool:
    """Prints every finding as it is made; returns whether anything is wrong."""
    levels = _show("settings", servers.check_settings())
    complaints = settings.complaints()
    config = settings.load(settings.Doctor)
    redis_url, database_url, keys = (
        value.get_secret_value() if value is not None and name not in complaints else None
        for name, value in (
            ("REDIS_URL", config.redis_url),
            ("DATABASE_URL", config.database_url),
            ("SECRET_KEY", config.secret_key),
        )
    )
    if redis_url is not None:
        levels += _show("Redis", servers.check_redis(redis_url))
    if database_url is not None:
        # It would repeat what the finding says.
        logging.getLogger("shared.storage.database").setLevel(logging.CRITICAL)
        db = database.Database(database_url, size=2, statement_seconds=5, name="arictl")
        db.open()
        try:
            levels += _with_database(db, database_url, redis_url, keys, organization)
        finally:
            db.close()
    elif redis_url is not None:
        levels += _show("processes", _in_redis(redis_url))
    number = {level: levels.count(level) for level in Level}
    tools.out.print(f"\n{number[Level.OK]} ok, {number[Level.WARNING]} warnings, {number[Level.WRONG]} wrong")
    return number[Level.WRONG] > 0


def _with_database(
    db: database.Database, database_url: str, redis_url: str | None, keys: str | None, organization: int | None
) -> list[Level]:
    postgres = servers.check_postgres(database_url, db)
    levels = _show("Postgres", postgres)
    in_redis = _in_redis(redis_url) if redis_url is not None else []
    if any(finding.what == "Postgres" for finding in postgres):
        # Nobody answers there: each further question would only wait once more.
        return levels + _show("processes", in_redis)
    in_postgres = _asked("scheduler", lambda: processes.check_scheduler(db))
    in_postgres += _asked("calls", lambda: processes.check_calls(db))
    levels += _show("processes", in_postgres + in_redis)
    sealer = sealing.Sealer(tuple(key.strip() for key in keys.split(","))) if keys is not None else None
    try:
        found = connections.check(db, sealer, organization, tcp_connector.TcpConnector(_guard()))
    except errors.PipelineError as exc:
        return levels + _show("connections", [wrong("connections", str(exc), "see Postgres above")])
    for patient in found:
        levels += _show(patient.heading, patient.findings)
    if not found:
        whose = "none" if organization is None else f"organization {organization} has none"
        levels += _show("connections", [warning("connections", whose, "arictl connection add --help")])
    return levels


def _guard() -> address_guard.AddressGuard:
    """The processes' own, if their settings can be read; those that cannot are a finding already."""
    if any(name.startswith("ENDPOINT_") for name in settings.complaints()):
        return address_guard.AddressGuard()
    return settings.load(settings.Guarded).guard()


def _in_redis(url: str) -> list[Finding]:
    def default(kind: type[settings.Environment], name: str) -> float:
        return float(kind.model_fields[name].default)

    timeout = default(settings.Scheduler, "listener_timeout_seconds")
    requests = default(settings.Worker, "asterisk_requests")
    if not settings.complaints():
        timeout = settings.load(settings.Scheduler).listener_timeout_seconds
        requests = settings.load(settings.Worker).asterisk_requests
    return processes.check_redis(url, listener_timeout_seconds=timeout, requests_each=int(requests))


def _asked(what: str, ask: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return ask()
    except errors.PipelineError as exc:
        return [wrong(what, str(exc), "see Postgres above")]


def _show(heading: str, findings: Iterable[Finding]) -> list[Level]:
    tools.out.print(f"\n[bold]{tools.plain(heading)}[/]")
    levels = []
    for finding in findings:
        levels.append(finding.level)
        colour = _COLOURS[finding.level]
        tools.out.print(f"  [{colour}]{finding.level:<7}[/]  {tools.plain(finding.what)}: {tools.plain(finding.seen)}")
        if finding.todo:
            tools.out.print(f"           → {tools.plain(finding.todo)}")
    return levels


def _print_files(organization: int) -> None:
    with tools.opened() as (_, db):
        rows = [row for row in dograh.Configurations(db).all() if row.organization_id == organization]
    if not rows:
        raise errors.InvalidConfiguration(f"organization {organization} has no ARI configuration")
    for row in rows:
        configuration = row.read()
        files = config_files.files(
            endpoint=configuration.endpoint,
            app=configuration.app,
            user=configuration.user,
            websocket_client=row.media_client or "media",
        )
        for file, text in files.items():
            tools.out.print(f"; ──── {file} ────")
            tools.out.print("\n".join(tools.plain(line) for line in text.splitlines()) + "\n")
