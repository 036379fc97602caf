"""Leases in Postgres: one holder at a time, by Postgres's clock. The lease of a holder that dies expires.

One that expires later than any could was taken before that clock was set back: it counts as expired.
"""

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
   OR ari.leases.expires_at > clock_timestamp() + greatest(2 * %(seconds)s, 60) * interval '1 second'
RETURNING term
"""

_RAISE_TERM = """
UPDATE ari.leases SET term = greatest(term, %(above)s + 1)
WHERE name = %(name)s AND holder = %(holder)s AND expires_at > clock_timestamp() RETURNING term
"""

_RELEASE = "UPDATE ari.leases SET expires_at = clock_timestamp() WHERE name = %s AND holder = %s"


class Leases:
    """Takes and releases leases. Every method raises DatabaseUnavailable when Postgres is away."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def take(self, name: str, holder: str, seconds: float) -> int | None:
        """Take a free or expired lease, or renew the holder's own.

        Returns:
            The term of the lease, which counts its holders; None while another holder has it.
        """
        with self._db.connection() as connection:
            row = connection.execute(_TAKE, {"name": name, "holder": holder, "seconds": seconds}).fetchone()
        return int(row["term"]) if row is not None else None

    def raise_term(self, name: str, holder: str, above: int) -> int | None:
        """Raise the term of the holder's own lease above another one: Postgres was restored to an earlier state.

        Returns:
            The term; None when the holder has the lease no more.
        """
        with self._db.connection() as connection:
            row = connection.execute(_RAISE_TERM, {"name": name, "holder": holder, "above": above}).fetchone()
        return int(row["term"]) if row is not None else None

    def release(self, name: str, holder: str) -> None:
        """End the holder's lease now, so that another can take it at once; leave another holder's lease alone."""
        with self._db.connection() as connection:
            connection.execute(_RELEASE, [name, holder])
