"""`arictl db`: the schema of the database."""

from __future__ import annotations

import typer

from arictl import tools
from shared.platform.dograh import layouts
from shared.process import settings
from shared.storage import migrations

app = typer.Typer(help="The schema of the database.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """The schema of the database."""


@app.command()
def upgrade() -> None:
    """Upgrade the database to the schema of this release. Safe to repeat, and while calls are running."""
    config = settings.load(settings.Tool)
    revision = migrations.upgrade(config.database_url.get_secret_value())
    tools.out.print(f"The database is at revision {revision}.")
    with tools.opened() as (_, db):
        found = layouts.find(db, config.platform_layout)
    if found.unserved is not None:
        # The schema of ours is made beside any layout: that alone would look as if calls could be served.
        tools.out.print(f"But no call can be served: {tools.plain(found.unserved)}")
