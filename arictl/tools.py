"""Settings, a database and output for the commands, opened for one command."""

from __future__ import annotations

import contextlib
import getpass
import logging
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared import queues
from shared.process import settings
from shared.storage import call_writer, database, id_prefixes, postgres_calls

#: Wide enough for a table if there is no terminal.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def table(*headings: str) -> Table:
    """Return an empty table; only its last two columns, the long ones, are wrapped."""
    made = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        made.add_column(heading, no_wrap=number < len(headings) - 2)
    return made


def plain(text: str) -> str:
    """Return text of a tenant, its PBX or a caller, safe to show: without markup and terminal control codes."""
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))


@contextlib.contextmanager
def acting() -> Iterator[tuple[settings.Operator, database.Database, call_writer.CallWriter]]:
    """Open settings, a database and a writer of calls, for one command that acts on a call as a process would.

    Its commands go through Redis; if that is unreachable, the sweep dispatches them again within seconds.
    """
    config = settings.load(settings.Operator)
    with _opened(config.database_url.get_secret_value()) as db:
        commands = queues.BrokerCommandQueue(queues.broker(config.redis_url.get_secret_value()))
        prefix = id_prefixes.IdPrefixes(db, override=config.id_prefix).current()
        calls = postgres_calls.PostgresCalls(db, who=f"arictl of {getpass.getuser()}", prefix=prefix)
        yield config, db, call_writer.CallWriter(calls, commands, config.limits(), who="arictl")


@contextlib.contextmanager
def opened() -> Iterator[tuple[settings.Tool, database.Database]]:
    """Open settings and a database for one command. Raises InvalidSettings or, when used, DatabaseUnavailable."""
    config = settings.load(settings.Tool)
    with _opened(config.database_url.get_secret_value()) as db:
        yield config, db


@contextlib.contextmanager
def _opened(url: str) -> Iterator[database.Database]:
    # The error that ends the command says the same.
    logging.getLogger("shared.storage.database").setLevel(logging.CRITICAL)
    db = database.Database(url, size=2, statement_seconds=5, name="arictl")
    db.open()
    try:
        yield db
    finally:
        db.close()
