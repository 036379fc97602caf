"""`arictl doctor`: checks everything that a call needs, and says how to repair what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Annotated, cast

import typer

from arictl import options, tools
from arictl.checks import connection_checks, platform_checks, process_checks, server_checks
from arictl.checks.findings import Finding, Level, warning, wrong
from shared import errors
from shared.asterisk import address_guard, config_files, tcp_connector
from shared.platform import dograh
from shared.platform.dograh import layouts
from shared.process import sealing, settings
from shared.storage import database

_COLOURS = {Level.OK: "green", Level.WARNING: "bold yellow", Level.WRONG: "bold red"}


def doctor(
    organization: Annotated[int | None, options.organization("Check only this organization's connection.")] = None,
    dialplan: Annotated[
        int | None,
        options.number(
            metavar="ORG",
            help="Print the configuration files that this organization's Asterisk needs, instead of checking.",
        ),
    ] = None,
) -> None:
    """Check settings, servers, processes and each Asterisk; say what to repair. Status 1 if anything is wrong."""
    if dialplan is not None:
        _print_files(dialplan)
        return
    if _examine(organization):
        raise typer.Exit(1)


def _examine(organization: int | None) -> bool:
    """Print each finding as it is made; return whether anything is wrong."""
    levels = _show("settings", server_checks.check_settings())
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
        levels += _show("Redis", server_checks.check_redis(redis_url))
    if database_url is not None:
        # Its log would repeat the finding.
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
    postgres = server_checks.check_postgres(database_url, db)
    levels = _show("Postgres", postgres)
    in_redis = _in_redis(redis_url) if redis_url is not None else []
    setting = _layout()
    if any(finding.what == "Postgres" for finding in postgres):
        # Postgres does not answer: each further check would only wait for its time-out.
        return levels + _show("processes", in_redis)
    levels += _show("platform", _checked("layout", lambda: platform_checks.check_layout(db, setting)))
    in_postgres = _checked("scheduler", lambda: process_checks.check_scheduler(db))
    in_postgres += _checked("calls", lambda: process_checks.check_calls(db))
    in_postgres += _checked(
        "id prefix", lambda: process_checks.check_id_prefix(db, settings.load(settings.Doctor).id_prefix)
    )
    levels += _show("processes", in_postgres + in_redis)
    sealer = sealing.Sealer(tuple(key.strip() for key in keys.split(","))) if keys is not None else None
    try:
        found = connection_checks.check(db, sealer, organization, tcp_connector.TcpConnector(_guard()), layout=setting)
    except errors.PipelineError as exc:
        return levels + _show("connections", [wrong("connections", str(exc), "see Postgres above")])
    for connection in found:
        levels += _show(connection.heading, connection.findings)
    if not found:
        seen = "none" if organization is None else f"organization {organization} has none"
        levels += _show("connections", [warning("connections", seen, "add one: arictl connection add --help")])
    return levels


def _layout() -> layouts.Setting:
    """Return the setting of the processes, if it can be read; if not, that is a finding already."""
    named = settings.load(settings.Doctor).platform_layout
    return layouts.AUTO if "PLATFORM_LAYOUT" in settings.complaints() else cast(layouts.Setting, named)


def _guard() -> address_guard.AddressGuard:
    """Return the guard of the processes, if its settings can be read; those that cannot are a finding already."""
    if any(name.startswith("ENDPOINT_") for name in settings.complaints()):
        return address_guard.AddressGuard()
    return settings.load(settings.Guarded).guard()


def _in_redis(url: str) -> list[Finding]:
    def default(kind: type[settings.Environment], name: str) -> float:
        return float(kind.model_fields[name].default)

    timeout = default(settings.Scheduler, "listener_timeout_seconds")
    sessions = default(settings.Worker, "asterisk_sessions")
    if not settings.complaints():
        timeout = settings.load(settings.Scheduler).listener_timeout_seconds
        sessions = settings.load(settings.Worker).asterisk_sessions
    return process_checks.check_redis(url, listener_timeout_seconds=timeout, asterisk_sessions=int(sessions))


def _checked(what: str, ask: Callable[[], list[Finding]]) -> list[Finding]:
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
