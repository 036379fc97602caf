"""Configurations into connections: reads the platform's rows, keeps ari.connections and their versions in step.

One row's fault is that row's. A read that fails changes nothing; losing over half of the rows at once is believed only
when a second read says the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import structlog

from shared import errors
from shared.asterisk.endpoint import Configuration
from shared.platform.ports import ConfigurationRow, Configurations
from shared.process import sealing
from shared.storage import database

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A connection as we have it."""

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
    #: When its Asterisk first accepted it in this endpoint and app; None: not yet.
    accepted_at: datetime | None


_READ = """
SELECT c.connection_id, c.source_id, c.organization_id, c.state, c.reason, c.version, v.endpoint, v.app,
       v.sealed_password, v.ca_bundle,
       (SELECT min(a.accepted_at) FROM ari.connection_versions a WHERE a.connection_id = c.connection_id
        AND a.endpoint = v.endpoint AND a.app = v.app) AS accepted_at
FROM ari.connections c LEFT JOIN ari.connection_versions v USING (connection_id, version)
ORDER BY c.connection_id
"""


class Reconciler:
    """Keeps connections in step with configurations."""

    def __init__(self, db: database.Database, rows: Configurations, sealer: sealing.Sealer) -> None:
        self._db = db
        self._rows = rows
        self._sealer = sealer
        self._many_missing = False

    def reconcile(self) -> None:
        """Reads once and applies what changed. Raises DatabaseUnavailable, having changed nothing or whole rows."""
        rows = self._rows.all()
        known = self._read()
        wanted = {row.source_id for row in rows}
        missing = [one for one in known.values() if one.state != "removed" and one.source_id not in wanted]
        if self._must_confirm(len(missing), sum(one.state != "removed" for one in known.values())):
            return
        taken = self._places_taken(known, wanted)
        for row in sorted(rows, key=lambda row: row.source_id):
            try:
                self._apply(row, known.get(row.source_id), taken)
            except errors.DatabaseUnavailable:
                raise
            except Exception:
                # Whatever one tenant's row does to us, the others' rows go on.
                log.exception("a configuration row could not be applied", source=row.source_id)
        for one in missing:
            self._leave(one, "removed", "configuration removed")

    def _must_confirm(self, missing: int, known: int) -> bool:
        suspicious = missing > 1 and missing * 2 > known
        confirmed, self._many_missing = self._many_missing, suspicious
        if suspicious and not confirmed:
            log.warning("over half of the configurations are gone: believed when the next read agrees", missing=missing)
        return suspicious and not confirmed

    def _read(self) -> dict[int, _Known]:
        with self._db.connection() as connection:
            rows = connection.execute(_READ).fetchall()
        return {row["source_id"]: _Known(**row) for row in rows}

    @staticmethod
    def _places_taken(known: dict[int, _Known], wanted: set[int]) -> dict[tuple[str, str], int]:
        """(endpoint, app) → the configuration that has it: the first that its Asterisk accepted.

        Until one was, all may try: whoever has no right to an app must not keep it from its owner.
        """
        taken: dict[tuple[str, str], tuple[datetime, int]] = {}
        for one in known.values():
            if one.state != "active" or one.source_id not in wanted or one.accepted_at is None:
                continue
            assert one.endpoint is not None
            assert one.app is not None
            place, claim = (one.endpoint, one.app), (one.accepted_at, one.source_id)
            taken[place] = min(taken.get(place, claim), claim)
        return {place: source_id for place, (_, source_id) in taken.items()}

    def _apply(self, row: ConfigurationRow, known: _Known | None, taken: dict[tuple[str, str], int]) -> None:
        try:
            configuration = row.read()
        except errors.InvalidConfiguration as exc:
            self._refuse(row, known, str(exc))
            return
        place = (configuration.endpoint, configuration.app)
        holder = taken.get(place, row.source_id)
        if holder != row.source_id:
            reason = f"endpoint and app are those of configuration {holder}, which their Asterisk accepted first"
            self._refuse(row, known, reason)
            return
        if known is None or known.state != "active" or not self._same(known, configuration):
            self._write_version(row, known, configuration)

    def _same(self, known: _Known, configuration: Configuration) -> bool:
        if (known.endpoint, known.app) != (configuration.endpoint, configuration.app) or not known.sealed_password:
            return False
        if known.ca_bundle != configuration.ca_bundle:
            return False
        try:
            return self._sealer.open(known.sealed_password) == configuration.password
        except errors.SealBroken:
            return False

    def _write_version(self, row: ConfigurationRow, known: _Known | None, configuration: Configuration) -> None:
        """A new version in the old one's place, which drains."""
        with self._db.transaction() as connection:
            connection_id = known.connection_id if known is not None else _insert(connection, row)
            version = connection.execute(
                "UPDATE ari.connections SET state = 'active', reason = '', version = 1 + (SELECT coalesce(max(version),"
                " 0) FROM ari.connection_versions WHERE connection_id = %(id)s), changed_at = clock_timestamp()"
                " WHERE connection_id = %(id)s RETURNING version",
                {"id": connection_id},
            ).fetchone()
            assert version is not None
            _supersede(connection, connection_id)
            connection.execute(
                "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user,"
                " sealed_password, ca_bundle) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [
                    connection_id,
                    version["version"],
                    configuration.endpoint,
                    configuration.app,
                    configuration.user,
                    self._sealer.seal(configuration.password),
                    configuration.ca_bundle,
                ],
            )
        log.info("connection", connection=connection_id, version=version["version"], endpoint=configuration.endpoint)

    def _refuse(self, row: ConfigurationRow, known: _Known | None, reason: str) -> None:
        if known is None:
            with self._db.transaction() as connection:
                connection_id = _insert(connection, row, state="refused", reason=reason)
            log.warning("configuration refused", connection=connection_id, source=row.source_id, reason=reason)
        else:
            self._leave(known, "refused", reason)

    def _leave(self, known: _Known, state: str, reason: str) -> None:
        if (known.state, known.reason) == (state, reason):
            return
        with self._db.transaction() as connection:
            connection.execute(
                "UPDATE ari.connections SET state = %s, reason = %s, changed_at = clock_timestamp()"
                " WHERE connection_id = %s",
                [state, reason, known.connection_id],
            )
            _supersede(connection, known.connection_id)
        log.warning("connection left", connection=known.connection_id, state=state, reason=reason)


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
