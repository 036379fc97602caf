"""`arictl processes`, `errors`, `log-level`: what runs where, what it failed at, and how much it logs."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from arictl import operators, options, output, tools
from shared import errors
from shared.operator import audit, host_loss, processes
from shared.operator.host_loss import HostLoss
from shared.operator.processes import LoggedError, Process
from shared.process import settings

_UNITS = {"s": 1, "m": 60, "h": 3600}
_LISTED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessList:
    """The processes of the last day."""

    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorList:
    """What processes have logged, the newest first."""

    errors: tuple[LoggedError, ...]


def list_processes(
    without: Annotated[
        str | None, typer.Option(metavar="HOST", help="Tell what remains if this host dies, instead.")
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """List the processes of the last day: where they run, and at which level they log."""
    with _opened() as known:
        found = tuple(known.all())
    if without is not None:
        loss = _loss(without, found)
        output.answer(loss, lambda: _show_loss(loss), as_json=as_json)
        return
    output.answer(ProcessList(processes=found), lambda: _show_processes(found), as_json=as_json)


def _show_processes(found: Sequence[Process]) -> None:
    table = tools.table("process", "kind", "there", "version", "host", "pid", "started", "metrics", "log level")
    for each in found:
        own = ", ".join(f"{connection}: {level}" for connection, level in each.log_levels.items())
        table.add_row(
            tools.plain(each.name),
            tools.plain(each.kind),
            "yes" if each.is_there else f"[bold red]gone[/] for {_duration(each.silent_seconds)}",
            tools.plain(each.version),
            tools.plain(each.host),
            str(each.pid or ""),
            tools.plain(each.started_at[:19].replace("T", " ")),
            tools.plain(each.metrics or "-"),
            tools.plain(f"{each.log_level} (connection {own})" if own else each.log_level),
        )
    tools.out.print(table if found else "None within the last day.")


def _loss(host: str, found: Sequence[Process]) -> HostLoss:
    if not any(each.is_there and each.host == host for each in found):
        raise errors.PermanentError(f"no process runs on {host!r}: arictl processes lists the hosts")
    with tools.opened() as (_, db), db.connection() as connection:
        sockets = connection.execute(host_loss.SOCKETS).fetchall()
        leaders = connection.execute(host_loss.LEADER).fetchall()
    leader = leaders[0]["leader"] if leaders else None
    return host_loss.of(host, found, leader=leader, sockets={row["listener"]: row["sockets"] for row in sockets})


def _show_loss(loss: HostLoss) -> None:
    table = tools.table("kind", f"on {tools.plain(loss.host)}", "left")
    for each in loss.kinds:
        if each.lost or each.left:
            names = (", ".join(map(tools.plain, some)) or "none" for some in (each.lost, each.left))
            table.add_row(each.kind, *names)
    tools.out.print(table)
    tools.out.print()
    for sentence in host_loss.sentences(loss):
        tools.out.print(tools.plain(sentence))


def list_errors(
    process: Annotated[
        str | None, typer.Argument(metavar="PROCESS", help="Only those of this process; of every process if none.")
    ] = None,
    warnings: Annotated[bool, typer.Option("--warnings", help="List warnings, too.")] = False,
    limit: Annotated[int, options.number(largest=10_000, help="The largest number of entries to list.")] = _LISTED,
    full: Annotated[bool, typer.Option("--full", help="Show the end of each traceback.")] = False,
    as_json: output.AsJson = False,
) -> None:
    """List the last errors of the processes, newest first: up to 200 of each, of the last day."""
    with _opened() as known:
        found = known.errors(process, with_warnings=warnings, limit=limit)
        if process is not None and not found and not any(_is_meant(each, process) for each in known.all()):
            raise errors.PermanentError(f"no process {process!r} within the last day: arictl processes lists them")
    output.answer(ErrorList(errors=tuple(found)), lambda: _show_errors(found, full=full), as_json=as_json)


def _show_errors(found: Sequence[LoggedError], *, full: bool) -> None:
    table = tools.table("at", "process", "severity", "call", "connection", "event", "detail")
    for each in found:
        exception = each.exception if full else each.exception.strip().rpartition("\n")[2]
        table.add_row(
            tools.plain(each.at[:23].replace("T", " ")),
            tools.plain(each.process),
            each.severity,
            tools.plain(each.call[:8] or "-"),
            tools.plain(each.connection or "-"),
            tools.plain(each.event),
            "\n".join(tools.plain(line) for text in (each.detail, exception) for line in text.splitlines()),
        )
    tools.out.print(table if found else "None within the last day.")


def log_level(
    level: Annotated[str, typer.Argument(help="debug, info, warning or error; default takes a level back.")],
    process: Annotated[str, typer.Option(metavar="NAME", help="Only of this process; of every process if none.")] = "",
    connection: Annotated[
        int | None, options.number(metavar="ID", help="Only the lines of this connection, at this level.")
    ] = None,
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long: 90s, 15m or 1h (the default); 24h at most.")
    ] = "1h",
    as_json: output.AsJson = False,
) -> None:
    """Change what the processes log, within 5 s and for a time; then the level of their settings holds again."""
    seconds = _seconds(duration)
    if level not in (*processes.LEVELS, "default"):
        raise errors.PermanentError(f"no level {level!r}: debug, info, warning, error, or default")
    of = (f"of connection {connection}" if connection else "of every line") + f" in {process or 'every process'}"
    with _opened() as known, _announced(level, of) as result:
        if process and not any(_is_meant(each, process) for each in known.all()):
            raise errors.PermanentError(f"no process {process!r} within the last day: arictl processes lists them")
        if level == "default":
            was_set = known.take_back(process=process, connection_id=connection or 0)
            text = f"The level {of} is that of the settings within 5 s." if was_set else "None was set."
        else:
            was_set = True
            known.wish(
                processes.LevelWish(level=level, process=process, connection_id=connection or 0, seconds=seconds)
            )
            text = f"The level {of} is {level} within 5 s, for {_duration(seconds)}."
        result.outcome = audit.Outcome.DONE if was_set else audit.Outcome.NOTHING
    output.done(text, as_json=as_json, changed=was_set)


@contextlib.contextmanager
def _announced(level: str, of: str) -> Iterator[audit.Announced]:
    """Record that a level is asked for, and what came of it, unless Postgres is away: a log is needed most then."""
    action = audit.Action(name="log-level", subject=f"log level {of}", detail={"level": level})
    with contextlib.ExitStack() as recording:
        try:
            _, db = recording.enter_context(tools.opened())
            result = recording.enter_context(audit.announced(db, operators.actor(), action))
        except (errors.DatabaseUnavailable, errors.DatabaseRefused, errors.InvalidSettings) as exc:
            # Refused: its schema is that of an earlier release.
            sys.stderr.write(f"arictl: not recorded in the audit: {exc}\n")
            result = audit.Announced()
        yield result


def _is_meant(found: processes.Process, name: str) -> bool:
    return name in (found.name, f"{found.kind}/{found.name}")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})([smh])", text.strip())
    seconds = int(match[1]) * _UNITS[match[2]] if match is not None else 0
    if not 0 < seconds <= processes.LONGEST_SECONDS:
        raise errors.PermanentError(f"no time {text!r}: 90s, 15m or 1h, and 24h at most")
    return seconds


def _duration(seconds: float) -> str:
    unit, name = next((each for each in ((3600, "h"), (60, "min")) if seconds >= 2 * each[0]), (1, "s"))
    return f"{seconds / unit:.0f} {name}"


@contextlib.contextmanager
def _opened() -> Iterator[processes.Processes]:
    known = processes.Processes(settings.load(settings.RedisTool).redis_url.get_secret_value())
    try:
        yield known
    finally:
        known.close()
