"""`arictl doctor`: checks everything that a call needs, and says how to repair what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, cast

import typer

from arictl import options, output, tools
from shared import errors
from shared.asterisk import address_guard, config_files, tcp_connector
from shared.operator.checks import (
    connection_checks,
    platform_checks,
    platform_redis_checks,
    process_checks,
    quota_checks,
    server_checks,
)
from shared.operator.checks.findings import Finding, Level, warning, wrong
from shared.platform import dograh
from shared.platform.dograh import layouts
from shared.process import sealing, settings
from shared.storage import database

_COLOURS = {Level.OK: "green", Level.WARNING: "bold yellow", Level.WRONG: "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What was found of one thing."""

    #: Such as `Redis`, or `organization 3, connection 7`.
    heading: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that was checked, in its order."""

    sections: tuple[Section, ...]


class _Report:
    """Collects the sections; prints each as it is made, if it is shown."""

    def __init__(self, *, is_shown: bool) -> None:
        self.sections: list[Section] = []
        self._is_shown = is_shown

    def show(self, heading: str, findings: Iterable[Finding]) -> None:
        """Add a section."""
        section = Section(heading=heading, findings=tuple(findings))
        self.sections.append(section)
        if self._is_shown:
            show(heading, section.findings)


def doctor(
    organization: Annotated[int | None, options.organization("Check only this organization's connection.")] = None,
    dialplan: Annotated[
        int | None,
        options.number(
            metavar="ORG",
            help="Print the configuration files that this organization's Asterisk needs, instead of checking.",
        ),
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Check settings, servers, processes and each Asterisk; say what to repair. Status 1 if anything is wrong."""
    if dialplan is not None:
        _print_files(dialplan)
        return
    report = _Report(is_shown=not as_json)
    _examine(organization, report)
    found = Diagnosis(sections=tuple(report.sections))
    output.answer(found, lambda: tools.out.print(f"\n{_counted(report.sections)}"), as_json=as_json)
    if any(finding.level is Level.WRONG for section in report.sections for finding in section.findings):
        raise typer.Exit(1)


def _counted(sections: Iterable[Section]) -> str:
    levels = [finding.level for section in sections for finding in section.findings]
    number = {level: levels.count(level) for level in Level}
    return f"{number[Level.OK]} ok, {number[Level.WARNING]} warnings, {number[Level.WRONG]} wrong"


def _examine(organization: int | None, report: _Report) -> None:
    """Check one thing after the other."""
    complaints = settings.complaints()
    config = settings.load(settings.Doctor)
    secrets = platform_checks.check_token_secrets(
        ours=config.media_token_secret.get_secret_value(), platforms=config.telephony_ws_token_secret.get_secret_value()
    )
    report.show("settings", server_checks.check_settings() + secrets)
    redis_url, database_url, keys = (
        value.get_secret_value() if value is not None and name not in complaints else None
        for name, value in (
            ("REDIS_URL", config.redis_url),
            ("DATABASE_URL", config.database_url),
            ("SECRET_KEY", config.secret_key),
        )
    )
    if redis_url is not None:
        report.show("Redis", server_checks.check_redis(redis_url))
    if database_url is not None:
        # Its log would repeat the finding.
        logging.getLogger("shared.storage.database").setLevel(logging.CRITICAL)
        db = database.Database(database_url, size=2, statement_seconds=5, name="arictl")
        db.open()
        try:
            _with_database(
                report, db, database_url=database_url, redis_url=redis_url, keys=keys, organization=organization
            )
        finally:
            db.close()
    elif redis_url is not None:
        report.show("processes", _in_redis(redis_url))


def _with_database(
    report: _Report,
    db: database.Database,
    *,
    database_url: str,
    redis_url: str | None,
    keys: str | None,
    organization: int | None,
) -> None:
    postgres = server_checks.check_postgres(database_url, db)
    report.show("Postgres", postgres)
    in_redis = _in_redis(redis_url) if redis_url is not None else []
    setting = _layout()
    if any(finding.what == "Postgres" for finding in postgres):
        # Postgres does not answer: each further check would only wait for its time-out.
        report.show("processes", in_redis)
        return
    completion = settings.load(settings.Doctor).run_completion
    told = settings.load(settings.Doctor).platform_redis_url is not None
    in_platform = _checked("layout", lambda: platform_checks.check(db, setting, run_completion=completion))
    in_platform += _checked(
        "ended runs", lambda: platform_checks.check_outbox(db, redis_is_known=told, setting=setting)
    )
    in_platform += _checked("platform's Redis", lambda: _platform_redis(db, setting, redis_url))
    in_platform += _quota_service()
    report.show("platform", in_platform)
    in_postgres = _checked("scheduler", lambda: process_checks.check_scheduler(db))
    in_postgres += _checked("calls", lambda: process_checks.check_calls(db))
    in_postgres += _checked(
        "id prefix", lambda: process_checks.check_id_prefix(db, settings.load(settings.Doctor).id_prefix)
    )
    report.show("processes", in_postgres + in_redis)
    sealer = sealing.Sealer(tuple(key.strip() for key in keys.split(","))) if keys is not None else None
    try:
        found = connection_checks.check(
            db, sealer, organization, tcp_connector.TcpConnector(_guard()), watch=dograh.Watch(db, setting, quiet=True)
        )
    except errors.PipelineError as exc:
        report.show("connections", [wrong("connections", str(exc), "see Postgres above")])
        return
    for connection in found:
        report.show(connection.heading, connection.findings)
    if not found:
        seen = "none" if organization is None else f"organization {organization} has none"
        report.show("connections", [warning("connections", seen, "add one: arictl connection add --help")])


def _layout() -> layouts.Setting:
    """Return the setting of the processes, if it can be read; if not, that is a finding already."""
    named = settings.load(settings.Doctor).platform_layout
    return layouts.AUTO if "PLATFORM_LAYOUT" in settings.complaints() else cast(layouts.Setting, named)


def _platform_redis(db: database.Database, setting: layouts.Setting, own_url: str | None) -> list[Finding]:
    config, complaints = settings.load(settings.Doctor), settings.complaints()
    url = config.platform_redis_url if "PLATFORM_REDIS_URL" not in complaints else None
    found = layouts.find(db, setting)
    limits, seconds = dograh.CallLimits(), float(settings.WithDatabase.model_fields["platform_redis_seconds"].default)
    if not complaints:
        operator = settings.load(settings.Operator)
        limits, seconds = dograh.CallLimits(setting=operator.platform_call_limit), operator.platform_redis_seconds
    return platform_redis_checks.check(
        url.get_secret_value() if url is not None else None,
        own_url,
        found,
        seconds=seconds,
        takes_slots=limits.shares_slots_of(found),
    )


def _quota_service() -> list[Finding]:
    """Check the quota service, unless its settings cannot be read, which is a finding already."""
    if {"QUOTA", "MPS_API_URL"} & settings.complaints().keys():
        return []
    config = settings.load(settings.Doctor)
    return quota_checks.check(config.quota, config.mps_api_url)


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


def show(heading: str, findings: Iterable[Finding]) -> None:
    """Print a section of findings."""
    tools.out.print(f"\n[bold]{tools.plain(heading)}[/]")
    for finding in findings:
        colour = _COLOURS[finding.level]
        tools.out.print(f"  [{colour}]{finding.level:<7}[/]  {tools.plain(finding.what)}: {tools.plain(finding.seen)}")
        if finding.todo:
            tools.out.print(f"           → {tools.plain(finding.todo)}")


def _print_files(organization: int) -> None:
    with tools.opened() as (config, db):
        configured = dograh.Configurations(db, watch=dograh.Watch(db, config.platform_layout, quiet=True)).all()
    rows = [row for row in configured if row.organization_id == organization]
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
