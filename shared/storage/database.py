"""Postgres: the one place that uses psycopg. A bounded pool, time-outs, and errors translated into `shared.errors`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import psycopg
import psycopg_pool
from psycopg import rows
from psycopg.types import json as psycopg_json

from shared import errors

Row: TypeAlias = dict[str, Any]
Connection: TypeAlias = psycopg.Connection[Row]
Json = psycopg_json.Json

_log = logging.getLogger(__name__)
# The pool logs a line for each attempt of each connection; here an outage is logged once.
logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


class Database:
    """A pool of connections to one Postgres."""

    def __init__(self, url: str, *, size: int, statement_seconds: float = 2.0, name: str = "ari-pipeline") -> None:
        milliseconds = int(statement_seconds * 1000)
        self._pool: psycopg_pool.ConnectionPool[Connection] = psycopg_pool.ConnectionPool(
            url,
            min_size=1,
            max_size=size,
            # Waiting for a connection and for a lock is bounded by the same time as a statement. The number of waiting
            # threads is not: the pool (3.3) also counts those that gave up, and stops connecting at that number.
            timeout=statement_seconds,
            max_idle=300,
            reconnect_timeout=5,
            check=None,
            kwargs={
                "autocommit": True,
                "row_factory": rows.dict_row,
                "connect_timeout": 2,
                "application_name": name[:63],
                "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds} -c timezone=UTC"
                # Otherwise a role named `ari` would look for the platform's tables in the schema `ari`.
                " -c search_path=public"
                " -c idle_in_transaction_session_timeout=30000",
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 10_000,
            },
            open=False,
        )
        self._outage = _Outage()

    def open(self) -> None:
        """Start connecting in the background without waiting, so that a process may start before its database."""
        self._pool.open(wait=False)

    def close(self) -> None:
        """Close the pool; connections in use are closed when given back."""
        self._pool.close(timeout=2)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit mode.

        Raises:
            DatabaseUnavailable: Postgres cannot be reached, is overloaded, or took too long.
            DatabaseRefused: What is to be stored cannot be.
        """
        try:
            with _translated(), self._pool.connection() as connection:
                yield connection
        except errors.DatabaseUnavailable as exc:
            if _is_away(exc.__cause__):
                self._outage.begin(str(exc))
            raise
        self._outage.end()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside one transaction; raises as `connection` does."""
        with self.connection() as connection, connection.transaction():
            yield connection


def fingerprint(connection: Connection, query: str, values: Mapping[str, object] | Sequence[object] = ()) -> str:
    """Return the fingerprint of a query's rows, in whatever order: it tells whether they have changed.

    Postgres reads all of the rows, and one row travels. The hash has 64 bits and is not cryptographic.
    """
    row = connection.execute(
        f"SELECT count(*) AS rows, coalesce(sum(hashtextextended(found::text, 0)), 0) AS hash FROM ({query}) AS found",  # noqa: S608 - built from constants
        values,
    ).fetchone()
    assert row is not None
    return f"{row['rows']}:{row['hash']}"


class _Outage:
    """Logs that Postgres is unavailable, and that it is available again: one line each, however many threads notice."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lock = threading.Lock()

    def begin(self, reason: str) -> None:
        with self._lock:
            begins = self._since is None
            if begins:
                self._since = time.monotonic()
        if begins:
            _log.error("postgres unavailable, retrying", extra={"reason": reason})

    def end(self) -> None:
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            _log.warning("postgres available again", extra={"after_seconds": round(time.monotonic() - since, 1)})


def _is_away(cause: BaseException | None) -> bool:
    """True if the connection failed, and not just one statement on it."""
    if isinstance(cause, psycopg_pool.PoolTimeout):
        return True
    # Class 08 is a lost connection, 57P a server that stops or starts; without a state the server did not answer.
    state = cause.sqlstate if isinstance(cause, psycopg.OperationalError) else ""
    return state is None or state.startswith(("08", "57P"))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg_pool.PoolTimeout as exc:
        raise errors.DatabaseUnavailable(
            f"Postgres cannot be reached, or has no connection to spare: {_first_line(exc)}"
        ) from exc
    # The pool's other errors are operational ones, too.
    except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
        raise errors.DatabaseUnavailable(_first_line(exc)) from exc
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as exc:
        raise errors.DatabaseRefused(f"{_first_line(exc)}: is the schema this release's? arictl db upgrade") from exc
    except psycopg.errors.ReadOnlySqlTransaction as exc:
        raise errors.DatabaseUnavailable("this Postgres is read-only: a standby?") from exc
    except psycopg.Error as exc:
        raise errors.DatabaseRefused(_first_line(exc)) from exc


def _first_line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
