"""Databases of a test run: each test has its own, as the migrations leave it.

Copying a database is slow (hundreds of files, 0.1 to 0.4 s), emptying one is not: after a test its database is emptied
and used for the next test, unless the test has changed the schema or written many rows. The connection that empties it
stays open: with a new one it took 25 ms instead of 5.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from devstack import servers
from shared.storage import database

_RUN = f"test_{uuid.uuid4().hex}_"
#: Deleted rows stay in the files for a while, so a database with more is not used again.
_MOST_ROWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Migrated:
    """A database as the migrations leave it, and a connection to it."""

    url: str
    shape: str
    connection: psycopg.Connection


#: Databases that are free, by their template.
_free: dict[str, list[_Migrated]] = {}

#: Catalog → its rows of a database. Their number and their xmins differ after any change, but of the tables' rows: of
#: tables, columns, defaults, constraints, indexes, triggers, functions, schemas, rights and settings.
_CATALOGS = {
    "pg_class": "oid >= 16384",
    "pg_attribute": "attrelid >= 16384",
    "pg_attrdef": "true",
    "pg_constraint": "oid >= 16384",
    "pg_index": "indexrelid >= 16384",
    "pg_trigger": "oid >= 16384",
    "pg_proc": "oid >= 16384",
    "pg_namespace": "true",
    "pg_database": "datname = current_database()",
    "pg_db_role_setting": "setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))",
    "ari.alembic_version": "true",
}
_SHAPE = "SELECT concat_ws(' ', {})".format(
    ", ".join(
        f"(SELECT concat(count(*), ':', sum(xmin::text::bigint)) FROM {catalog} WHERE {condition})"
        for catalog, condition in _CATALOGS.items()
    )
)
_TABLES = """
SELECT oid::regclass::text FROM pg_class
WHERE oid >= 16384 AND relkind = 'r' AND relname <> 'alembic_version'
"""


def create(server_url: str, *, template: str | None = None) -> str:
    """Create a database, empty or as a copy of another one, and return its URL."""
    return servers.create_database(server_url, _RUN + uuid.uuid4().hex[:12], template=template)


@contextlib.contextmanager
def borrowed(server_url: str, template: str) -> Iterator[str]:
    """Lend a migrated database until the end of the block."""
    free = _free.setdefault(template, [])
    lent = free.pop() if free else _copied(server_url, template)
    with contextlib.ExitStack() as closing:
        closing.callback(lent.connection.close)
        yield lent.url
        with contextlib.suppress(psycopg.Error):
            if _emptied(lent.connection) and _shape(lent.connection) == lent.shape:
                closing.pop_all()
                free.append(lent)


def _copied(server_url: str, template: str) -> _Migrated:
    url = create(server_url, template=template)
    connection = _connect(url)
    return _Migrated(url=url, shape=_shape(connection), connection=connection)


def forget_all() -> None:
    """Close the connections to free databases."""
    for free in _free.values():
        while free:
            free.pop().connection.close()


def drop_all(server_url: str) -> None:
    """Drop all databases of this run."""
    forget_all()
    with contextlib.closing(_connect(server_url)) as connection:
        found = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [_RUN]).fetchall()
    for (name,) in found:
        servers.drop_database(server_url, name)


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=5)


def _shape(connection: psycopg.Connection) -> str:
    (shape,) = connection.execute(_SHAPE.encode()).fetchone() or ("",)
    return str(shape)


def _emptied(connection: psycopg.Connection) -> bool:
    """Delete all rows and reset the sequences; return False if there were many rows."""
    connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    rows = 0
    with connection.transaction():
        # Ignores foreign keys, as all rows are deleted. Needs a superuser.
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("SET LOCAL lock_timeout = '5s'")
        for (table,) in connection.execute(_TABLES).fetchall():
            rows += connection.execute(f"DELETE FROM {table}".encode()).rowcount
        connection.execute("SELECT setval(seqrelid, seqstart, false) FROM pg_sequence WHERE seqrelid >= 16384")
    return rows <= _MOST_ROWS


@contextlib.contextmanager
def with_connection(url: str, *, size: int) -> Iterator[database.Database]:
    """Open a pool on a test's database, in which organization 3 has version 1 of connection 1."""
    made = database.Database(url, size=size)
    made.open()
    with made.connection() as connection:
        connection.execute("INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 3, 'active')")
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " VALUES (1, 1, 'http://a', 'a', 'a', 'x')"
        )
    yield made
    made.close()
