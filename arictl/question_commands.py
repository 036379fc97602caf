"""`arictl losses`, `steps`, `changes`: the operator's first questions, each about many calls at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import typer

from arictl import options, output, tools
from shared import errors
from shared.operator import call_queries, changes, losses, processes, step_times, stories
from shared.operator.changes import Change
from shared.operator.losses import Loss
from shared.operator.step_times import StepTime
from shared.storage import database

Since = Annotated[str, typer.Option(metavar="WHEN", help="From then on: 90s, 30m, 2h, 7d ago, or a moment (UTC).")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossList:
    """Calls that did not end well, by organization and fault, the largest first."""

    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepList:
    """What the newest calls have waited for, the slowest first."""

    steps: tuple[StepTime, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeList:
    """What has changed, the newest first."""

    changes: tuple[Change, ...]


def list_losses(since: Since = "1h", as_json: output.AsJson = False) -> None:
    """Tell whose calls did not end well, whose fault it was, and since when: of the newest 20,000 calls."""
    with tools.opened() as (_, db):
        found = losses.read(db, _within(db, since))
    output.answer(LossList(losses=found), lambda: _show_losses(found), as_json=as_json)


def _show_losses(found: tuple[Loss, ...]) -> None:
    table = tools.table("org", "fault", "lost", "of", "first", "last", "last connected", "most frequent reason")
    for one in found:
        table.add_row(
            str(one.organization_id), tools.plain(one.fault), str(one.lost), str(one.received),
            tools.moment(one.first_at), tools.moment(one.last_at), tools.moment(one.last_connected_at),
            tools.plain(one.reason),
        )  # fmt: skip
    tools.out.print(table if found else "None is lost.")


def list_steps(since: Since = "10m", as_json: output.AsJson = False) -> None:
    """Tell what the newest 200 calls have waited for, and how long; the slowest first."""
    with tools.opened() as (_, db):
        found = step_times.read(db, _within(db, since))
    output.answer(StepList(steps=found), lambda: _show_steps(found), as_json=as_json)


def _show_steps(found: tuple[StepTime, ...]) -> None:
    table = tools.table("waited for", "calls", "p50", "p95", "longest", "call", "what")
    for one in found:
        times = (stories.duration(seconds) for seconds in (one.p50, one.p95, one.longest))
        table.add_row(one.part, str(one.calls), *times, str(one.example)[:8], tools.plain(one.what))
    tools.out.print(table if found else "No calls.")


def list_changes(since: Since = "1d", as_json: output.AsJson = False) -> None:
    """Tell what has changed: what operators did, configurations, and processes that have started or gone."""
    with tools.with_redis() as (config, db, _):
        known = processes.Processes(config.redis_url.get_secret_value())
        try:
            found = changes.read(db, known.all(), _within(db, since))
        finally:
            known.close()
    output.answer(ChangeList(changes=found), lambda: _show_changes(found), as_json=as_json)


def _show_changes(found: tuple[Change, ...]) -> None:
    table = tools.table("at", "who", "what", "subject")
    for one in found:
        table.add_row(tools.moment(one.at), *map(tools.plain, (one.who or "-", one.what, one.subject)))
    tools.out.print(table if found else "Nothing has changed.")


def _within(db: database.Database, since: str) -> timedelta:
    moment = options.moment(since, "--since")
    assert moment is not None
    if isinstance(moment, datetime):
        moment = call_queries.now(db) - moment
    if moment < timedelta(0):
        raise errors.PermanentError(f"--since: {since} is to come")
    return moment
