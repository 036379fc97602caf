"""The database's schema, step by step (Alembic). Expand first, contract a release later.

Alembic is imported when it is needed: it takes as long as the rest of a command of `arictl`.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import errors
from shared.storage import database

if TYPE_CHECKING:
    import alembic.config
    import sqlalchemy

_HERE = Path(__file__).parent
#: Any number of processes may start an upgrade at once: one does it, the others wait. The number is arbitrary.
_LOCK = 0x617269
_POLL_SECONDS = 0.1
#: What waits for a lock of a table stops all who come after it: a migration gives up early, and is tried again.
_LOCK_MILLISECONDS = 1000
_LOCK_ATTEMPTS = 30
_LOCK_NOT_AVAILABLE = "55P03"
_INSUFFICIENT_PRIVILEGE = "42501"
#: A migration may take hours. So whether the server stands still is seen by connecting to it, again and again.
_WATCH_SECONDS = 5.0
_MOST_SILENCES = 3
#: Postgres's settings. A role named like our schema would otherwise find the platform's tables in it: "$user" leads the
#: search path. The role's own time-outs are for short statements. A process that is frozen in a migration loses its
#: locks after 5 s: calls wait for them.
_SETTINGS = {
    "search_path": "public",
    "lock_timeout": str(_LOCK_MILLISECONDS),
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "5000",
}


def upgrade(database_url: str) -> str:
    """Brings the database to this release's schema; does nothing when it is there already.

    Returns:
        The revision it is at now.

    Raises:
        DatabaseUnavailable: It cannot be reached; the text has no password in it.
        DatabaseRefused: Another release made its schema, or the role may not.
    """
    import alembic.command
    import alembic.util
    import sqlalchemy

    with _locked(database_url), _connected(database_url) as connection, _with_rights():
        # IF NOT EXISTS asks for the right to create one where it exists, too.
        if connection.execute(sqlalchemy.text("SELECT to_regnamespace('ari') IS NULL")).scalar_one():
            connection.execute(sqlalchemy.text("CREATE SCHEMA IF NOT EXISTS ari"))
        connection.commit()
        config = _config()
        config.attributes["connection"] = connection
        try:
            _patiently(connection, lambda: alembic.command.upgrade(config, "head"))
        except alembic.util.CommandError as exc:
            raise errors.DatabaseRefused(
                f"the schema ari is at revision {_current(connection)}, which this release does not know: run the "
                "release that made it. From before 0.1.0-rc1: DROP SCHEMA ari CASCADE, then upgrade."
            ) from exc
        return _current(connection) or ""


def pending(database_url: str) -> bool:
    """Whether the database lacks a migration of this release."""
    import alembic.script

    with _connected(database_url) as connection:
        return _current(connection) != alembic.script.ScriptDirectory.from_config(_config()).get_current_head()


@contextlib.contextmanager
def _locked(database_url: str) -> Iterator[None]:
    """The block runs in one process at a time.

    The lock has a connection of its own, whose transaction has no snapshot, and it is asked for again and again rather
    than waited for: an index that is made beside calls waits for every statement that runs. It may be idle for as long
    as the migrations take.
    """
    import sqlalchemy

    # Without parameters: a statement that has any keeps its snapshot until the next one.
    attempt = sqlalchemy.text(
        f"SELECT pg_try_advisory_xact_lock({_LOCK}), set_config('idle_in_transaction_session_timeout', '0', true)"
    )
    with _connected(database_url) as connection:
        while not connection.execute(attempt).scalar_one():
            connection.rollback()
            time.sleep(_POLL_SECONDS)
        yield


@contextlib.contextmanager
def _with_rights() -> Iterator[None]:
    """Turn the refusal of a role that lacks a right into a DatabaseRefused."""
    import sqlalchemy.exc

    try:
        yield
    except sqlalchemy.exc.ProgrammingError as exc:
        if getattr(exc.orig, "sqlstate", None) != _INSUFFICIENT_PRIVILEGE:
            raise
        raise errors.DatabaseRefused(
            f"the role of DATABASE_URL lacks a right: {str(exc.orig).splitlines()[0]}. It needs CREATE on the database,"
            " and to own the schema ari if that exists: GRANT CREATE ON DATABASE … TO …"
        ) from None


def _patiently(connection: sqlalchemy.Connection, migrate: Callable[[], object]) -> None:
    """Run the migrations; those that a lock of others has kept from being done are tried again."""
    import sqlalchemy.exc

    for _ in range(_LOCK_ATTEMPTS):
        try:
            migrate()
            return
        except sqlalchemy.exc.OperationalError as exc:
            connection.rollback()
            if getattr(exc.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
    raise errors.DatabaseUnavailable("a table stayed locked by others: end their transactions, then upgrade again")


def _config() -> alembic.config.Config:
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    return config


def _current(connection: sqlalchemy.Connection) -> str | None:
    import alembic.runtime.migration

    options = {"version_table_schema": "ari"}
    return alembic.runtime.migration.MigrationContext.configure(connection, opts=options).get_current_revision()


@contextlib.contextmanager
def _connected(database_url: str) -> Iterator[sqlalchemy.Connection]:
    """A connection for as long as the server answers: it is cut once the server stands still."""
    with _connect(database_url) as connection:
        raw: Any = connection.connection.dbapi_connection
        done = threading.Event()
        watching = threading.Thread(target=_watch, args=(database_url, os.dup(raw.fileno()), done), daemon=True)
        watching.start()
        try:
            yield connection
        finally:
            done.set()


def _watch(database_url: str, descriptor: int, done: threading.Event) -> None:
    """Shut a connection down once the server has kept silent for so many attempts to connect."""
    silences = 0
    with socket.socket(fileno=descriptor) as watched:
        while not done.wait(_WATCH_SECONDS):
            silences = silences + 1 if database.keeps_silent(database_url) else 0
            if silences >= _MOST_SILENCES and not done.is_set():
                watched.shutdown(socket.SHUT_RDWR)
                return


def _connect(database_url: str) -> sqlalchemy.Connection:
    import sqlalchemy.exc

    scheme, _, rest = database_url.partition("://")
    if scheme not in ("postgresql", "postgres"):
        raise errors.InvalidSettings("DATABASE_URL must begin with postgresql://")
    # Behind a pooler a prepared statement may be lost.
    arguments = {**database.connect_arguments(database_url), "connect_timeout": 5, "prepare_threshold": None}
    engine = sqlalchemy.create_engine(
        f"postgresql+psycopg://{rest}", poolclass=sqlalchemy.NullPool, connect_args=arguments
    )
    sqlalchemy.event.listen(engine, "connect", _set_for_session)
    sqlalchemy.event.listen(engine, "begin", _set_for_transaction)
    try:
        return engine.connect()
    except sqlalchemy.exc.OperationalError as exc:
        reason = f"{exc.orig}".partition("\n")[0]
        raise errors.DatabaseUnavailable(f"Postgres cannot be reached: {reason}") from exc


def _set_for_session(connection: Any, _record: object) -> None:
    """Put the settings in force, unless a pooler would give the session to others: see `postgres_connection`."""
    pid = connection.info.backend_pid
    connection.autocommit = True
    connection.execute(_set(f"pg_backend_pid() <> {pid}"))
    connection.autocommit = False


def _set_for_transaction(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql(_set("true"))


def _set(is_local: str) -> Any:
    return "SELECT " + ", ".join(f"set_config('{name}', '{value}', {is_local})" for name, value in _SETTINGS.items())
