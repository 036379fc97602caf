"""Event sockets as Postgres has them: each wanted one with its holder and epoch, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from shared import assignments
from shared.assignments import Assignment
from shared.storage import database

#: A listener that has not opened a socket by then, while its previous has it open, will not.
HAND_OVER_SECONDS = 10
#: An app taken back for this long is ours again: the next time it is taken counts as the first.
_SETTLED_SECONDS = 600

_WANTED = f"""
SELECT v.connection_id, v.version, c.organization_id, v.endpoint, v.app, v.ari_user, v.sealed_password, v.ca_bundle,
       v.listener_id, v.epoch, v.previous_listener_id, v.previous_epoch, v.superseded_at IS NOT NULL AS superseded,
       v.socket_state, v.socket_since, v.last_event_at, v.reconnects, v.last_error, v.past_error, v.past_error_at,
       v.reclaims, v.preempted_at IS NOT NULL AS taken, v.parked_at IS NOT NULL AS parked,
       coalesce(clock_timestamp() - v.preempted_at >= %(retake)s * interval '1 second', false) AS may_reclaim,
       coalesce(clock_timestamp() - v.assigned_at > interval '{HAND_OVER_SECONDS} seconds', false) AS slow,
       coalesce(clock_timestamp() - v.assigned_at > interval '{_SETTLED_SECONDS} seconds', false) AS settled,
       c.state = 'active' AND n.endpoint = v.endpoint AND n.app = v.app AS same_app_instance,
       n.socket_state = 'connected' AS successor_connected,
       EXISTS (SELECT 1 FROM ari.calls k WHERE k.connection_id = v.connection_id
               AND k.connection_version = v.version AND k.state <> 'ended') AS has_calls,
       coalesce(clock_timestamp() - v.superseded_at > %(drain)s * interval '1 second', false) AS drained_long
FROM ari.connection_versions v
JOIN ari.connections c USING (connection_id)
LEFT JOIN ari.connection_versions n ON n.connection_id = c.connection_id AND n.version = c.version
WHERE v.retired_at IS NULL ORDER BY v.connection_id, v.version
"""  # noqa: S608 - built from constants

#: Fenced by the leader's term: one that lost its lease without noticing moves nothing.
_MOVE = """
UPDATE ari.connection_versions v SET listener_id = m.listener, epoch = v.epoch + 1, previous_listener_id = m.previous,
    previous_epoch = m.previous_epoch, assigned_at = clock_timestamp(), preempted_at = NULL,
    reclaims = v.reclaims + m.reclaims
FROM jsonb_to_recordset(%(moves)s::jsonb) AS m (connection_id integer, version integer, epoch integer, listener text,
    previous text, previous_epoch integer, reclaims integer)
WHERE v.connection_id = m.connection_id AND v.version = m.version AND v.epoch = m.epoch AND EXISTS (
    SELECT 1 FROM ari.leases WHERE name = 'scheduler' AND term = %(term)s AND expires_at > clock_timestamp())
RETURNING v.connection_id, v.version, v.listener_id, v.epoch, v.previous_listener_id, v.previous_epoch
"""

_STATUS = """
UPDATE ari.connection_versions v SET socket_state = s.state, socket_since = s.since, last_event_at = s.last_event,
    reconnects = s.reconnects, last_error = s.error,
    past_error = CASE WHEN s.past_error <> '' THEN s.past_error WHEN s.error <> '' THEN s.error ELSE v.past_error END,
    past_error_at = CASE WHEN s.past_error <> '' THEN s.past_error_at
                         WHEN s.error NOT IN ('', v.last_error) THEN clock_timestamp() ELSE v.past_error_at END,
    accepted_at = CASE WHEN s.state = 'connected' THEN coalesce(v.accepted_at, clock_timestamp()) ELSE v.accepted_at END
FROM jsonb_to_recordset(%(statuses)s::jsonb) AS s (connection_id integer, version integer, state text,
    since timestamptz, last_event timestamptz, reconnects integer, error text, past_error text,
    past_error_at timestamptz)
WHERE v.connection_id = s.connection_id AND v.version = s.version
"""

#: Postgres was set back: who holds the socket knows a higher epoch than we do.
_ADOPT = """
UPDATE ari.connection_versions SET listener_id = %(listener)s, epoch = %(held)s,
    previous_listener_id = NULL, previous_epoch = NULL
WHERE connection_id = %(connection_id)s AND version = %(version)s AND epoch = %(epoch)s
"""

_RETIRE = """
UPDATE ari.connection_versions
SET retired_at = clock_timestamp(), socket_state = 'retired', previous_listener_id = NULL, previous_epoch = NULL
WHERE connection_id = %(connection_id)s AND version = %(version)s
"""

_TAKEN = """
UPDATE ari.connection_versions SET preempted_at = clock_timestamp()
WHERE connection_id = %(connection_id)s AND version = %(version)s AND epoch = %(epoch)s AND preempted_at IS NULL
"""

_PARK = """
UPDATE ari.connection_versions SET parked_at = clock_timestamp(), listener_id = NULL, previous_listener_id = NULL,
    previous_epoch = NULL, preempted_at = coalesce(preempted_at, clock_timestamp()), socket_state = 'parked',
    socket_since = clock_timestamp(), last_error = %(reason)s, past_error = %(reason)s,
    past_error_at = clock_timestamp()
WHERE connection_id = %(connection_id)s AND version = %(version)s AND epoch = %(epoch)s
"""

_SETTLE = (
    "UPDATE ari.connection_versions SET reclaims = 0 WHERE connection_id = %(connection_id)s AND version = %(version)s"
)

_LET_GO = """
UPDATE ari.connection_versions SET previous_listener_id = NULL, previous_epoch = NULL
WHERE connection_id = %(connection_id)s AND version = %(version)s AND epoch = %(epoch)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One socket under a new epoch."""

    row: database.Row
    listener: str
    #: The listener that has it open until the new one has; None when nobody has.
    previous: str | None = None
    previous_epoch: int | None = None
    #: Another client had taken the app: this is the attempt to take it back.
    is_reclaim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What an operator and a worker see of one socket."""

    connection_id: int
    version: int
    state: str
    since: datetime | None
    last_event: datetime | None
    reconnects: int
    error: str
    past_error: str = ""
    past_error_at: datetime | None = None


class Sockets:
    """Reads and writes on one connection, tick by tick.

    Args:
        drain_seconds: How long a removed configuration's calls may go on.
        reclaim_seconds: How long an app that another client took is left to it.
    """

    def __init__(self, db: database.Database, *, drain_seconds: float, reclaim_seconds: float) -> None:
        self._db = db
        self._bounds = {"drain": drain_seconds, "retake": reclaim_seconds}

    def wanted(self) -> list[database.Row]:
        """Every socket that is wanted, or still is until its calls have ended."""
        with self._db.connection() as connection:
            return connection.execute(_WANTED, self._bounds).fetchall()

    def move(self, moves: Sequence[Move], term: int) -> list[database.Row]:
        """Raises the epochs; gives those that were raised, with holder, previous and epochs as they are now."""
        values = [
            {
                "connection_id": move.row["connection_id"],
                "version": move.row["version"],
                "epoch": move.row["epoch"],
                "listener": move.listener,
                "previous": move.previous,
                "previous_epoch": move.previous_epoch,
                "reclaims": int(move.is_reclaim),
            }
            for move in moves
        ]
        with self._db.connection() as connection:
            return connection.execute(_MOVE, {"moves": json.dumps(values), "term": term}).fetchall()

    def note(self, statuses: Sequence[Status]) -> None:
        """Writes what is seen of the sockets."""
        rows = [{name: getattr(status, name) for name in status.__slots__} for status in statuses]
        with self._db.connection() as connection:
            connection.execute(_STATUS, {"statuses": json.dumps(rows, default=str)})

    def adopt(self, row: database.Row, listener: str, epoch: int) -> None:
        """Somebody holds it under a higher epoch than we know."""
        self._write(_ADOPT, row, listener=listener, held=epoch)

    def retire(self, row: database.Row) -> None:
        """It is of no more use."""
        self._write(_RETIRE, row)

    def mark_preempted(self, row: database.Row) -> None:
        """Another client has the app, from now on."""
        self._write(_TAKEN, row)

    def park(self, row: database.Row, reason: str) -> None:
        """Nobody holds it any more, until somebody says so."""
        self._write(_PARK, row, reason=reason)

    def settle(self, row: database.Row) -> None:
        """What was taken back has been ours for long."""
        self._write(_SETTLE, row)

    def let_go(self, row: database.Row) -> None:
        """The previous is not needed any more."""
        self._write(_LET_GO, row)

    def _write(self, statement: str, row: database.Row, **more: object) -> None:
        names = {name: row[name] for name in ("connection_id", "version", "epoch")}
        with self._db.connection() as connection:
            connection.execute(statement, names | more)


def key_of(row: database.Row) -> str:
    """The connection key of a row."""
    return assignments.connection_key(row["connection_id"], row["version"])


def assignment_of(row: database.Row, epoch: int, *, draining: bool = False) -> Assignment:
    """What a listener is told of a row."""
    return Assignment(
        connection_id=row["connection_id"],
        version=row["version"],
        organization_id=row["organization_id"],
        epoch=epoch,
        endpoint=row["endpoint"],
        app=row["app"],
        user=row["ari_user"],
        sealed_password=row["sealed_password"],
        ca_bundle=row["ca_bundle"],
        # A version is never changed once written: it is its own fingerprint.
        fingerprint=key_of(row),
        draining=draining,
    )
