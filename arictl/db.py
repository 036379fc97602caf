"""`arictl db`: the database's schema."""

from __future__ import annotations

import typer

from arictl import tools
from shared.process import settings
from shared.storage import migrations

app = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """The database's schema."""


@app.command()
def upgrade() -> None:
    """Bring the database to this release's schema. Safe to repeat, and while calls run."""
    config = settings.load(settings.Tool)
    revision = migrations.upgrade(config.database_url.get_secret_value())
    tools.out.print(f"The database is at revision {revision}.")
