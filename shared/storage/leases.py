"""Leases in Postgres: one holder at a time, by Postgres's clock; a holder that dies loses it when it runs out."""

from __future__ import annotations

from shared.storage import database

_TAKE = """
INSERT INTO ari.leases (name, holder, term, expires_at)
VALUES (%(name)s, %(holder)s, 1, clock_timestamp() + %(seconds)s * interval '1 second')
ON CONFLICT (name) DO UPDATE SET
    holder = excluded.holder,
    term = ari.leases.term + CASE WHEN ari.leases.holder = excluded.holder THEN 0 ELSE 1 END,
    expires_at = excluded.expires_at
WHERE ari.leases.holder = excluded.holder OR ari.leases.expires_at <= clock_timestamp()
RETURNING term
"""

_RELEASE = "UPDATE ari.leases SET expires_at = clock_timestamp() WHERE name = %s AND holder = %s"


class Leases:
    """Takes and releases leases; raises DatabaseUnavailable as a database does."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def take(self, name: str, holder: str, seconds: float) -> int | None:
        """Takes a lease, or renews the holder's own.

        Returns:
            Its term, which counts the holders; None when another has it.
        """
        with self._db.connection() as connection:
            row = connection.execute(_TAKE, {"name": name, "holder": holder, "seconds": seconds}).fetchone()
        return int(row["term"]) if row is not None else None

    def release(self, name: str, holder: str) -> None:
        """Lets another take it at once; does nothing to a lease of somebody else's."""
        with self._db.connection() as connection:
            connection.execute(_RELEASE, [name, holder])
