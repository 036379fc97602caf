"""The prefixes of this installation's ids. Two installations may share an Asterisk: each has a prefix of its own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from shared.call import ids
from shared.storage import database

#: Without vowels, so that no word is drawn; nor what is read for another character.
_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
_LENGTH = 6

_NEWEST = "SELECT prefix FROM ari.id_prefixes ORDER BY number DESC LIMIT 1"
_DRAW_FIRST = """
INSERT INTO ari.id_prefixes (number, prefix, written_by) VALUES (1, %s, pg_current_xact_id()::text::bigint)
ON CONFLICT DO NOTHING
"""
_DRAW_NEXT = """
INSERT INTO ari.id_prefixes (number, prefix, written_by)
SELECT coalesce(max(number), 0) + 1, %s, pg_current_xact_id()::text::bigint FROM ari.id_prefixes
"""
#: Calls in progress that an earlier release wrote: their ids were made with the prefix of then.
_PIN = "UPDATE ari.calls SET id_prefix = %s WHERE id_prefix IS NULL AND state <> 'ended'"
_KEEP = """
UPDATE ari.id_prefixes SET written_by = pg_current_xact_id()::text::bigint
WHERE number = (SELECT max(number) FROM ari.id_prefixes) AND written_by IS NOT NULL
"""
#: A row has the transaction that wrote it (xmin, 32 bits): a restored dump was written by another one.
_ALL = """
SELECT prefix, drawn_at, written_by IS NULL OR written_by % (1::bigint << 32) = xmin::text::bigint AS is_here
FROM ari.id_prefixes ORDER BY number DESC
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPrefix:
    """A prefix, as the database has it."""

    prefix: str
    drawn_at: datetime
    #: False if this database is a restored dump of the one that it was drawn in.
    is_here: bool


class IdPrefixes:
    """The table of prefixes.

    Args:
        override: The setting `ID_PREFIX`; None to use the newest prefix of the table.
    """

    def __init__(self, db: database.Database, *, override: str | None) -> None:
        self._db = db
        self._override = override

    def current(self) -> str:
        """Return the prefix of new calls; the first one to ask draws it."""
        if self._override is not None:
            return self._override
        with self._db.connection() as connection:
            row = connection.execute(_NEWEST).fetchone()
            if row is None:
                connection.execute(_DRAW_FIRST, [_drawn()])
                row = connection.execute(_NEWEST).fetchone()
        assert row is not None
        return str(row["prefix"])

    def draw(self) -> str:
        """Draw another prefix for the calls to come; those in progress keep theirs. Returns it."""
        earlier, prefix = self.current(), _drawn()
        with self._db.transaction() as connection:
            connection.execute(_PIN, [earlier])
            connection.execute(_DRAW_NEXT, [prefix])
        return prefix

    def keep(self) -> None:
        """Note that the newest prefix is this database's: the one it was drawn in is gone for good."""
        with self._db.connection() as connection:
            connection.execute(_KEEP)

    def drawn(self) -> list[DrawnPrefix]:
        """Return every prefix, the newest first."""
        with self._db.connection() as connection:
            rows = connection.execute(_ALL).fetchall()
        return [DrawnPrefix(**row) for row in rows]


def _drawn() -> str:
    return f"{ids.SHARED_PREFIX}{''.join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))}-"
