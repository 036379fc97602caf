"""`arictl db`: the schema of the database."""

from __future__ import annotations

import typer

from arictl import operators, output, tools
from shared.operator import audit
from shared.platform.dograh import layouts
from shared.process import settings
from shared.storage import migrations

app = typer.Typer(help="The schema of the database.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """The schema of the database."""


@app.command()
def upgrade(as_json: output.AsJson = False) -> None:
    """Upgrade the database to the schema of this release. Safe to repeat, and while calls are running."""
    config = settings.load(settings.Tool)
    revision = migrations.upgrade(config.database_url.get_secret_value())
    with tools.opened() as (_, db):
        with db.connection() as connection:
            action = audit.Action(name="db upgrade", subject="database", detail={"revision": revision})
            audit.record(connection, operators.actor(), action)
        found = layouts.find(db, config.platform_layout)
    told = [f"The database is at revision {revision}."]
    if found.unserved is not None:
        # The schema of ours is made beside any layout: that alone would look as if calls could be served.
        told.append(f"But no call can be served: {found.unserved}")
    output.done("\n".join(told), as_json=as_json)
