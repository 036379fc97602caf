"""What goes to Postgres: each round trip as the first words of its statements."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from shared.storage import postgres_connection


@contextlib.contextmanager
def recorded() -> Iterator[list[list[str]]]:
    """Record the round trips of every connection of this process."""
    trips: list[list[str]] = []
    exchange = postgres_connection.Connection._exchange

    def record(
        connection: postgres_connection.Connection, batch: Sequence[postgres_connection._Sent], seconds: float
    ) -> Any:
        # A connection that is opened meanwhile sets itself up first.
        if not batch[0].statement.text.startswith(b"SELECT is_direct"):
            trips.append([_name(sent.statement.text.decode()) for sent in batch])
        return exchange(connection, batch, seconds)

    with mock.patch.object(postgres_connection.Connection, "_exchange", record):
        yield trips


def _name(statement: str) -> str:
    """Return the verb, and the table that is written."""
    write = re.search(r"(INSERT) INTO (\S+)|(?<!FOR )(UPDATE) (\S+)", statement)
    return " ".join(word for word in write.groups() if word) if write is not None else statement.split(maxsplit=1)[0]
