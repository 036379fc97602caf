"""Turns configurations into connections: reads the platform's rows, and keeps `ari.connections` in step with them.

A connection outlives its row: a new row of an organization whose row is gone is the same configuration, saved anew, if
endpoint and app are the same or if it is the organization's only one. So the connection goes on with its socket and its
calls, whatever the row's id is; also when the platform's upgrade has copied all rows to another table.

An error in one row affects only that row. A read that fails changes nothing. When over half of the rows are missing at
once, they are removed only if the next read confirms it. No row is fetched while neither configurations nor connections
have changed since a read that left nothing to do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from shared import errors
from shared.assignments import AppInstance
from shared.asterisk.endpoint import Configuration
from shared.call.ids import ConnectionVersion
from shared.platform.ports import ConfigurationRow, Configurations
from shared.process import sealing
from shared.storage import app_holders, database

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Connection:
    """A connection as it is stored, with its newest version; it has none if it was always refused."""

    connection_id: int
    source_id: int
    organization_id: int
    state: str
    reason: str
    version: int
    endpoint: str | None
    app: str | None
    sealed_password: str | None
    ca_bundle: str | None
    #: Its newest version's socket is not wanted any more, or left to a competing client.
    is_retired: bool
    is_parked: bool
    #: When its Asterisk first accepted it for this endpoint and app; None: not yet.
    accepted_at: datetime | None
    #: It goes on under another row than the one it is stored with.
    is_saved_anew: bool = False

    @property
    def app_instance(self) -> AppInstance | None:
        """The app instance of its newest version."""
        if self.endpoint is None or self.app is None:
            return None
        return AppInstance(endpoint=self.endpoint, app=self.app)


_READ = """
SELECT c.connection_id, c.source_id, c.organization_id, c.state, c.reason, c.version, v.endpoint, v.app,
       v.sealed_password, v.ca_bundle, v.retired_at IS NOT NULL AS is_retired, v.parked_at IS NOT NULL AS is_parked,
       (SELECT min(a.accepted_at) FROM ari.connection_versions a WHERE a.connection_id = c.connection_id
        AND a.endpoint = v.endpoint AND a.app = v.app) AS accepted_at
FROM ari.connections c LEFT JOIN ari.connection_versions v USING (connection_id, version)
"""

#: Of an app that was never ours a worker is to be asked first, which it was not yet.
_INSERT_VERSION = f"""
INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password, ca_bundle,
                                     asked_at)
VALUES (%(connection_id)s, %(version)s, %(endpoint)s, %(app)s, %(user)s, %(sealed_password)s, %(ca_bundle)s,
        CASE WHEN NOT {app_holders.WAS_OURS} THEN to_timestamp(0) END)
"""  # noqa: S608 - built from a constant


class Reconciler:
    """Keeps connections in step with configurations."""

    def __init__(self, db: database.Database, configurations: Configurations, sealer: sealing.Sealer) -> None:
        self._db = db
        self._configurations = configurations
        self._sealer = sealer
        self._many_missing = False
        #: The fingerprints of configurations and connections when they were last in step.
        self._in_step_at: tuple[str, str] | None = None

    def reconcile(self) -> None:
        """Read the configurations once, if anything has changed, and apply what changed.

        Raises:
            DatabaseUnavailable: Nothing was applied, or some rows were, each as a whole.
        """
        # Taken before the rows are read: what changes in between, or is written here, makes the next run read again.
        found = self._fingerprints()
        if found == self._in_step_at:
            return
        self._in_step_at = None
        if self._apply_all():
            self._in_step_at = found

    def _fingerprints(self) -> tuple[str, str]:
        configurations = self._configurations.fingerprint()
        with self._db.connection() as connection:
            return configurations, database.fingerprint(connection, _READ)

    def _apply_all(self) -> bool:
        """Apply every configuration; return False if some could not be, or are not applied before the next read."""
        rows = self._configurations.all()
        stored = self._continued(rows, self._configurations.inactive(), self._read())
        configured = {row.source_id for row in rows}
        kept = [each for each in stored.values() if each.state != "removed"]
        missing = [each for each in kept if each.source_id not in configured]
        if self._must_confirm(len(missing), len(kept)):
            return False
        is_complete = True
        in_use = _app_instances_in_use(each for each in kept if each.source_id in configured)
        for row in sorted(rows, key=lambda row: row.source_id):
            try:
                if row.deactivation is not None:
                    # The next read finds it gone; or tries again, if it could not be done yet.
                    is_complete = False
                    self._deactivate_at_platform(row, row.deactivation)
                self._apply(row, stored.get(row.source_id), in_use)
            except errors.TransientError:
                raise
            except Exception:
                # A bug that one tenant's row brings to light must not stop the other tenants' rows.
                log.exception("configuration not applied", source=row.source_id)
                is_complete = False
        for each in missing:
            self._deactivate(each, "removed", "configuration removed")
        return is_complete

    def _deactivate_at_platform(self, row: ConfigurationRow, reason: str) -> None:
        source_id, organization_id = row.source_id, row.organization_id
        if self._configurations.deactivate(source_id=source_id, organization_id=organization_id, reason=reason):
            log.warning("configuration deactivated", source=source_id, organization=organization_id, reason=reason)

    def _must_confirm(self, missing: int, stored: int) -> bool:
        suspicious = missing > 1 and missing * 2 > stored
        confirmed, self._many_missing = self._many_missing, suspicious
        if suspicious and not confirmed:
            log.warning("over half of the configurations missing, waiting for the next read to confirm it",
                        missing=missing)  # fmt: skip
        return suspicious and not confirmed

    def _read(self) -> dict[int, _Connection]:
        with self._db.connection() as connection:
            rows = connection.execute(_READ).fetchall()
        return {row["source_id"]: _Connection(**row) for row in rows}

    def _apply(self, row: ConfigurationRow, stored: _Connection | None, in_use: dict[AppInstance, _Connection]) -> None:
        try:
            configuration = row.read()
        except errors.InvalidConfiguration as exc:
            self._refuse(row, stored, str(exc))
            return
        owner = in_use.get(_app_instance(configuration))
        if owner is not None and owner.source_id != row.source_id:
            reason = (
                f"endpoint and app are in use by connection {owner.connection_id}, which the Asterisk accepted first"
            )
            self._refuse(row, stored, reason)
            return
        if stored is None or not self._is_same(stored, configuration):
            self._write_version(row, stored, configuration)
        elif stored.state != "active":
            self._reactivate(stored)

    def _is_same(self, stored: _Connection, configuration: Configuration) -> bool:
        if stored.app_instance != _app_instance(configuration) or not stored.sealed_password or stored.is_retired:
            return False
        if stored.is_parked and (stored.is_saved_anew or stored.state != "active"):
            # Saved anew it is tried again, as after any change.
            return False
        if stored.ca_bundle != configuration.ca_bundle:
            return False
        try:
            return self._sealer.open(stored.sealed_password) == configuration.password
        except errors.SealBroken:
            return False

    def _continued(
        self, rows: Collection[ConfigurationRow], inactive: Collection[int], stored: Mapping[int, _Connection]
    ) -> dict[int, _Connection]:
        """Let connections whose row is gone go on under a new row of their organization; return them all by row."""
        found = dict(stored)
        for source_id, before in _saved_anew(rows, inactive, stored).items():
            with self._db.transaction() as connection:
                connection.execute(
                    "UPDATE ari.connections SET source_id = %s WHERE connection_id = %s",
                    [source_id, before.connection_id],
                )
            del found[before.source_id]
            found[source_id] = replace(before, source_id=source_id, is_saved_anew=True)
            log.info("configuration saved anew", connection=before.connection_id, source=source_id,
                     before=before.source_id)  # fmt: skip
        return found

    def _reactivate(self, stored: _Connection) -> None:
        """Let the newest version serve new calls again. Its socket, if it is open still, goes on."""
        with self._db.transaction() as connection:
            resumed = connection.execute(
                "UPDATE ari.connection_versions SET superseded_at = NULL"
                " WHERE connection_id = %s AND version = %s AND retired_at IS NULL RETURNING version",
                [stored.connection_id, stored.version],
            ).fetchone()
            if resumed is None:
                # Retired since it was read: the next read finds that, and writes a version.
                return
            connection.execute(
                "UPDATE ari.connections SET state = 'active', reason = '', changed_at = clock_timestamp()"
                " WHERE connection_id = %s",
                [stored.connection_id],
            )
        log.info("connection active again", connection=str(ConnectionVersion(stored.connection_id, stored.version)))

    def _write_version(self, row: ConfigurationRow, stored: _Connection | None, configuration: Configuration) -> None:
        """Write a new version. The one before it is superseded: it serves its calls to their end."""
        with self._db.transaction() as connection:
            connection_id = stored.connection_id if stored is not None else _insert(connection, row)
            version = connection.execute(
                "UPDATE ari.connections SET state = 'active', reason = '', version = 1 + (SELECT coalesce(max(version),"
                " 0) FROM ari.connection_versions WHERE connection_id = %(id)s), changed_at = clock_timestamp()"
                " WHERE connection_id = %(id)s RETURNING version",
                {"id": connection_id},
            ).fetchone()
            assert version is not None
            _supersede(connection, connection_id)
            connection.execute(
                _INSERT_VERSION,
                {
                    "connection_id": connection_id,
                    "version": version["version"],
                    "endpoint": configuration.endpoint,
                    "app": configuration.app,
                    "user": configuration.user,
                    "sealed_password": self._sealer.seal(configuration.password),
                    "ca_bundle": configuration.ca_bundle,
                },
            )
        log.info("connection version written", connection=str(ConnectionVersion(connection_id, version["version"])),
                 endpoint=configuration.endpoint)  # fmt: skip

    def _refuse(self, row: ConfigurationRow, stored: _Connection | None, reason: str) -> None:
        if stored is None:
            with self._db.transaction() as connection:
                connection_id = _insert(connection, row, state="refused", reason=reason)
            log.warning("configuration refused", connection=connection_id, source=row.source_id, reason=reason)
        else:
            self._deactivate(stored, "refused", reason)

    def _deactivate(self, stored: _Connection, state: str, reason: str) -> None:
        if (stored.state, stored.reason) == (state, reason):
            return
        with self._db.transaction() as connection:
            connection.execute(
                "UPDATE ari.connections SET state = %s, reason = %s, changed_at = clock_timestamp()"
                " WHERE connection_id = %s",
                [state, reason, stored.connection_id],
            )
            _supersede(connection, stored.connection_id)
        log.warning("connection deactivated", connection=stored.connection_id, state=state, reason=reason)


def _saved_anew(
    rows: Collection[ConfigurationRow], inactive: Collection[int], stored: Mapping[int, _Connection]
) -> dict[int, _Connection]:
    """Return, for each new row of an organization that has lost a row, the connection that goes on under it.

    A row that is inactive is not lost: reactivated, it has its connection still.
    First that of the same app instance. Of an organization with a single row, any other one: the newest.
    """
    configured = {row.source_id for row in rows}.union(inactive)
    gone: dict[int, list[_Connection]] = defaultdict(list)
    for each in sorted(stored.values(), key=lambda each: (each.state != "removed", each.connection_id)):
        if each.source_id not in configured:
            gone[each.organization_id].append(each)
    of_organization = Counter(row.organization_id for row in rows)
    found: dict[int, _Connection] = {}
    for row in rows:
        candidates = gone[row.organization_id] if row.source_id not in stored else []
        same = [each for each in candidates if each.app_instance is not None and each.app_instance == _instance(row)]
        others = candidates if of_organization[row.organization_id] == 1 else []
        if same or others:
            found[row.source_id] = (same or others)[-1]
            candidates.remove(found[row.source_id])
    return found


def _instance(row: ConfigurationRow) -> AppInstance | None:
    """Return a configuration's app instance; None if it cannot be used."""
    try:
        return _app_instance(row.read())
    except errors.InvalidConfiguration:
        return None


def _app_instances_in_use(connections: Iterable[_Connection]) -> dict[AppInstance, _Connection]:
    """Return each app instance in use, and the connection that owns it: the first that its Asterisk accepted.

    Until it accepts one, all configurations may try: a wrong password must not keep an app from its owner.
    """
    owners: dict[AppInstance, tuple[datetime, int, _Connection]] = {}
    for each in connections:
        instance = each.app_instance
        if each.state != "active" or instance is None or each.accepted_at is None:
            continue
        candidate = (each.accepted_at, each.connection_id, each)
        owners[instance] = min(owners.get(instance, candidate), candidate)
    return {instance: owner for instance, (_, _, owner) in owners.items()}


def _app_instance(configuration: Configuration) -> AppInstance:
    return AppInstance(endpoint=configuration.endpoint, app=configuration.app)


def _insert(connection: database.Connection, row: ConfigurationRow, *, state: str = "active", reason: str = "") -> int:
    inserted = connection.execute(
        "INSERT INTO ari.connections (source_id, organization_id, state, reason) VALUES (%s, %s, %s, %s)"
        " RETURNING connection_id",
        [row.source_id, row.organization_id, state, reason],
    ).fetchone()
    assert inserted is not None
    return int(inserted["connection_id"])


def _supersede(connection: database.Connection, connection_id: int) -> None:
    connection.execute(
        "UPDATE ari.connection_versions SET superseded_at = clock_timestamp()"
        " WHERE connection_id = %s AND superseded_at IS NULL",
        [connection_id],
    )
