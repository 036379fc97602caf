"""The database's schema, step by step (Alembic). Expand first, contract a release later.

Alembic is imported when it is needed: it takes as long as the rest of a command of `arictl`.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shared import errors

if TYPE_CHECKING:
    import alembic.config
    import sqlalchemy

_HERE = Path(__file__).parent
#: Any number of processes may start an upgrade at once: one does it, the others wait. The number is arbitrary.
_LOCK = 0x617269


def upgrade(database_url: str) -> str:
    """Brings the database to this release's schema; does nothing when it is there already.

    Returns:
        The revision it is at now.

    Raises:
        DatabaseUnavailable: It cannot be reached; the text has no password in it.
        DatabaseRefused: Another release made its schema.
    """
    import alembic.command
    import alembic.util
    import sqlalchemy

    with _connect(database_url) as connection:
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        connection.execute(sqlalchemy.text("CREATE SCHEMA IF NOT EXISTS ari"))
        config = _config()
        config.attributes["connection"] = connection
        try:
            alembic.command.upgrade(config, "head")
        except alembic.util.CommandError as exc:
            raise errors.DatabaseRefused(
                f"the schema ari is at revision {_current(connection)}, which this release does not know: run the "
                "release that made it. From before 0.1.0-rc1: DROP SCHEMA ari CASCADE, then upgrade."
            ) from exc
        connection.commit()
        return _current(connection) or ""


def pending(database_url: str) -> bool:
    """Whether the database lacks a migration of this release."""
    import alembic.script

    with _connect(database_url) as connection:
        return _current(connection) != alembic.script.ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> alembic.config.Config:
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    return config


def _current(connection: sqlalchemy.Connection) -> str | None:
    import alembic.runtime.migration

    options = {"version_table_schema": "ari"}
    return alembic.runtime.migration.MigrationContext.configure(connection, opts=options).get_current_revision()


def _connect(database_url: str) -> sqlalchemy.Connection:
    import sqlalchemy.exc

    scheme, _, rest = database_url.partition("://")
    if scheme not in ("postgresql", "postgres"):
        raise errors.InvalidSettings("DATABASE_URL must begin with postgresql://")
    # A role named like our schema would otherwise find the platform's tables in it: "$user" leads the search path.
    arguments = {"connect_timeout": 5, "options": "-c search_path=public"}
    engine = sqlalchemy.create_engine(
        f"postgresql+psycopg://{rest}", poolclass=sqlalchemy.NullPool, connect_args=arguments
    )
    try:
        return engine.connect()
    except sqlalchemy.exc.OperationalError as exc:
        reason = f"{exc.orig}".partition("\n")[0]
        raise errors.DatabaseUnavailable(f"Postgres cannot be reached: {reason}") from exc
