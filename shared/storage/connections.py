"""Connections and their versions in Postgres: where a tenant's Asterisk is, and which listener has its event socket.

A connection is one configuration row of the platform. A version of it is what a socket and a request need: endpoint,
app, credentials. It never changes once written, so a call pins the version it came in by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shared import errors
from shared.call.ids import ConnectionVersion
from shared.call.quota_rules import Quota
from shared.storage import app_instances, database


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionDetails:
    """What a request to a connection version's Asterisk needs."""

    connection: ConnectionVersion
    organization_id: int
    endpoint: str
    app: str
    user: str
    sealed_password: str
    ca_bundle: str | None = None
    #: The version whose user, password and bundle these are: this one, or another one of the same app instance; 0 if it
    #: is another connection's.
    credentials_of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundTarget:
    """Where a new call of a connection version goes."""

    #: The version that serves it; None when none does.
    served_by: ConnectionVersion | None
    organization_id: int
    #: The organization's limits in the product, read along.
    quota: Quota
    #: If none serves it: the reason.
    reason: str = ""
    #: The app instance is another organization's by now: its callers are left to that one.
    is_anothers: bool = False
    #: A fingerprint of the rows that it was read from.
    read: int = field(default=0, compare=False)


#: After a change of the password or the CA bundle alone, an older call's requests need the new one as well: the newest
#: version of the same app instance that is connected is known to have the right one. While none is connected, a version
#: that was retired is not asked: it was, because a later one had connected.
_DETAILS = """
SELECT c.organization_id, v.endpoint, v.app, n.ari_user AS user, n.sealed_password, n.ca_bundle,
       CASE WHEN n.connection_id = v.connection_id THEN n.version ELSE 0 END AS credentials_of
FROM ari.connection_versions v JOIN ari.connections c USING (connection_id)
JOIN LATERAL (
    SELECT o.connection_id, o.version, o.ari_user, o.sealed_password, o.ca_bundle
    FROM ari.connections s JOIN ari.connection_versions o USING (connection_id)
    WHERE s.organization_id = c.organization_id AND o.endpoint = v.endpoint AND o.app = v.app
    ORDER BY o.socket_state = 'connected' DESC, o.retired_at IS NULL DESC,
             o.socket_state <> 'connected' AND o.connection_id = v.connection_id AND o.version = v.version DESC,
             o.connection_id = v.connection_id DESC, o.connection_id DESC, o.version DESC
    LIMIT 1) n ON true
WHERE v.connection_id = %s AND v.version = %s
"""

#: A connection that is removed, or has moved, may have been followed by another one, whose the app instance is now.
_INBOUND = """
SELECT c.organization_id, c.state, c.reason, c.version AS newest, c.suspension,
       v.endpoint = n.endpoint AND v.app = n.app AS same_app_instance,
       o.connection_id AS owner_id, o.version AS owner_version, o.organization_id AS owner_organization_id,
       coalesce(q.blocked, false) AS blocked, q.concurrent_calls, q.minutes_per_month
FROM ari.connection_versions v
JOIN ari.connections c USING (connection_id)
LEFT JOIN ari.connection_versions n ON n.connection_id = c.connection_id AND n.version = c.version
LEFT JOIN ari.quotas q ON q.organization_id = c.organization_id
LEFT JOIN LATERAL (
    SELECT oc.connection_id, oc.version, oc.organization_id
    FROM ari.connection_versions ov JOIN ari.connections oc USING (connection_id, version)
    WHERE (c.state <> 'active' OR v.endpoint <> n.endpoint OR v.app <> n.app)
      AND ov.endpoint = v.endpoint AND ov.app = v.app AND ov.superseded_at IS NULL AND ov.accepted_at IS NOT NULL
      AND oc.state = 'active' AND oc.connection_id <> c.connection_id
    ORDER BY oc.organization_id = c.organization_id DESC LIMIT 1) o ON true
WHERE v.connection_id = %(connection_id)s AND v.version = %(version)s
"""


#: Without an event socket the product would not learn that the far end has answered.
_OUTBOUND = """
SELECT c.connection_id, c.version, c.state, c.reason, c.suspension, v.socket_state, v.last_error
FROM ari.connections c LEFT JOIN ari.connection_versions v USING (connection_id, version)
WHERE c.organization_id = %s AND c.state <> 'removed' ORDER BY c.connection_id
"""

#: Why a connection takes no call that an operator has suspended, by its suspension.
SUSPENDED = {"park": "parked by an operator", "drain": "drained by an operator"}

_SHARE_AN_APP = f"SELECT %s IN ({app_instances.SHARING}) AS shared"

_PREEMPTED = """
SELECT EXISTS (SELECT 1 FROM ari.connection_versions
               WHERE connection_id = %s AND retired_at IS NULL AND preempted_at IS NOT NULL) AS preempted
"""

#: The app was left to a competing client; now it is tried again. One that was never ours is taken over by its own
#: command (`app_holders`).
UNPARK = """
UPDATE ari.connection_versions SET parked_at = NULL, preempted_at = NULL, reclaims = 0, last_error = '',
    socket_state = 'unassigned', socket_since = clock_timestamp()
WHERE connection_id = %s AND parked_at IS NOT NULL AND retired_at IS NULL AND asked_at IS NULL
"""


class Connections:
    """Reads connections for the workers."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def details(self, connection: ConnectionVersion) -> ConnectionDetails | None:
        """Return one version, with the credentials that are valid for its app instance now; None when there is none."""
        with self._db.connection() as db:
            row = db.execute(_DETAILS, [connection.connection_id, connection.number]).fetchone()
        return ConnectionDetails(connection=connection, **row) if row is not None else None

    def outbound_connection(self, organization_id: int, preferred: int | None = None) -> ConnectionDetails:
        """Return the version through which an organization's calls go out: the newest, once its event socket is up.

        Args:
            preferred: Of several connections: that one, if its socket is up.

        Raises:
            InvalidRequest: It has none.
            NotConnected: It has none whose socket is up; says why.
        """
        with self._db.connection() as connection:
            rows = connection.execute(_OUTBOUND, [organization_id]).fetchall()
        usable = [
            row
            for row in rows
            if row["state"] == "active" and row["socket_state"] == "connected" and row["suspension"] is None
        ]
        if usable:
            through = next((row for row in usable if row["connection_id"] == preferred), usable[0])
            found = self.details(ConnectionVersion(through["connection_id"], through["version"]))
            assert found is not None, "a connection version is never deleted"
            return found
        if not rows:
            raise errors.InvalidRequest(f"organization {organization_id} has no connection")
        first = rows[0]
        reason = first["reason"] or SUSPENDED.get(first["suspension"]) or first["last_error"]
        reason = reason or f"its event socket is {first['socket_state']}"
        message = f"connection {first['connection_id']} of organization {organization_id} cannot place calls: {reason}"
        if first["state"] != "active":
            raise errors.InvalidRequest(message)
        raise errors.NotConnected(message)

    def is_preempted(self, connection_id: int) -> bool:
        """True if a competing ARI client has the Stasis app: its channels may belong to that client."""
        with self._db.connection() as connection:
            row = connection.execute(_PREEMPTED, [connection_id]).fetchone()
        assert row is not None
        return bool(row["preempted"])

    def share_an_app(self, connection_id: int, other_id: int) -> bool:
        """True for connections of one organization that are, or were, one app instance."""
        with self._db.connection() as connection:
            row = connection.execute(_SHARE_AN_APP, [other_id, connection_id]).fetchone()
        assert row is not None
        return bool(row["shared"])

    def inbound_target(self, connection: ConnectionVersion) -> InboundTarget | None:
        """Return where a new call goes that this version's socket reported; None when there is no such version.

        After a change of credentials only, the newest version serves it. After a move to another app instance, or a
        removal, the old version only finishes the calls it has; new ones are for the connection that has the app
        instance now, if that is of the same organization.
        """
        with self._db.connection() as db:
            target = self.send_inbound_target(db, connection)
        return target()

    @staticmethod
    def send_inbound_target(
        db: database.Connection, connection: ConnectionVersion
    ) -> Callable[[], InboundTarget | None]:
        """Send for what `inbound_target` returns; return what returns it, once the answer is there."""
        sent = db.send(database.with_fingerprint(_INBOUND), _values(connection))
        return lambda: _target(connection, sent.fetchone())

    @staticmethod
    def check_inbound_target(db: database.Connection, connection: ConnectionVersion, read: int) -> None:
        """Have a transaction fail with RowChanged unless the rows of a target are as they were."""
        db.send(database.unchanged(_INBOUND), _values(connection) | {"read": read})


def _values(connection: ConnectionVersion) -> dict[str, int]:
    return {"connection_id": connection.connection_id, "version": connection.number}


def _target(connection: ConnectionVersion, row: database.Row | None) -> InboundTarget | None:
    if row is None:
        return None
    limits = ("organization_id", "blocked", "concurrent_calls", "minutes_per_month")
    quota = Quota(**{name: row[name] for name in limits})
    tenant: dict[str, Any] = {"organization_id": row["organization_id"], "quota": quota, "read": row["read"]}
    if row["owner_id"] is not None:
        if row["owner_organization_id"] != row["organization_id"]:
            reason = "endpoint and app are another organization's now"
            return InboundTarget(served_by=None, reason=reason, is_anothers=True, **tenant)
        return InboundTarget(served_by=ConnectionVersion(row["owner_id"], row["owner_version"]), **tenant)
    if row["state"] != "active" or row["suspension"] is not None:
        reason = SUSPENDED.get(row["suspension"], "suspended")
        if row["state"] != "active":
            reason = f"{row['state']}: {row['reason']}"
        return InboundTarget(served_by=None, reason=f"connection {reason}", **tenant)
    if row["newest"] != connection.number and not row["same_app_instance"]:
        return InboundTarget(served_by=None, reason="connection moved to another endpoint or app", **tenant)
    return InboundTarget(served_by=ConnectionVersion(connection.connection_id, row["newest"]), **tenant)
