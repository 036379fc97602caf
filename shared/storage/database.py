"""Postgres: a bounded pool of connections, time-outs, and errors translated into `shared.errors`."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
import psycopg_pool
from psycopg import conninfo

from shared import errors
from shared.storage import postgres_connection

Row: TypeAlias = postgres_connection.Row
Connection: TypeAlias = postgres_connection.Connection

_log = logging.getLogger(__name__)
# The pool logs a line for each attempt of each connection; here an outage is logged once.
logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


#: The default of DATABASE_IDLE_SECONDS.
IDLE_SECONDS = 3.0
#: How often a connection is tried while none can be made, at least; each try takes 2 s at most.
_RECONNECT_SECONDS = 1.0
#: So many connections are opened at the same time.
_OPENED_AT_ONCE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUsage:
    """The connections of a pool, and the threads that wait for one."""

    idle: int
    in_use: int
    waiting: int


class Database:
    """A pool of connections to one Postgres.

    Args:
        statement_seconds: Bounds a statement, waiting for a lock, and waiting for a connection.
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
        self._statement_seconds = statement_seconds
        self._settings = session_settings(statement_seconds, idle_seconds)
        self._statements = postgres_connection.Statements()
        self._pool = _Pool(
            url,
            connection_class=_Pooled,
            configure=self._prepare,
            min_size=1,
            max_size=size,
            # The number of waiting threads is not bounded: the pool (3.3) also counts those that gave up, and stops
            # connecting at that number.
            timeout=statement_seconds,
            max_idle=300,
            reconnect_timeout=_RECONNECT_SECONDS,
            num_workers=min(size, _OPENED_AT_ONCE),
            check=None,
            kwargs={
                **connect_arguments(url),
                "autocommit": True,
                "client_encoding": "utf8",
                "application_name": name[:63],
            },
            open=False,
        )
        self._outage = _Outage()
        self._ending: tuple[str, postgres_connection.Values] | None = None

    def ending_with(self, statement: str, values: postgres_connection.Values) -> Database:
        """Return the same pool, each of whose transactions ends with a statement: if it fails, nothing is committed."""
        ending = copy.copy(self)
        ending._ending = (statement, values)
        return ending

    @property
    def settings(self) -> Mapping[str, str]:
        """What each connection asks for: Postgres's settings, by name."""
        return self._settings

    @property
    def prepares(self) -> bool:
        """Whether statements are prepared: not behind a pooler that loses them."""
        return self._statements.are_kept

    def usage(self) -> PoolUsage:
        """Return how much of the pool is in use. Waits for nothing."""
        found = self._pool.get_stats()
        idle = found["pool_available"]
        return PoolUsage(idle=idle, in_use=found["pool_size"] - idle, waiting=found["requests_waiting"])

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
            pooled.ours.guard = self._ending
            try:
                yield pooled.ours
                pooled.ours.flush()
            except psycopg.Error as exc:
                if postgres_connection.is_server_unfit(exc):
                    self._pool.replace_older(pooled)
                raise
            finally:
                pooled.ours.clean_up()
                self._pool.putconn(pooled)
        except psycopg.Error as exc:
            error = self._translated(exc)
            if isinstance(error, errors.DatabaseAway):
                self._outage.begin(str(error))
            raise error from exc
        self._outage.end(pooled.ours.wrote_at)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection inside one transaction; raises as `connection` does."""
        with self.connection() as connection, connection.transaction():
            yield connection

    def _prepare(self, pooled: _Pooled) -> None:
        try:
            pooled.ours = Connection(
                pooled, self._statements, self._settings, statement_seconds=self._statement_seconds
            )
        except BaseException:
            pooled.close()
            raise

    def _translated(self, exc: psycopg.Error) -> errors.PipelineError:
        error, text = next((error, text) for kinds, error, text in _MEANINGS if isinstance(exc, kinds))
        if isinstance(exc, psycopg_pool.PoolTimeout):
            return error(text.format(self._pool.refusal or _first_line(exc)))
        if error is errors.DatabaseUnavailable and postgres_connection.is_server_unfit(exc):
            error = errors.DatabaseAway
        return error(text.format(_first_line(exc)))


def session_settings(statement_seconds: float, idle_seconds: float) -> dict[str, str]:
    """Return Postgres's settings for short statements, by name."""
    milliseconds = str(int(statement_seconds * 1000))
    return {
        "statement_timeout": milliseconds,
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": str(int(idle_seconds * 1000)),
        "timezone": "UTC",
        # Otherwise a role named `ari` would look for the platform's tables in the schema `ari`.
        "search_path": "public",
    }


def connect_arguments(url: str) -> dict[str, Any]:
    """Return what every connection asks libpq for: bounds and, unless the URL differs, a server that takes writes."""
    arguments = {
        "connect_timeout": 2,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    # What is wrong with a URL, connecting says.
    with contextlib.suppress(psycopg.Error):
        if "target_session_attrs" not in conninfo.conninfo_to_dict(url):
            return arguments | {"target_session_attrs": "read-write"}
    return arguments


def ask(url: str) -> None:
    """Ask whether there is a Postgres that takes writes, by a connection of its own. Raises DatabaseAway."""
    try:
        with psycopg.connect(url, **connect_arguments(url)) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as exc:
        raise errors.DatabaseAway(_first_line(exc)) from exc


def keeps_silent(url: str) -> bool:
    """Return whether a server lets a new client wait for 5 s: one that refuses is there."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.errors.ConnectionTimeout:
        return True
    except psycopg.Error:
        return False
    return False


class _Pool(psycopg_pool.ConnectionPool["_Pooled"]):
    """Gives out the connection that was given back last.

    The library takes them in turn, so that each finds its server process with cold caches: that cost a fifth of
    Postgres's time and a sixth of a worker's. It has no setting for this; where it keeps its connections in another
    way, a test fails and nothing else. What is not needed for long is closed at the other end, the oldest first.
    """

    #: Why the last attempt to connect has failed; empty after one that has not.
    refusal = ""

    def _connect(self, timeout: float | None = None) -> _Pooled:
        try:
            made = super()._connect(timeout)
        except psycopg.Error as exc:
            self.refusal = _first_line(exc)
            raise
        self.refusal = ""
        return made

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


@functools.cache
def with_fingerprint(query: str, more: str = "") -> str:
    """Return a query of one row with its fingerprint, `read`: it tells whether the row has changed (`unchanged`).

    Args:
        more: Further columns, of `found`.
    """
    # OFFSET: it is read once, not once for each of its columns that is named here.
    return f"SELECT found.*, {_HASH} AS read{more} FROM ({query} OFFSET 0) AS found"  # noqa: S608 - built from constants


@functools.cache
def unchanged(query: str) -> str:
    """Return the statement that fails with RowChanged unless a query's row has the fingerprint `read` still."""
    return f"SELECT 1 / count(*) FROM ({query} OFFSET 0) AS found WHERE {_HASH} = %(read)s"  # noqa: S608 - built from constants


#: Has 64 bits and is not cryptographic.
_HASH = "hashtextextended(found::text, 0)"


def fingerprint(connection: Connection, query: str, values: Mapping[str, object] | Sequence[object] = ()) -> str:
    """Return the fingerprint of a query's rows, in whatever order: it tells whether they have changed.

    Postgres reads all of the rows, and one row travels.
    """
    row = connection.execute(
        f"SELECT count(*) AS rows, coalesce(sum({_HASH}), 0) AS hash FROM ({query}) AS found",  # noqa: S608 - built from constants
        values,
    ).fetchone()
    assert row is not None
    return f"{row['rows']}:{row['hash']}"


class _Outage:
    """Logs that Postgres is unavailable, and that it is available again: one line each, however many threads notice."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lock = threading.Lock()

    # Both log under the lock: the lines are in the order of what they tell.

    def begin(self, reason: str) -> None:
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                _log.error("postgres unavailable, retrying", extra={"reason": reason})

    def end(self, wrote_at: float) -> None:
        """End it if a connection has written since: one that only reads may be one to a server that is read-only."""
        if self._since is None:
            return
        with self._lock:
            since = self._since
            if since is None or wrote_at < since:
                return
            self._since = None
            _log.warning("postgres available again", extra={"after_seconds": round(time.monotonic() - since, 1)})


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
    # Nothing is divided but by the number of rows that are as they were read (`unchanged`, and `call_sql.save`).
    ((psycopg.errors.DivisionByZero,), errors.RowChanged, "another process has written it since it was read"),
    ((psycopg.Error,), errors.DatabaseRefused, "{}"),
]


def _first_line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
