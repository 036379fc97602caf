"""`arictl installation`: what tells this installation from another one on the same Asterisk."""

from __future__ import annotations

import typer

from arictl import tools
from shared.storage import id_prefixes

app = typer.Typer(
    help="What tells this installation from others on the same Asterisk.", no_args_is_help=True, rich_markup_mode=None
)

_RESTART = "Restart every worker: until then it makes ids with the prefix before."


@app.callback()
def group() -> None:
    """What tells this installation from others on the same Asterisk."""


@app.command()
def show() -> None:
    """Show the prefixes of this installation's channel and bridge ids, the newest first."""
    table = tools.table("prefix", "since", "state")
    with tools.opened() as (config, db):
        prefixes = id_prefixes.IdPrefixes(db, override=None).drawn()
    if config.id_prefix is not None:
        table.add_row(config.id_prefix, "", "in use: ID_PREFIX is set here")
    for number, one in enumerate(prefixes):
        state = "in use" if number == 0 and config.id_prefix is None else "of earlier calls"
        state += "" if one.is_here else ", drawn in another database"
        table.add_row(one.prefix, f"{one.drawn_at:%Y-%m-%d %H:%M}", state)
    tools.out.print(table if table.rows else "None yet: the first worker that starts draws one.")


@app.command()
def draw() -> None:
    """Draw another prefix: for a copy of another installation's database, or to give up `aip-`.

    Calls in progress keep theirs, and what they leave on an Asterisk is still removed.
    """
    with tools.opened() as (config, db):
        prefix = id_prefixes.IdPrefixes(db, override=config.id_prefix).draw()
    tools.out.print(f"The ids of new calls begin with {prefix}. {_RESTART}")
    if config.id_prefix is not None:
        tools.out.print("ID_PREFIX is set here: a process that has it uses that one. Remove it.")


@app.command()
def keep() -> None:
    """Keep the prefix of a restored database: the installation that it was taken from is gone."""
    with tools.opened() as (_, db):
        id_prefixes.IdPrefixes(db, override=None).keep()
    tools.out.print("Kept.")
