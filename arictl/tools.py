"""What the commands work with: settings and a database, opened for one command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from shared import database, settings

#: Wide enough for a table also where there is no terminal.
out = Console(highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """What a tenant, its PBX or a caller chose, as it may be shown: neither markup nor a terminal's control codes."""
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))


@contextlib.contextmanager
def opened() -> Iterator[tuple[settings.Tool, database.Database]]:
    """The settings and a database for one command. Raises InvalidSettings or, when used, DatabaseUnavailable."""
    config = settings.load(settings.Tool)
    db = database.Database(config.database_url.get_secret_value(), size=2, statement_seconds=10, name="arictl")
    db.open()
    try:
        yield config, db
    finally:
        db.close()
