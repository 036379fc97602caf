"""`arictl audit`: what operators have done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from arictl import options, output, tools
from shared.operator import audit

#: Characters of one value in the table.
_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """What operators have done, the newest first."""

    rows: tuple[audit.Row, ...]
    #: To be given to `--before` for the next page; null: there is none.
    next: int | None


def show_audit(  # noqa: PLR0917 - typer reads these as options
    organization: Annotated[int | None, options.organization("Only what concerned this organization.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as 'quota set'.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only what was done to this, such as 'connection 7'.")] = None,
    who: Annotated[str | None, typer.Option(help="Only what this operator has done.")] = None,
    limit: Annotated[int, options.number(largest=audit.PAGE, help="The largest number of rows.")] = 30,
    before: Annotated[
        int | None, options.number(largest=2**63 - 1, metavar="ID", help="Only rows before this one.")
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Show what operators have done, newest first: by arictl and in the console."""
    with tools.opened() as (_, db):
        found = audit.page(
            db, before=before, limit=limit, organization=organization, action=action, subject=subject, who=who
        )
    page = AuditPage(rows=tuple(found), next=found[-1].id if len(found) == limit else None)
    output.answer(page, lambda: _show(found), as_json=as_json)


def _show(found: Sequence[audit.Row]) -> None:
    table = tools.table("id", "at", "who", "by", "outcome", "action", "subject", "detail")
    for row in found:
        told = ", ".join(f"{name}={_short(value)}" for name, value in row.detail.items())
        table.add_row(
            str(row.id), tools.moment(row.at), tools.plain(row.who), tools.plain(row.via), row.outcome,
            tools.plain(row.action), tools.plain(row.subject), tools.plain(told),
        )  # fmt: skip
    tools.out.print(table if found else "Nothing was done yet.")


def _short(value: object) -> str:
    """Return a value as a table has place for it; `--json` has it whole."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
