"""Postgres: a bounded pool of connections, time-outs, and errors translated into `shared.errors`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import psycopg
import psycopg_pool

from shared import errors
from shared.storage import postgres_connection

Row: TypeAlias = postgres_connection.Row
Connection: TypeAlias = postgres_connection.Connection

_log = logging.getLogger(__name__)
# The pool logs a line for each attempt of each connection; here an outage is logged once.
logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


#: The default of DATABASE_IDLE_SECONDS.
IDLE_SECONDS = 3.0


class Database:
    """A pool of connections to one Postgres.

    Args:
        idle_seconds: A transaction in which this process is silent for longer is ended by Postgres: it may be frozen,
            and others wait for its locks.
    """

    def __init__(
        self,
        url: str,
        *,
        size: int,
        statement_seconds: float = 2.0,
        idle_seconds: float = IDLE_SECONDS,
        name: str = "ari-pipeline",
    ) -> None:
        milliseconds = int(statement_seconds * 1000)
        #: As text: Postgres's settings are.
        self.idle_milliseconds = str(int(idle_seconds * 1000))
        self._statement_seconds = statement_seconds
        self._statements = postgres_connection.Statements()
        self._pool = _Pool(
            url,
            connection_class=_Pooled,
            configure=self._prepare,
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
                "client_encoding": "utf8",
                "connect_timeout": 2,
                "application_name": name[:63],
                "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds} -c timezone=UTC"
                # Otherwise a role named `ari` would look for the platform's tables in the schema `ari`.
                " -c search_path=public"
                f" -c idle_in_transaction_session_timeout={self.idle_milliseconds}",
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
            DatabaseAway: Postgres cannot be reached, or has no connection to spare.
            DatabaseUnavailable: It is overloaded, took too long, or a lock was not free in time.
            DuplicateKey: What is to be stored is there already.
            DatabaseRefused: What is to be stored cannot be.
        """
        try:
            pooled = self._pool.getconn()
            try:
                yield pooled.ours
                pooled.ours.flush()
            except psycopg.OperationalError as exc:
                if _is_away(exc):
                    self._pool.replace_older(pooled)
                raise
            finally:
                pooled.ours.clean_up()
                self._pool.putconn(pooled)
        except psycopg.Error as exc:
            error = _translated(exc)
            if isinstance(error, errors.DatabaseUnavailable) and _is_away(exc):
                self._outage.begin(str(error))
            raise error from exc
        self._outage.end()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside one transaction; raises as `connection` does."""
        with self.connection() as connection, connection.transaction():
            yield connection

    def _prepare(self, pooled: _Pooled) -> None:
        pooled.ours = Connection(pooled, self._statements, statement_seconds=self._statement_seconds)


class _Pool(psycopg_pool.ConnectionPool["_Pooled"]):
    """Gives out the connection that was given back last.

    The library takes them in turn, so that each finds its server process with cold caches: that cost a fifth of
    Postgres's time and a sixth of a worker's. It has no setting for this; where it keeps its connections in another
    way, a test fails and nothing else. What is not needed for long is closed at the other end, the oldest first.
    """

    def replace_older(self, lost: _Pooled) -> None:
        """Replace the connections of a server that was lost: a burst would meet those that had lain unused, one by one.

        Once for each time that it is lost: not again for those that were in use then, and fail after this one.
        """
        if lost._created_at > self._drained_at:
            self.drain()

    def _get_ready_connection(self, timeout: float | None) -> _Pooled | None:
        # The library takes the first one, and gives back to the end.
        self._pool.rotate(1)
        return super()._get_ready_connection(timeout)


class _Pooled(psycopg.Connection[Any]):
    """What the pool keeps: the library's connection, and with it the one that runs statements."""

    ours: Connection


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


#: What the library's errors mean, the first that fits; their text goes into the place of `{}`.
_MEANINGS: list[tuple[tuple[type[psycopg.Error], ...], type[errors.PipelineError], str]] = [
    (
        (psycopg_pool.PoolTimeout,),
        errors.DatabaseAway,
        "Postgres cannot be reached, or has no connection to spare: {}",
    ),
    # The pool's other errors are operational ones, too.
    ((psycopg.OperationalError, psycopg.InterfaceError), errors.DatabaseUnavailable, "{}"),
    (
        (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn),
        errors.DatabaseRefused,
        "{}: is the schema this release's? arictl db upgrade",
    ),
    (
        (psycopg.errors.ReadOnlySqlTransaction,),
        errors.DatabaseAway,
        "this Postgres is read-only: a standby?",
    ),
    (
        (psycopg.errors.IdleInTransactionSessionTimeout,),
        errors.DatabaseUnavailable,
        "{}: this process stood still in a transaction",
    ),
    (
        # Of the features that Postgres lacks none is used: a plan was made before its table was altered.
        (psycopg.errors.FeatureNotSupported,),
        errors.DatabaseUnavailable,
        "{}: tried again on another connection",
    ),
    (
        (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement),
        errors.DatabaseUnavailable,
        "{}: the pooler in between keeps no prepared statements, so none are used from now on",
    ),
    ((psycopg.errors.UniqueViolation,), errors.DuplicateKey, "{}"),
    ((psycopg.Error,), errors.DatabaseRefused, "{}"),
]


def _translated(exc: psycopg.Error) -> errors.PipelineError:
    error, text = next((error, text) for kinds, error, text in _MEANINGS if isinstance(exc, kinds))
    if error is errors.DatabaseUnavailable and _is_away(exc):
        error = errors.DatabaseAway
    return error(text.format(_first_line(exc)))


def _first_line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
