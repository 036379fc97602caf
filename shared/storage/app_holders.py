"""Who has a Stasis app, in Postgres. A socket of ours would replace another process's, whose calls would be lost.

So an app that was never ours is asked for before its first socket is opened. It was ours if an Asterisk has ever
accepted a socket of ours for it (`accepted_at`), under whichever connection; or if an operator took it over.
"""

from __future__ import annotations

from enum import StrEnum

from shared.call.ids import ConnectionVersion
from shared.storage import database

#: The state of the event socket of a version whose app another process has.
OCCUPIED = "occupied"

#: True for an endpoint and an app that are ours, or were. As a condition, on parameters.
WAS_OURS = """EXISTS (SELECT 1 FROM ari.connection_versions a WHERE a.endpoint = %(endpoint)s AND a.app = %(app)s
        AND (a.accepted_at IS NOT NULL OR a.displaced_at IS NOT NULL))"""

#: A socket that is being opened may have been accepted already: its listener has not reported it yet.
_KNOWN = """
SELECT c.organization_id, v.app, bool_or(o.accepted_at IS NOT NULL OR o.displaced_at IS NOT NULL) AS was_ours,
       bool_or(o.retired_at IS NULL AND o.listener_id IS NOT NULL AND o.last_error = '') AS is_opening
FROM ari.connection_versions v JOIN ari.connections c USING (connection_id)
JOIN ari.connection_versions o ON o.endpoint = v.endpoint AND o.app = v.app
WHERE v.connection_id = %(connection_id)s AND v.version = %(version)s
GROUP BY c.organization_id, v.app
"""

_PARK = f"""
UPDATE ari.connection_versions SET parked_at = clock_timestamp(), socket_state = '{OCCUPIED}',
    socket_since = clock_timestamp(), listener_id = NULL, previous_listener_id = NULL, previous_epoch = NULL,
    last_error = %(reason)s, past_error = %(reason)s, past_error_at = clock_timestamp()
WHERE connection_id = %(connection_id)s AND version = %(version)s AND asked_at IS NOT NULL AND parked_at IS NULL
  AND retired_at IS NULL
"""  # noqa: S608 - built from a constant

#: What is not known of an app that is occupied leaves it so. A version that was never opened has had no other error.
_LET_OPEN = """
UPDATE ari.connection_versions SET asked_at = NULL, parked_at = NULL, socket_state = 'unassigned',
    socket_since = clock_timestamp(), last_error = ''
WHERE connection_id = %(connection_id)s AND version = %(version)s AND asked_at IS NOT NULL
  AND (parked_at IS NULL OR %(is_known)s)
RETURNING past_error <> '' AS was_occupied
"""

#: Lets every version of an organization's connections be opened that waits, or is occupied.
TAKE_OVER = """
UPDATE ari.connection_versions v SET asked_at = NULL, parked_at = NULL, displaced_at = clock_timestamp(),
    socket_state = 'unassigned', socket_since = clock_timestamp(), last_error = ''
FROM ari.connections c
WHERE c.connection_id = v.connection_id AND c.organization_id = %(organization)s
  AND (%(connection)s::integer IS NULL OR c.connection_id = %(connection)s)
  AND v.asked_at IS NOT NULL AND v.superseded_at IS NULL AND v.retired_at IS NULL
RETURNING v.connection_id, v.version, v.app
"""

#: By the first socket of ours there: a later version of the connection changes nothing.
_LATELY_DISPLACED = """
SELECT coalesce(bool_or(o.displaced_at IS NOT NULL), false)
       AND coalesce(clock_timestamp() - min(o.accepted_at) BETWEEN -bound AND bound, true) AS lately
FROM ari.connection_versions v JOIN ari.connection_versions o ON o.endpoint = v.endpoint AND o.app = v.app,
     make_interval(secs => %(seconds)s) bound
WHERE v.connection_id = %(connection_id)s AND v.version = %(version)s
GROUP BY bound
"""


class Holder(StrEnum):
    """Who has an app, as its Asterisk tells."""

    #: None has: Asterisk does not know the app; or it bears our mark.
    NONE = "none"
    #: It exists.
    SOME = "some"
    #: Its Asterisk gave no usable answer.
    UNKNOWN = "unknown"


class AppHolders:
    """Reads and writes who has an app. Every method raises DatabaseUnavailable when Postgres is away."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def note(self, connection: ConnectionVersion, holder: Holder) -> str:
        """Write who has the app of a version that was asked for: it may be opened, or is parked.

        Returns:
            What has changed, for the timeline; an empty text if nothing has that is worth a note.
        """
        values = _values(connection)
        with self._db.transaction() as db:
            if holder is Holder.SOME:
                known = db.execute(_KNOWN, values).fetchone()
                if known is None or (known["is_opening"] and not known["was_ours"]):
                    # Asked again soon; by then it is known.
                    return ""
                if not known["was_ours"]:
                    reason = _reason(known)
                    return reason if db.execute(_PARK, values | {"reason": reason}).rowcount else ""
            is_known = holder is not Holder.UNKNOWN
            freed = db.execute(_LET_OPEN, values | {"is_known": is_known}).fetchone()
        return "no other process has the app any more" if freed is not None and freed["was_occupied"] else ""

    def has_lately_displaced(self, connection: ConnectionVersion, *, seconds: float) -> bool:
        """True for so long after the first socket of ours was opened in the place of another process's."""
        with self._db.connection() as db:
            row = db.execute(_LATELY_DISPLACED, _values(connection) | {"seconds": seconds}).fetchone()
        return row is not None and bool(row["lately"])


def _reason(version: database.Row) -> str:
    return (
        f"held by another process: app {version['app']} exists on that Asterisk, and was never ours. Stop that process,"
        f" then: arictl connection take-over --organization {version['organization_id']}"
    )


def _values(connection: ConnectionVersion) -> dict[str, object]:
    return {"connection_id": connection.connection_id, "version": connection.number}
