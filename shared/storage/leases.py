"""Leases in Postgres: one holder at a time, by Postgres's clock. The lease of a holder that dies expires.

One that expires later than any could was taken before that clock was set back: it counts as expired.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from shared.storage import database, owners

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


_OF_OTHERS = f"""
SELECT name, holder FROM ari.leases
WHERE expires_at > clock_timestamp() AND name <> %s AND {owners.process_in_sql("holder")} <> ALL(%s)
"""  # noqa: S608 - built from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease that stands."""

    name: str
    holder: str

    @property
    def worker(self) -> str:
        """The process that holds it."""
        return owners.process_of(self.holder)


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

    def of_others(self, workers: Collection[str], *, besides: str) -> list[Lease]:
        """Return the leases that stand and belong to others than these workers, besides the one of this name."""
        with self._db.connection() as connection:
            rows = connection.execute(_OF_OTHERS, [besides, list(workers)]).fetchall()
        return [Lease(**row) for row in rows]

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
