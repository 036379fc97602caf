"""A call as its operator reads it: its history, and what happened on its connection meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from shared.operator import call_queries
from shared.operator.call_queries import CallHistory, ListedCall, TimelineRow
from shared.storage import database
from shared.storage.timeline import MESSAGE_BEGUN, MessageBegun

#: The most notes of a connection that are read: some from before the call's first row, the others from its time.
_NOTES_BEFORE = 20
_NOTES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketSeen:
    """The event socket of a call's connection, as its row shows it now."""

    state: str = ""
    since: datetime | None = None
    past_error: str = ""
    past_error_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStory:
    """What is known of one call."""

    history: CallHistory
    #: The timeline of its connection while the call was up and shortly before, ordered by time.
    notes: tuple[TimelineRow, ...] = ()
    socket: SocketSeen = SocketSeen()

    @property
    def call(self) -> ListedCall:
        """The call, as its row was read."""
        return self.history.call

    @property
    def rows(self) -> tuple[TimelineRow, ...]:
        """The call's timeline, ordered by time."""
        return self.history.timeline

    @property
    def begun_at(self) -> datetime:
        """When the call came, or was requested."""
        return min([self.call.received_at, *(row.at for row in self.rows[:1])])

    @property
    def until(self) -> datetime:
        """When it had ended; when it was read, while it has not."""
        return self.call.ended_at or self.call.read_at

    @property
    def setup_seconds(self) -> float | None:
        """Seconds from its event to connected: what the caller has waited. None if it was never connected."""
        connected = self.call.connected_at
        return None if connected is None else (connected - self.begun_at).total_seconds()

    @property
    def attempts(self) -> int:
        """How many attempts at a media leg it has made."""
        return len(self.history.attempts)

    def named(self, *names: str) -> tuple[TimelineRow, ...]:
        """Return its rows of these names."""
        return tuple(row for row in self.rows if row.name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message that changed the call."""

    told: MessageBegun
    #: When the event was received, or the message was ordered; the first moment that is known.
    came_at: datetime
    pushed_at: datetime
    #: From then on it waited for a worker.
    due_at: datetime
    begun_at: datetime

    @property
    def is_of_event(self) -> bool:
        """True if a listener pushed it."""
        return bool(self.told.about)


def message_begun(row: TimelineRow) -> Message | None:
    """Return the message that a row tells of; None for any other row."""
    told = MessageBegun.parse(row.detail) if row.name == MESSAGE_BEGUN else None
    if told is None:
        return None
    pushed_ms = told.pushed_ms or 0.0
    due_ms = min(told.begun_ms, max(pushed_ms, told.due_ms or 0.0))
    pushed, due, begun = (row.at + timedelta(milliseconds=each) for each in (pushed_ms, due_ms, told.begun_ms))
    return Message(told=told, came_at=row.at, pushed_at=pushed, due_at=due, begun_at=begun)


def ends_at(row: TimelineRow) -> datetime:
    """Return when a request was answered; when any other row was written."""
    return row.at if row.took_ms is None else row.at + timedelta(milliseconds=row.took_ms)


def is_done(row: TimelineRow) -> bool:
    """True for a request that was answered with a 2xx."""
    return row.kind == "request" and row.detail.startswith("2")


def fields(row: TimelineRow) -> Mapping[str, str]:
    """Return the fields of a fact, as its detail tells them: `hangup_cause=16, …`. A reason ends at its first comma."""
    return dict(part.split("=", 1) for part in row.detail.split(", ") if "=" in part)


def duration(seconds: float) -> str:
    """Return a duration in words: `250 ms`, `5.1 s`, `2 min 3 s`, `4 h 0 min`."""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


#: One sequence numbers all rows: what a connection noted while a call was up lies between the call's rows. Both
#: branches are read from the index of the connection's rows.
_NOTED = """
WITH of_call AS (SELECT min(id) AS first, max(id) AS last FROM ari.timeline WHERE call_id = %(call)s)
(SELECT id, at, kind, name, state_from, state_to, attempt, took_ms, who, detail FROM ari.timeline
 WHERE connection_id = %(connection)s AND call_id IS NULL AND id < (SELECT first FROM of_call)
 ORDER BY id DESC LIMIT %(before)s)
UNION ALL
(SELECT id, at, kind, name, state_from, state_to, attempt, took_ms, who, detail FROM ari.timeline
 WHERE connection_id = %(connection)s AND call_id IS NULL AND id > (SELECT first FROM of_call)
   AND id < (SELECT last FROM of_call) ORDER BY id LIMIT %(most)s)
ORDER BY id
"""
_SOCKET = """
SELECT socket_state AS state, socket_since AS since, past_error, past_error_at
FROM ari.connection_versions WHERE connection_id = %s AND version = %s
"""


def get(db: database.Database, call_id: UUID) -> CallStory:
    """Return the story of a call. Raises PermanentError if there is none of this id."""
    history = call_queries.get(db, call_id)
    values = {"call": call_id, "connection": history.call.connection_id, "before": _NOTES_BEFORE, "most": _NOTES}
    with db.connection() as connection:
        noted = connection.execute(_NOTED, values).fetchall()
        socket = connection.execute(_SOCKET, [history.call.connection_id, history.connection_version]).fetchone()
    for row in noted:
        del row["id"]
    seen = {name: value for name, value in (socket or {}).items() if value is not None}
    return CallStory(history=history, notes=tuple(TimelineRow(**row) for row in noted), socket=SocketSeen(**seen))
