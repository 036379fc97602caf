"""Which layout the platform's database has, and whether this release serves it.

The platform may upgrade its database while calls run. So no process remembers the layout for long: it is looked at with
each read of the configurations, asked for by the statement that reads a route, and looked at again when it was seen
some seconds ago.

Each of the platform's migrations is a transaction of its own, so an upgrade is half done for a while: then tables or
columns are missing. What needs them fails as it does while Postgres is away, and is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
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

#: The revision where our role may not read it. No call depends on it: only whether there is one.
_HIDDEN = "not readable by this role"

#: What was seen earlier is looked at again.
_SECONDS = 10.0


class Layout(StrEnum):
    """A layout of the platform's tables."""

    #: Named by the month of its release. Also that of the tables which `arictl db upgrade` creates for an installation
    #: without the platform.
    FEBRUARY_2026 = "2026-02"
    #: Configurations and phone numbers have tables of their own. The rows before them stay behind, stale.
    NEWEST = "newest"


#: For a statement that reads the platform's rows. Never told by the old configurations: the platform's own upgrade
#: leaves them in place.
IS_NEWEST = "to_regclass('telephony_configurations') IS NOT NULL AS is_newest"

#: From the catalogue: what we may not read is there all the same. The index is one of the tables that our migration
#: makes, under a name that the platform does not use.
_FOUND = f"""
SELECT {IS_NEWEST}, to_regclass('alembic_version') IS NOT NULL AS has_revision,
       has_table_privilege(to_regclass('alembic_version'), 'SELECT') AS may_read_revision,
       EXISTS (SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('workflow_runs_workflow')
               AND indrelid = to_regclass('workflow_runs')) AS is_ours,
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
    is_set: bool = False
    #: Of the platform's own migrations; None without them.
    revision: str | None = None
    #: The tables are those of an installation without the platform: `arictl db upgrade` has made them.
    is_ours: bool = False
    #: Tables and columns that we use and that are not there.
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = "by PLATFORM_LAYOUT" if self.is_set else "found"
        if self.is_ours:
            return f"{self.layout}, {how}, the tables of an installation without the platform"
        revision = f"the platform's revision {self.revision}" if self.revision else "no migrations of the platform"
        return f"{self.layout}, {how}, {revision}"

    @property
    def unserved(self) -> str | None:
        """Why no call can be served by these tables; None if calls can be."""
        if not self.missing or self.is_set:
            return None
        what = ", ".join(self.missing[:5])
        return f"the platform's database has a layout that this release does not know: there is no {what}"

    def served(self) -> Layout:
        """Return the layout. Raises PlatformUnserved if no call can be served by its tables."""
        if self.unserved is not None:
            raise errors.PlatformUnserved(self.unserved)
        return self.layout

    def require_configurations(self) -> None:
        """Raise PlatformUnserved if the table of configurations lacks a column: then none can be read at all."""
        table = "telephony_configurations" if self.layout is Layout.NEWEST else "organization_configurations"
        if self.unserved is not None and any(what.startswith(f"{table}.") for what in self.missing):
            raise errors.PlatformUnserved(self.unserved)

    @property
    def platform_completes_runs(self) -> bool:
        """Whether the platform's API is there, which completes the runs of connected calls."""
        return self.revision is not None and not self.is_ours


def find(db: database.Database, setting: Setting = AUTO) -> Found:
    """Look at the platform's tables. Raises DatabaseUnavailable."""
    with db.connection() as connection:
        return find_by(connection, setting)


def find_by(connection: database.Connection, setting: Setting = AUTO) -> Found:
    """Like `find`, by the caller's connection."""
    row = connection.execute(_FOUND, {"tables": [*tables.COLUMNS, *tables.NEWEST]}).fetchone()
    assert row is not None
    revision = _HIDDEN if row["has_revision"] else None
    if row["may_read_revision"]:
        version = connection.execute("SELECT min(version_num) AS it FROM alembic_version").fetchone()
        revision = version["it"] if version is not None else None
    found = Layout.NEWEST if row["is_newest"] else Layout.FEBRUARY_2026
    layout = found if setting == AUTO else Layout(setting)
    return Found(
        layout=layout,
        is_set=setting != AUTO,
        revision=revision,
        is_ours=row["is_ours"],
        missing=_missing(layout, row["present"] or {}),
    )


def _missing(layout: Layout, present: Mapping[str, list[str]]) -> tuple[str, ...]:
    return tuple(
        f"{table}.{column}"
        for table, columns in tables.of(newest=layout is Layout.NEWEST).items()
        for column in sorted(columns.difference(present.get(table, ())))
    )


class Watch:
    """Knows which layout there is now, and logs it: the first one, and whenever the platform has changed it.

    One for each process: what one of its parts has seen counts for the others.

    Args:
        quiet: Log nothing: for a command, which says itself what it has found.
    """

    def __init__(self, db: database.Database, setting: Setting = AUTO, *, quiet: bool = False) -> None:
        self._db = db
        self._setting = setting
        self._quiet = quiet
        self._last: Found | None = None
        self._seen_at = -float("inf")

    def look(self, connection: database.Connection | None = None) -> Found:
        """Look at the platform's tables, by the caller's connection if there is one. Raises DatabaseUnavailable."""
        found = find(self._db, self._setting) if connection is None else find_by(connection, self._setting)
        last, self._last, self._seen_at = self._last, found, time.monotonic()
        if found != last and not self._quiet:
            changed = last is not None and last.layout is not found.layout
            log.info("the platform's layout has changed" if changed else "the platform's layout", layout=str(found))
            if found.unserved is not None:
                log.error("no call can be served", reason=found.unserved)
        return found

    def try_to_look(self) -> None:
        """As `look`; while Postgres is away, say nothing."""
        try:
            self.look()
        except errors.TransientError:
            return

    def found(self, connection: database.Connection | None = None) -> Found:
        """Return what was found a few seconds ago at most. Raises DatabaseUnavailable."""
        if self._last is None or time.monotonic() - self._seen_at > _SECONDS:
            return self.look(connection)
        return self._last

    def assumed(self, connection: database.Connection) -> Layout:
        """Return the layout by which a statement may be sent that asks along, as `is_newest`, whether it is the one.

        Raises PlatformUnserved if no call can be served by the platform's tables, still.
        """
        is_served = self._last is not None and self._last.unserved is None
        return self._last.layout if self._last is not None and is_served else self.look(connection).served()

    def is_still(self, layout: Layout, *, is_newest: bool) -> bool:
        """Return whether rows that were read by this layout are valid. If they are, the layout has been seen now."""
        if self._setting == AUTO and is_newest is not (layout is Layout.NEWEST):
            return False
        self._seen_at = time.monotonic()
        return True
