"""Event sockets in Postgres: the rows of `ari.connection_versions`, typed, and every write to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime

from shared.assignments import Assignment
from shared.call.ids import ConnectionVersion
from shared.storage import database

#: A hand-off to a listener that has not opened the socket by then has failed.
HAND_OFF_SECONDS = 10
#: A reclaimed app that stays ours for this long is ours again: the next preemption counts as the first.
_STABLE_SECONDS = 600
#: Most rows that one statement writes.
_BATCH = 1000


def _passed(since: str, seconds: str) -> str:
    """Return the condition that so long has passed since a moment: it becomes true by itself.

    If the moment is as far ahead, Postgres's clock was set back since: nobody knows how long ago it was.
    """
    bound = f"make_interval(secs => {seconds})"
    return f"coalesce(clock_timestamp() - v.{since} NOT BETWEEN -{bound} AND {bound}, false)"


_MAY_RECLAIM = _passed("preempted_at", "%(reclaim)s")
_HAND_OFF_OVERDUE = _passed("assigned_at", str(HAND_OFF_SECONDS))
_STABLE = _passed("assigned_at", str(_STABLE_SECONDS))
#: A socket in quarantine is parked, with an end.
_QUARANTINE_OVER = f"(v.socket_state = 'quarantined' AND {_passed('parked_at', '%(quarantine)s')})"
_DRAIN_OVERDUE = _passed("superseded_at", "%(drain)s")
_SAME_APP_INSTANCE = "coalesce(c.state = 'active' AND n.endpoint = v.endpoint AND n.app = v.app, false)"
_SUCCESSOR_CONNECTED = "coalesce(n.socket_state = 'connected', false)"
#: By an operator: its later versions, too.
_PARKED = "(v.parked_at IS NOT NULL OR coalesce(c.suspension = 'park', false))"
_HAS_CALLS = """EXISTS (SELECT 1 FROM ari.calls k WHERE k.connection_id = v.connection_id
               AND k.connection_version = v.version AND k.state <> 'ended')"""

_SOCKETS = """
FROM ari.connection_versions v
JOIN ari.connections c USING (connection_id)
LEFT JOIN ari.connection_versions n ON n.connection_id = c.connection_id AND n.version = c.version
WHERE v.retired_at IS NULL
"""

_WANTED = f"""
SELECT v.connection_id, v.version, c.organization_id, v.endpoint, v.app, v.ari_user, v.sealed_password, v.ca_bundle,
       v.listener_id, v.epoch, v.previous_listener_id, v.previous_epoch, v.superseded_at IS NOT NULL AS superseded,
       v.socket_state AS state, v.socket_since AS since, v.last_event_at, v.reconnects, v.last_error AS error,
       v.past_error, v.past_error_at, v.accepted_at,
       v.reclaims, v.preempted_at IS NOT NULL AS preempted, {_PARKED} AS parked,
       v.asked_at IS NOT NULL AS asked, c.suspension,
       {_QUARANTINE_OVER} AS quarantine_over,
       {_MAY_RECLAIM} AS may_reclaim, {_HAND_OFF_OVERDUE} AS hand_off_overdue, {_STABLE} AS stable,
       {_SAME_APP_INSTANCE} AS same_app_instance, {_SUCCESSOR_CONNECTED} AS successor_connected,
       {_HAS_CALLS} AS has_calls, {_DRAIN_OVERDUE} AS drain_overdue
{_SOCKETS} ORDER BY v.connection_id, v.version
"""

#: All of `_WANTED` that decides about a socket, except its status, which only the leading scheduler writes. What
#: matters for few sockets is asked of those alone.
_DECISIVE = f"""
SELECT v.connection_id, v.version, v.listener_id, v.epoch, v.previous_listener_id, v.previous_epoch, v.reclaims,
       v.superseded_at, v.preempted_at, v.parked_at, c.suspension, v.asked_at IS NOT NULL, {_MAY_RECLAIM},
       CASE WHEN v.parked_at IS NOT NULL THEN {_QUARANTINE_OVER} END,
       CASE WHEN v.previous_listener_id IS NOT NULL THEN {_HAND_OFF_OVERDUE} END,
       CASE WHEN v.reclaims > 0 THEN {_STABLE} END,
       CASE WHEN v.superseded_at IS NOT NULL THEN
            concat_ws(' ', {_SAME_APP_INSTANCE}, {_SUCCESSOR_CONNECTED}, {_HAS_CALLS}, {_DRAIN_OVERDUE}) END
{_SOCKETS}
"""

_MOVE = """
UPDATE ari.connection_versions v SET listener_id = m.listener, epoch = v.epoch + 1, previous_listener_id = m.previous,
    previous_epoch = m.previous_epoch, assigned_at = clock_timestamp(), preempted_at = NULL,
    reclaims = v.reclaims + m.reclaims
FROM jsonb_to_recordset(%(moves)s::jsonb) AS m (connection_id integer, version integer, epoch integer, listener text,
    previous text, previous_epoch integer, reclaims integer)
WHERE v.connection_id = m.connection_id AND v.version = m.version AND v.epoch = m.epoch
RETURNING v.connection_id, v.version, v.listener_id, v.epoch, v.previous_listener_id, v.previous_epoch
"""

_WRITE_STATUS = """
UPDATE ari.connection_versions v SET socket_state = s.state, socket_since = s.since, last_event_at = s.last_event_at,
    reconnects = s.reconnects, last_error = s.error,
    past_error = CASE WHEN s.past_error <> '' THEN s.past_error WHEN s.error <> '' THEN s.error ELSE v.past_error END,
    past_error_at = CASE WHEN s.past_error <> '' THEN s.past_error_at
                         WHEN s.error NOT IN ('', v.last_error) THEN clock_timestamp() ELSE v.past_error_at END,
    accepted_at = CASE WHEN s.state = 'connected' THEN coalesce(v.accepted_at, clock_timestamp()) ELSE v.accepted_at END
FROM jsonb_to_recordset(%(statuses)s::jsonb) AS s (connection_id integer, version integer, state text,
    since timestamptz, last_event_at timestamptz, reconnects integer, error text, past_error text,
    past_error_at timestamptz)
WHERE v.connection_id = s.connection_id AND v.version = s.version
RETURNING v.connection_id, v.version, v.socket_state AS state, v.socket_since AS since, v.last_event_at, v.reconnects,
    v.last_error AS error, v.past_error, v.past_error_at
"""

_ADOPT = """
UPDATE ari.connection_versions SET listener_id = %(listener)s, epoch = %(reported_epoch)s,
    previous_listener_id = NULL, previous_epoch = NULL
WHERE connection_id = %(connection_id)s AND version = %(version)s AND epoch = %(epoch)s
"""

_RETIRE = """
UPDATE ari.connection_versions
SET retired_at = clock_timestamp(), socket_state = 'retired', previous_listener_id = NULL, previous_epoch = NULL
WHERE connection_id = %(connection_id)s AND version = %(version)s AND superseded_at IS NOT NULL
"""

_MARK_PREEMPTED = """
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

_QUARANTINE = """
UPDATE ari.connection_versions SET parked_at = clock_timestamp(), listener_id = NULL, previous_listener_id = NULL,
    previous_epoch = NULL, socket_state = 'quarantined', socket_since = clock_timestamp(), last_error = %(reason)s,
    past_error = %(reason)s, past_error_at = clock_timestamp()
WHERE connection_id = %(connection_id)s AND version = %(version)s AND parked_at IS NULL AND retired_at IS NULL
"""

_END_QUARANTINE = """
UPDATE ari.connection_versions SET parked_at = NULL, socket_state = 'unassigned', socket_since = clock_timestamp(),
    last_error = ''
WHERE connection_id = %(connection_id)s AND version = %(version)s AND epoch = %(epoch)s
"""

_COUNT_NOTES = """
SELECT count(*) AS notes FROM ari.timeline
WHERE call_id IS NULL AND connection_id = %(connection_id)s AND kind = 'note' AND name = %(name)s
  AND at > clock_timestamp() - %(quarantine)s * interval '1 second'
"""

_CLEAR_RECLAIMS = (
    "UPDATE ari.connection_versions SET reclaims = 0 WHERE connection_id = %(connection_id)s AND version = %(version)s"
)

_RELEASE_PREVIOUS = """
UPDATE ari.connection_versions SET previous_listener_id = NULL, previous_epoch = NULL
WHERE connection_id = %(connection_id)s AND version = %(version)s AND epoch = %(epoch)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketStatus:
    """The state of one event socket, as operators and workers see it."""

    state: str
    since: datetime | None
    last_event_at: datetime | None
    reconnects: int
    #: The current error; empty when there is none.
    error: str
    #: The most recent error and its time, kept after the socket has recovered.
    past_error: str
    past_error_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSocket:
    """A connection version that needs an event socket, with everything its next action depends on."""

    connection: ConnectionVersion
    organization_id: int
    endpoint: str
    app: str
    ari_user: str
    sealed_password: str
    ca_bundle: str | None
    #: The listener that the socket is assigned to, and the epoch of the assignment; 0 before the first.
    listener_id: str | None
    epoch: int
    #: During a hand-off: the listener that keeps the socket open until the new one has opened it, and its epoch.
    previous_listener_id: str | None
    previous_epoch: int | None
    #: As last written.
    status: SocketStatus
    #: When its Asterisk first accepted it.
    accepted_at: datetime | None
    #: A newer version of the connection exists, or the connection is not active any more.
    superseded: bool
    #: A competing client has the app.
    preempted: bool
    #: How many times in a row the app was reclaimed from a competing client.
    reclaims: int
    #: Left to the competing client until an operator unparks it, parked by one, held by another process, or in
    #: quarantine.
    parked: bool
    #: What an operator has ordered: `park`, `drain`, or None.
    suspension: str | None
    #: Not to be opened before a worker has told whether another process has the app.
    asked: bool
    #: It has been in quarantine for long enough.
    quarantine_over: bool
    #: The competing client has had the app for long enough.
    may_reclaim: bool
    #: The assignment is older than a hand-off may take.
    hand_off_overdue: bool
    #: The assignment is old enough to count an earlier reclaim as a success.
    stable: bool
    #: The connection is active, and its newest version has the same endpoint and app as this one.
    same_app_instance: bool
    #: The socket of the connection's newest version is open.
    successor_connected: bool
    #: Calls that have not ended are pinned to this version.
    has_calls: bool
    #: A superseded version has had enough time for its calls to end.
    drain_overdue: bool
    #: Another socket of its app instance goes before it: not opened, and kept while it is open.
    waits: bool = False

    @property
    def is_open(self) -> bool:
        """True if it was open when its listener last reported."""
        return self.status.state == "connected"

    @property
    def is_failing(self) -> bool:
        """True if it cannot be opened."""
        return bool(self.status.error) and self.status.state in {"connecting", "unassigned"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One socket, assigned under a new epoch."""

    socket: EventSocket
    listener: str
    #: The listener that keeps the socket open until the new one has opened it; None when no listener has it open.
    previous: str | None = None
    previous_epoch: int | None = None
    #: The move takes the app back from a competing client.
    is_reclaim: bool = False


_STATUS_COLUMNS = tuple(field.name for field in fields(SocketStatus))


class SocketRows:
    """Reads and writes event sockets. Every method raises DatabaseUnavailable when Postgres is away.

    Args:
        drain_seconds: How long the calls of a removed configuration may go on.
        reclaim_seconds: How long a competing client keeps the app before it is reclaimed.
        quarantine_seconds: How long a quarantine lasts.
    """

    def __init__(
        self, db: database.Database, *, drain_seconds: float, reclaim_seconds: float, quarantine_seconds: float
    ) -> None:
        self._db = db
        self._bounds = {"drain": drain_seconds, "reclaim": reclaim_seconds, "quarantine": quarantine_seconds}

    def wanted(self) -> list[EventSocket]:
        """Return every socket that is not retired: current versions, and superseded ones with calls."""
        with self._db.connection() as connection:
            return [_event_socket(row) for row in connection.execute(_WANTED, self._bounds).fetchall()]

    def fingerprint(self) -> str:
        """Return what is another text when anything has changed by which sockets are assigned."""
        with self._db.connection() as connection:
            return database.fingerprint(connection, _DECISIVE, self._bounds)

    def move(self, moves: Sequence[Move]) -> dict[ConnectionVersion, EventSocket]:
        """Assign sockets under their next epoch.

        Returns:
            The sockets that were moved, as they are now. A socket is left out when its epoch is no longer the one that
            was read.
        """
        values = [
            _identity(move.socket)
            | {
                "listener": move.listener,
                "previous": move.previous,
                "previous_epoch": move.previous_epoch,
                "reclaims": int(move.is_reclaim),
            }
            for move in moves
        ]
        rows: list[database.Row] = []
        for batch in _batches(values):
            with self._db.connection() as connection:
                rows += connection.execute(_MOVE, {"moves": json.dumps(batch)}).fetchall()
        before = {move.socket.connection: move.socket for move in moves}
        changes = {_connection_version(row): row for row in rows}
        return {moved: replace(before[moved], **change) for moved, change in changes.items()}

    def write_statuses(
        self, statuses: Mapping[ConnectionVersion, SocketStatus]
    ) -> dict[ConnectionVersion, SocketStatus]:
        """Write the statuses that have changed. Returns them as they are now."""
        rows = [
            asdict(status) | {"connection_id": connection.connection_id, "version": connection.number}
            for connection, status in statuses.items()
        ]
        written: list[database.Row] = []
        for batch in _batches(rows):
            with self._db.connection() as connection:
                written += connection.execute(_WRITE_STATUS, {"statuses": json.dumps(batch, default=str)}).fetchall()
        return {_connection_version(row): SocketStatus(**row) for row in written}

    def adopt(self, socket: EventSocket, listener: str, epoch: int) -> EventSocket:
        """Adopt an epoch that a listener reports and that is higher than Postgres's, which was restored from a backup.

        Returns:
            The socket as it is now.
        """
        self._write(_ADOPT, socket, listener=listener, reported_epoch=epoch)
        return replace(socket, listener_id=listener, epoch=epoch, previous_listener_id=None, previous_epoch=None)

    def retire(self, socket: EventSocket) -> bool:
        """Mark a socket as not wanted any more; return False if its version serves new calls again."""
        return self._write(_RETIRE, socket)

    def mark_preempted(self, socket: EventSocket) -> EventSocket:
        """Write that a competing client has had the app from now on. Returns the socket as it is now.

        A preempted socket must not be moved: that would take the app back at once, uncounted.
        """
        self._write(_MARK_PREEMPTED, socket)
        return replace(socket, preempted=True)

    def park(self, socket: EventSocket, reason: str) -> EventSocket:
        """Assign the socket to no listener until an operator unparks it. Returns the socket as it is now."""
        self._write(_PARK, socket, reason=reason)
        return replace(socket, parked=True, listener_id=None, previous_listener_id=None, previous_epoch=None)

    def quarantine(self, connection: ConnectionVersion, reason: str) -> bool:
        """Assign the socket to no listener while the quarantine lasts; return False if it is parked or retired."""
        values = {"connection_id": connection.connection_id, "version": connection.number, "reason": reason}
        with self._db.connection() as db:
            return db.execute(_QUARANTINE, values).rowcount > 0

    def end_quarantine(self, socket: EventSocket) -> EventSocket:
        """Let the socket be assigned again. Returns the socket as it is now."""
        self._write(_END_QUARANTINE, socket)
        return replace(socket, parked=False, quarantine_over=False)

    def count_notes(self, connection: ConnectionVersion, name: str) -> int:
        """Return how many notes of this name the connection got within the time of a quarantine."""
        values = self._bounds | {"connection_id": connection.connection_id, "name": name}
        with self._db.connection() as db:
            row = db.execute(_COUNT_NOTES, values).fetchone()
        assert row is not None
        return int(row["notes"])

    def clear_reclaims(self, socket: EventSocket) -> None:
        """Count the next preemption as the first."""
        self._write(_CLEAR_RECLAIMS, socket)

    def release_previous(self, socket: EventSocket) -> EventSocket:
        """End a hand-off: the previous listener closes its socket. Returns the socket as it is now."""
        self._write(_RELEASE_PREVIOUS, socket)
        return replace(socket, previous_listener_id=None, previous_epoch=None)

    def _write(self, statement: str, socket: EventSocket, **more: object) -> bool:
        with self._db.connection() as connection:
            return connection.execute(statement, _identity(socket) | more).rowcount > 0


def assignment_of(socket: EventSocket, epoch: int, *, draining: bool = False) -> Assignment:
    """Return the assignment to write for a listener."""
    return Assignment(
        connection_id=socket.connection.connection_id,
        version=socket.connection.number,
        organization_id=socket.organization_id,
        epoch=epoch,
        endpoint=socket.endpoint,
        app=socket.app,
        user=socket.ari_user,
        sealed_password=socket.sealed_password,
        ca_bundle=socket.ca_bundle,
        # A version is never changed once written: it is its own fingerprint.
        fingerprint=str(socket.connection),
        draining=draining,
    )


def _batches(rows: Sequence[dict[str, object]]) -> Iterator[Sequence[dict[str, object]]]:
    """Yield the rows a thousand at a time: thousands in one statement could take longer than a statement may."""
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def _event_socket(row: database.Row) -> EventSocket:
    status = SocketStatus(**{name: row.pop(name) for name in _STATUS_COLUMNS})
    return EventSocket(connection=_connection_version(row), status=status, **row)


def _connection_version(row: database.Row) -> ConnectionVersion:
    """Take the two columns that identify a connection version out of a row."""
    return ConnectionVersion(row.pop("connection_id"), row.pop("version"))


def _identity(socket: EventSocket) -> dict[str, object]:
    """Return the parameters that identify a row, with the epoch that fences the write."""
    connection = socket.connection
    return {"connection_id": connection.connection_id, "version": connection.number, "epoch": socket.epoch}
