"""Connections and their versions in Postgres: what a tenant's Asterisk is, and who holds its event socket.

A connection is one configuration row of the platform. A version of it is what a socket and a request need: endpoint,
app, credentials; never changed once written, so a call pins the one it came in by.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared import errors
from shared.storage import database


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a connection: all that a request needs."""

    connection_id: int
    version: int
    organization_id: int
    source_id: int
    endpoint: str
    app: str
    user: str
    sealed_password: str
    ca_bundle: str | None = None
    #: Whose user, password and bundle these are: its own, or another version's in the same place.
    credentials_of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundTarget:
    """What a new call of a connection version meets."""

    #: The version that serves it; None when none does.
    serving: int | None
    organization_id: int
    source_id: int
    #: Why none serves it.
    reason: str = ""


#: After a change of the password or the CA bundle alone, an older call's requests need the new one as well: the newest
#: version that is connected in the same place is known to have the right one.
_VERSION = """
SELECT v.connection_id, v.version, c.organization_id, c.source_id, v.endpoint, v.app, n.ari_user AS user,
       n.sealed_password, n.ca_bundle, n.version AS credentials_of
FROM ari.connection_versions v JOIN ari.connections c USING (connection_id)
JOIN LATERAL (
    SELECT ari_user, sealed_password, ca_bundle, version FROM ari.connection_versions
    WHERE connection_id = v.connection_id AND endpoint = v.endpoint AND app = v.app
    ORDER BY socket_state = 'connected' DESC, socket_state <> 'connected' AND version = v.version DESC, version DESC
    LIMIT 1) n ON true
WHERE v.connection_id = %s AND v.version = %s
"""

_ENTRANCE = """
SELECT c.organization_id, c.source_id, c.state, c.reason, c.version AS newest,
       v.endpoint = n.endpoint AND v.app = n.app AS same_app_instance
FROM ari.connection_versions v
JOIN ari.connections c USING (connection_id)
LEFT JOIN ari.connection_versions n ON n.connection_id = c.connection_id AND n.version = c.version
WHERE v.connection_id = %s AND v.version = %s
"""


#: Without its event socket nobody would hear that the far end has answered.
_EXIT = """
SELECT c.connection_id, c.version, c.state, c.reason, v.socket_state, v.last_error
FROM ari.connections c LEFT JOIN ari.connection_versions v USING (connection_id, version)
WHERE c.organization_id = %s AND c.state <> 'removed' ORDER BY c.connection_id
"""

_TAKEN = """
SELECT EXISTS (SELECT 1 FROM ari.connection_versions
               WHERE connection_id = %s AND retired_at IS NULL AND preempted_at IS NOT NULL) AS taken
"""

#: Its app was left to another client: it is tried again.
UNPARK = """
UPDATE ari.connection_versions v SET parked_at = NULL, preempted_at = NULL, reclaims = 0, last_error = '',
    socket_state = 'unassigned', socket_since = clock_timestamp()
FROM ari.connections c
WHERE c.connection_id = v.connection_id AND c.organization_id = %s AND v.parked_at IS NOT NULL AND v.retired_at IS NULL
RETURNING v.connection_id, v.version, v.app
"""


class Connections:
    """Reads connections for the workers."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def version(self, connection_id: int, version: int) -> Version | None:
        """One version, with the credentials that are good in its place now; None when there is none such."""
        with self._db.connection() as connection:
            row = connection.execute(_VERSION, [connection_id, version]).fetchone()
        return Version(**row) if row is not None else None

    def outbound_connection(self, organization_id: int) -> Version:
        """The version through which an organization's calls go out: the newest, once its event socket is up.

        Raises:
            InvalidRequest: It has none.
            NotConnected: It has none whose socket is up; says why.
        """
        with self._db.connection() as connection:
            rows = connection.execute(_EXIT, [organization_id]).fetchall()
        usable = [row for row in rows if row["state"] == "active" and row["socket_state"] == "connected"]
        if usable:
            found = self.version(usable[0]["connection_id"], usable[0]["version"])
            assert found is not None, "a connection version is never deleted"
            return found
        if not rows:
            raise errors.InvalidRequest(f"organization {organization_id} has no connection")
        first = rows[0]
        reason = first["reason"] or first["last_error"] or f"its event socket is {first['socket_state']}"
        told = f"connection {first['connection_id']} of organization {organization_id} cannot place calls: {reason}"
        if first["state"] != "active":
            raise errors.InvalidRequest(told)
        raise errors.NotConnected(told)

    def is_preempted(self, connection_id: int) -> bool:
        """Whether another client has the app: whoever is in it may be its to serve."""
        with self._db.connection() as connection:
            row = connection.execute(_TAKEN, [connection_id]).fetchone()
        assert row is not None
        return bool(row["taken"])

    def inbound_target(self, connection_id: int, version: int) -> InboundTarget | None:
        """What a new call meets that this version's socket reported; None when there is no such version.

        After a change of credentials only, the newest version serves it; after a change of place, or a removal, the
        old one only finishes the calls it has.
        """
        with self._db.connection() as connection:
            row = connection.execute(_ENTRANCE, [connection_id, version]).fetchone()
        if row is None:
            return None
        whose = {"organization_id": row["organization_id"], "source_id": row["source_id"]}
        if row["state"] != "active":
            return InboundTarget(serving=None, reason=f"connection {row['state']}: {row['reason']}", **whose)
        if row["newest"] != version and not row["same_app_instance"]:
            return InboundTarget(serving=None, reason="connection moved to another endpoint or app", **whose)
        return InboundTarget(serving=row["newest"], **whose)
