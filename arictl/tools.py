"""Settings, a database and output for the commands, opened for one command."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arictl import operators
from shared import queues
from shared.broker import redis_broker
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
    return escape(printable(text))


def printable(text: str) -> str:
    """Return text without terminal control codes, for what is no markup."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def moment(at: datetime | None) -> str:
    """Return a moment, short; `-` for none."""
    return f"{at:%m-%d %H:%M:%S}" if at is not None else "-"


@contextlib.contextmanager
def acting(statement_seconds: float = 5.0) -> Iterator[tuple[settings.Operator, database.Database]]:
    """Open settings and a database, for one command that acts as a process would."""
    config = settings.load(settings.Operator)
    with _opened(config.database_url.get_secret_value(), statement_seconds) as db:
        yield config, db


@contextlib.contextmanager
def with_redis(
    statement_seconds: float = 5.0,
) -> Iterator[tuple[settings.Operator, database.Database, redis_broker.Broker]]:
    """Open settings, a database and the broker, for one command."""
    with acting(statement_seconds) as (config, db):
        broker = queues.broker(config.redis_url.get_secret_value())
        with contextlib.closing(broker):
            yield config, db, broker


def writer(config: settings.Operator, db: database.Database, recording: database.Database) -> call_writer.CallWriter:
    """Return a writer of calls, which writes to `recording`.

    Its commands go through Redis; if that is unreachable, the sweep dispatches them again within seconds.
    """
    commands = queues.BrokerCommandQueue(queues.broker(config.redis_url.get_secret_value()))
    prefix = id_prefixes.IdPrefixes(db, override=config.id_prefix).current()
    calls = postgres_calls.PostgresCalls(recording, who=f"arictl of {operators.actor().who}", prefix=prefix)
    return call_writer.CallWriter(calls, commands, config.limits(), who="arictl")


@contextlib.contextmanager
def opened() -> Iterator[tuple[settings.Tool, database.Database]]:
    """Open settings and a database for one command. Raises InvalidSettings or, when used, DatabaseUnavailable."""
    config = settings.load(settings.Tool)
    with _opened(config.database_url.get_secret_value()) as db:
        yield config, db


@contextlib.contextmanager
def _opened(url: str, statement_seconds: float = 5.0) -> Iterator[database.Database]:
    # The error that ends the command says the same.
    logging.getLogger("shared.storage.database").setLevel(logging.CRITICAL)
    db = database.Database(url, size=2, statement_seconds=statement_seconds, name="arictl")
    db.open()
    try:
        yield db
    finally:
        db.close()
