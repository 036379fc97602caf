"""Which layout the platform's database has, and whether this release serves it.

The platform may upgrade its database while calls run. So no process remembers the layout: it is looked at with each
read of the configurations, and asked for by the statement that reads a route.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import structlog

from shared import errors
from shared.platform.dograh import tables
from shared.storage import database

log = structlog.stdlib.get_logger(__name__)

#: What the setting PLATFORM_LAYOUT may say; `auto`: what is found.
Setting = Literal["auto", "2026-02", "newest"]
AUTO: Setting = "auto"


class Layout(StrEnum):
    """A layout of the platform's tables, named by the month of its release."""

    #: Also that of the tables which `arictl db upgrade` creates for an installation without the platform.
    FEBRUARY_2026 = "2026-02"
    #: Configurations and phone numbers have tables of their own. The rows before them stay behind, stale.
    NEWEST = "newest"
    #: A table or a column that we use is missing.
    UNKNOWN = "unknown"


#: Never told by the old configurations: the platform's own upgrade leaves them in place.
_IS_NEWEST = "to_regclass('telephony_configurations') IS NOT NULL"
#: For a statement that reads the platform's rows: whether they are stale, by the parameter `layout`.
IS_STALE = f"(%(layout)s::text = 'newest' OR (%(layout)s::text = 'auto' AND {_IS_NEWEST})) AS is_stale"

#: From the catalogue: what we may not read is there all the same.
_FOUND = f"""
SELECT {_IS_NEWEST} AS is_newest, to_regclass('alembic_version') IS NOT NULL AS has_revision,
       (SELECT json_object_agg(name, columns) FROM (
            SELECT t.name, json_agg(a.attname) AS columns
            FROM unnest(%(tables)s::text[]) AS t (name) JOIN pg_attribute a ON a.attrelid = to_regclass(t.name)
            WHERE a.attnum > 0 AND NOT a.attisdropped GROUP BY t.name) AS present
       ) AS present
"""  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found in the platform's database."""

    layout: Layout
    #: The setting says so, whatever the tables are like.
    is_set: bool
    #: Of the platform's own migrations; None without them.
    revision: str | None
    #: Tables and columns that we use and that are not there.
    missing: tuple[str, ...]

    def __str__(self) -> str:
        how = "by PLATFORM_LAYOUT" if self.is_set else "found"
        revision = f"the platform's revision {self.revision}" if self.revision else "no migrations of the platform"
        return f"{self.layout}, {how}, {revision}"

    @property
    def unserved(self) -> str | None:
        """Why no call can be served by these tables; None if calls can be."""
        if self.layout is Layout.NEWEST:
            return unserved_newest()
        if self.layout is Layout.UNKNOWN:
            what = ", ".join(self.missing[:5])
            return f"the platform's database has a layout that this release does not know: there is no {what}"
        return None


def unserved_newest() -> str:
    """Return why calls are refused beside the newest layout."""
    return (
        "the platform's database has a newer layout (telephony_configurations) than this release serves:"
        " its old configurations are stale"
    )


def find(db: database.Database, setting: Setting = AUTO) -> Found:
    """Look at the platform's tables. Raises DatabaseUnavailable."""
    with db.connection() as connection:
        row = connection.execute(_FOUND, {"tables": list(tables.COLUMNS)}).fetchone()
        assert row is not None
        revision = None
        if row["has_revision"]:
            version = connection.execute("SELECT min(version_num) AS it FROM alembic_version").fetchone()
            revision = version["it"] if version is not None else None
    present = row["present"] or {}
    missing = tuple(
        f"{table}.{column}"
        for table, columns in tables.COLUMNS.items()
        for column in sorted(columns.difference(present.get(table, ())))
    )
    if setting != AUTO:
        layout = Layout(setting)
    elif row["is_newest"]:
        layout = Layout.NEWEST
    else:
        layout = Layout.UNKNOWN if missing else Layout.FEBRUARY_2026
    return Found(layout=layout, is_set=setting != AUTO, revision=revision, missing=missing)


class Watch:
    """Logs which layout there is, when a process starts and whenever the platform has changed it."""

    def __init__(self, db: database.Database, setting: Setting = AUTO) -> None:
        self._db = db
        self._setting = setting
        self._last: Found | None = None

    def look(self) -> None:
        """Look at the platform's tables. Raises DatabaseUnavailable."""
        found = find(self._db, self._setting)
        if found == self._last:
            return
        changed = self._last is not None and self._last.layout is not found.layout
        self._last = found
        log.info("the platform's layout has changed" if changed else "the platform's layout", layout=str(found))
        if found.unserved is not None:
            log.error("no call can be served", reason=found.unserved)

    def try_to_look(self) -> None:
        """As `look`; while Postgres is away, say nothing."""
        try:
            self.look()
        except errors.TransientError:
            return
