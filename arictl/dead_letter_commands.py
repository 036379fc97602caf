"""`arictl dlq`: the dead letters, messages that have failed for good."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated

import redis
import typer

from arictl import operators, options, output, tools
from shared import errors
from shared.operator import dead_letter_actions as dead_letters
from shared.operator import dead_letter_sets
from shared.operator.audit import Actor
from shared.operator.dead_letter_actions import Filter, Letter
from shared.operator.dead_letter_sets import FrozenSet, Order
from shared.storage import database

app = typer.Typer(help="Messages that have failed for good.", no_args_is_help=True, rich_markup_mode=None)

Ids = Annotated[list[str] | None, typer.Argument(metavar="LETTER...", help="As arictl dlq list --each names them.")]
Error = Annotated[str | None, typer.Option(help="Those whose error has this text.")]
Queue = Annotated[str | None, typer.Option(help="Those of this queue.")]
Connection = Annotated[int | None, options.number(help="Those of this connection.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterPage:
    """Letters, the newest first."""

    letters: tuple[Letter, ...]
    #: To be given to `--before` for the next page; null: there is none.
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledLetter:
    """What has become of one letter."""

    id: str
    #: `enqueued`, `was queued` (it was in its queue already), `discarded`, `gone` (there was none) or `refused` (it
    #: cannot be retried: the status is 1).
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What has become of letters: of each that was named, or of a set."""

    letters: tuple[SettledLetter, ...]
    #: Those that matched a filter, on which the scheduler works.
    set: FrozenSet | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetList:
    """Sets of dead letters, the newest first."""

    sets: tuple[FrozenSet, ...]


@app.callback()
def group() -> None:
    """Messages that have failed for good."""


@app.command("list")
def list_letters(  # noqa: PLR0917 - typer reads these as options
    each: Annotated[bool, typer.Option("--each", help="List the letters, newest first, instead of groups.")] = False,
    error: Error = None,
    queue: Queue = None,
    connection: Connection = None,
    limit: Annotated[int, options.number(largest=10_000, help="With --each: the largest number of letters.")] = 30,
    before: Annotated[str | None, typer.Option(metavar="LETTER", help="With --each: only those before it.")] = None,
    as_json: output.AsJson = False,
) -> None:
    """List dead letters by their errors, those of the last seven days."""
    wanted = _filter(error, queue, connection)
    with tools.with_redis() as (_, _, broker):
        if each:
            page = dead_letters.page(broker.client, wanted, limit=limit, before=before)
            following = page[-1].id if len(page) == limit else None
            output.answer(LetterPage(letters=tuple(page), next=following), lambda: _show_page(page), as_json=as_json)
        else:
            found = dead_letters.overview(broker.client, wanted)
            output.answer(found, lambda: _show_groups(found), as_json=as_json)


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="As arictl dlq list names it.")],
    as_json: output.AsJson = False,
) -> None:
    """Show a dead letter: its message and its traceback. Numbers are masked."""
    with tools.with_redis() as (_, _, broker):
        opened = dead_letters.get(broker.client, letter)
    output.answer(opened, lambda: _show_letter(opened), as_json=as_json)


@app.command()
def retry(  # noqa: PLR0917 - typer reads these as options
    letters: Ids = None,
    error: Error = None,
    queue: Queue = None,
    connection: Connection = None,
    every: Annotated[bool, typer.Option("--all", help="Every letter that is there now.")] = False,
    reason: Annotated[str, typer.Option(help="Why: kept in the audit.")] = "",
    as_json: output.AsJson = False,
) -> None:
    """Enqueue the messages of dead letters again, each once.

    By a filter the letters that are there now are fixed, 10,000 at most, and the scheduler works on them: arictl dlq
    set. What fails meanwhile is not among them.
    """
    _settle("retry", letters or [], _filter(error, queue, connection), every=every, reason=reason, as_json=as_json)


@app.command()
def discard(  # noqa: PLR0917 - typer reads these as options
    letters: Ids = None,
    error: Error = None,
    queue: Queue = None,
    connection: Connection = None,
    every: Annotated[bool, typer.Option("--all", help="Every letter that is there now.")] = False,
    reason: Annotated[str, typer.Option(help="Why: kept in the audit.")] = "",
    as_json: output.AsJson = False,
) -> None:
    """Delete dead letters. Their rows in the timeline stay. A filter works as for arictl dlq retry."""
    _settle("discard", letters or [], _filter(error, queue, connection), every=every, reason=reason, as_json=as_json)


@app.command("set")
def show_set(
    number: Annotated[
        int | None,
        typer.Argument(metavar="SET", min=1, max=options.LARGEST, help="The number of the set; the last ones if none."),
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Show how far the retrying or discarding of a set of dead letters has come."""
    with tools.opened() as (_, db):
        found = dead_letter_sets.recent(db) if number is None else [dead_letter_sets.get(db, number)]
    told = "\n".join(map(_told, found)) or "No sets."
    output.answer(SetList(sets=tuple(found)), lambda: tools.out.print(told), as_json=as_json)


def _filter(error: str | None, queue: str | None, connection: int | None) -> Filter:
    return Filter(error=error, queue=queue, group=str(connection) if connection is not None else None)


def _settle(order: Order, letters: list[str], wanted: Filter, *, every: bool, reason: str, as_json: bool) -> None:
    is_filtered = every or wanted != Filter()
    if bool(letters) == is_filtered:
        raise errors.InvalidRequest("name letters, or a filter (--error, --queue, --connection, --all)")
    actor = operators.actor()
    with tools.with_redis() as (_, db, broker):
        if is_filtered:
            frozen = dead_letter_sets.freeze(db, broker.client, actor, wanted, reason)
            frozen = dead_letter_sets.order(db, actor, frozen.set_id, order)
            result = Settled(letters=(), set=frozen)
        else:
            settled = tuple(_settled(db, broker.client, actor, order, each) for each in letters)
            result = Settled(letters=settled, set=None)
    output.answer(result, lambda: _show_settled(result), as_json=as_json)
    if any(one.outcome == _REFUSED for one in result.letters):
        raise typer.Exit(1)


def _settled(db: database.Database, client: redis.Redis, actor: Actor, order: Order, letter: str) -> SettledLetter:
    """Retry or discard a letter. One that cannot be retried keeps none of the others from it."""
    if order == "discard":
        outcome = "discarded" if dead_letters.discard(db, client, actor, letter) else "gone"
    else:
        try:
            outcome = str(dead_letters.retry(db, client, actor, letter))
        except errors.InvalidRequest as exc:
            sys.stderr.write(f"arictl: {exc}\n")
            outcome = _REFUSED
    return SettledLetter(id=letter, outcome=outcome)


_REFUSED = "refused"
_OUTCOMES = {
    "enqueued": "its message is in its queue again",
    "was queued": "its message was in its queue already",
    "discarded": "is discarded",
    "gone": "is not there: it was retried, discarded or dropped before",
}


def _show_settled(result: Settled) -> None:
    for each in result.letters:
        # Why one is refused was said.
        if each.outcome != _REFUSED:
            tools.out.print(f"Dead letter {tools.plain(each.id)}: {_OUTCOMES[each.outcome]}.")
    if result.set is not None:
        tools.out.print(_told(result.set))


def _told(found: FrozenSet) -> str:
    state = "is not ordered"
    if found.action is not None:
        ended = "in work" if found.ended_at is None else f"ended {tools.moment(found.ended_at)}"
        state = f"to {found.action}, {ended}"
    counts = [(found.gone, "gone"), (found.refused, "cannot be retried")]
    more = [f"{number} {what}" for number, what in counts if number]
    return f"Set {found.set_id}: {state}; {', '.join([f'{found.done} of {found.total} done', *more])}."


def _show_groups(found: dead_letters.Overview) -> None:
    if not found.groups:
        tools.out.print("No dead letters.")
    else:
        table = tools.table("letters", "queue", "oldest", "newest", "example", "error")
        for one in found.groups:
            table.add_row(
                str(one.count), tools.plain(one.queue), tools.moment(one.oldest), tools.moment(one.newest), one.example,
                tools.plain(one.kind),
            )  # fmt: skip
        tools.out.print(table)
    if not found.is_complete:
        tools.out.print(f"Of {found.total} the newest {dead_letters.MOST} were looked at.")
    if found.dropped:
        tools.out.print(f"{found.dropped} were dropped for later ones (DEAD_LETTERS).")


def _show_page(page: list[Letter]) -> None:
    if not page:
        tools.out.print("No dead letters.")
        return
    table = tools.table("letter", "failed", "message", "of", "call", "error")
    for one in page:
        of = one.group if not one.group.isdigit() else f"connection {one.group}"
        table.add_row(
            one.id, tools.moment(one.at), tools.plain(one.actor or f"? in {one.queue}"), tools.plain(of),
            tools.plain((one.call_id or "-")[:8]), tools.plain(one.error),
        )  # fmt: skip
    tools.out.print(table)


def _show_letter(opened: dead_letters.OpenedLetter) -> None:
    one = opened.letter
    tools.out.print(f"Dead letter {one.id}, queue {tools.plain(one.queue)}, failed {tools.moment(one.at)}")
    tools.out.print(f"[bold red]{tools.plain(one.error)}[/]")
    if one.call_id is not None:
        tools.out.print(f"arictl trace {tools.plain(one.call_id)}")
    if one.unretriable:
        tools.out.print(f"It cannot be retried: {tools.plain(one.unretriable)}.")
    body = json.dumps(opened.message, indent=2, ensure_ascii=False) if opened.message is not None else opened.body
    for text in (body, opened.traceback):
        tools.out.print("\n".join(["", *(tools.plain(line) for line in text.splitlines())]))
