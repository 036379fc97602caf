"""`arictl installation`: what tells this installation from another one on the same Asterisk."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from arictl import operators, output, tools
from shared.storage import id_prefixes
from shared.storage.id_prefixes import DrawnPrefix

app = typer.Typer(
    help="What tells this installation from others on the same Asterisk.", no_args_is_help=True, rich_markup_mode=None
)

_RESTART = "Restart every worker: until then it makes ids with the prefix before."


@app.callback()
def group() -> None:
    """What tells this installation from others on the same Asterisk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """The prefixes of this installation's ids."""

    #: The setting ID_PREFIX of this environment, which goes before those that were drawn.
    setting: str | None
    #: The newest first.
    drawn: tuple[DrawnPrefix, ...]


@app.command()
def show(as_json: output.AsJson = False) -> None:
    """Show the prefixes of this installation's channel and bridge ids, the newest first."""
    with tools.opened() as (config, db):
        found = Prefixes(setting=config.id_prefix, drawn=tuple(id_prefixes.IdPrefixes(db, override=None).drawn()))
    output.answer(found, lambda: _show(found), as_json=as_json)


@app.command()
def draw(as_json: output.AsJson = False) -> None:
    """Draw another prefix: for a copy of another installation's database, or to give up `aip-`.

    Calls in progress keep theirs, and what they leave on an Asterisk is still removed.
    """
    with tools.opened() as (config, db):
        # The first one, if it is not drawn yet, is no operator's.
        id_prefixes.IdPrefixes(db, override=config.id_prefix).current()
        with operators.recorded(db, "installation draw", "this installation") as recording:
            prefix = id_prefixes.IdPrefixes(recording, override=config.id_prefix).draw()
    told = [f"The ids of new calls begin with {prefix}. {_RESTART}"]
    if config.id_prefix is not None:
        told.append("ID_PREFIX is set here: a process that has it uses that one. Remove it.")
    output.done("\n".join(told), as_json=as_json)


@app.command()
def keep(as_json: output.AsJson = False) -> None:
    """Keep the prefix of a restored database: the installation that it was taken from is gone."""
    with tools.opened() as (_, db), operators.recorded(db, "installation keep", "this installation") as recording:
        id_prefixes.IdPrefixes(recording, override=None).keep()
    output.done("Kept.", as_json=as_json)


def _show(found: Prefixes) -> None:
    table = tools.table("prefix", "since", "state")
    if found.setting is not None:
        table.add_row(found.setting, "", "in use: ID_PREFIX is set here")
    for number, one in enumerate(found.drawn):
        state = "in use" if number == 0 and found.setting is None else "of earlier calls"
        state += "" if one.is_here else ", drawn in another database"
        table.add_row(one.prefix, f"{one.drawn_at:%Y-%m-%d %H:%M}", state)
    tools.out.print(table if table.rows else "None yet: the first worker that starts draws one.")
