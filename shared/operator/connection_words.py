"""How a connection stands, in plain words, and what was noted about it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import redis

from shared import errors, keys, redaction
from shared.operator.call_queries import TimelineRow
from shared.operator.connection_list import ListedConnection
from shared.storage import app_holders, database

#: A listener without a heartbeat for this time counts as lost.
_SILENT_MS = 5000
#: Notes of one connection that are shown.
_NOTES = 100


class Tone(StrEnum):
    """How a connection stands."""

    GOOD = "good"
    #: It waits, or an operator has ordered it so.
    FAIR = "fair"
    BAD = "bad"


#: State of an event socket → how it stands, in plain words.
_SOCKETS: dict[str, tuple[Tone, str]] = {
    "connected": (Tone.GOOD, "Connected: events flow"),
    "connecting": (Tone.BAD, "Not connected: the listener tries again"),
    "replaced": (Tone.BAD, "Another ARI client has taken the Stasis app over"),
    "parked": (Tone.FAIR, "Parked: no event socket is opened"),
    "quarantined": (Tone.BAD, "Quarantined: reading its events has stopped listeners"),
    "unassigned": (Tone.BAD, "No listener has it"),
    app_holders.OCCUPIED: (Tone.BAD, "Another process has the app: no socket is opened"),
}


def status(listed: ListedConnection) -> tuple[Tone, str]:
    """Return how a connection stands, in one sentence. What an operator has ordered comes first, then what is wrong."""
    return next(_sentences(listed))


def _sentences(listed: ListedConnection) -> Iterator[tuple[Tone, str]]:
    """Yield what is to be said of a connection, the most important first."""
    reason = f" ({listed.suspension_reason})" if listed.suspension_reason else ""
    if listed.state == "removed":
        yield Tone.FAIR, "Removed: its calls in progress go on"
    if listed.state == "refused":
        yield Tone.BAD, f"Refused: {listed.problem or 'its configuration cannot be used'}"
    if listed.suspension == "drain":
        yield Tone.FAIR, f"Drained: it takes no new calls{reason}"
    if listed.suspension == "park":
        yield Tone.FAIR, f"Parked by an operator: no event socket is opened{reason}"
    if listed.superseded:
        yield Tone.FAIR, "Superseded by a newer version of its configuration: its calls in progress go on"
    unknown = Tone.BAD, f"The event socket is {listed.socket_state or 'none'}"
    tone, words = _SOCKETS.get(listed.socket_state or "", unknown)
    if listed.problem and tone is Tone.GOOD:
        yield Tone.BAD, f"Events flow, but requests do not get through: {listed.problem}"
    yield tone, words + (f": {listed.problem}" if listed.problem else "")


def successors(client: redis.Redis, listed: ListedConnection) -> list[str]:
    """Return the listeners that live, besides the one that has the event socket. Raises QueueUnavailable."""
    try:
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.zrange(keys.LISTENERS, 0, -1, withscores=True)
        (seconds, micros), beats = pipe.execute()
    except redis.RedisError as exc:
        raise errors.QueueUnavailable(redaction.redact(f"Redis: {type(exc).__name__}: {exc}")) from exc
    since = seconds * 1000 + micros / 1000 - _SILENT_MS
    live = [name.decode() if isinstance(name, bytes) else str(name) for name, beat in beats if beat >= since]
    return [name for name in live if name != listed.listener]


_TIMELINE = """
SELECT at, kind, name, state_from, state_to, attempt, took_ms, who, detail FROM ari.timeline
WHERE connection_id = %s AND call_id IS NULL ORDER BY id DESC LIMIT %s
"""


def notes(db: database.Database, connection_id: int) -> list[TimelineRow]:
    """Return what was noted about a connection itself, the newest first."""
    with db.connection() as connection:
        rows = connection.execute(_TIMELINE, [connection_id, _NOTES]).fetchall()
    return [TimelineRow(**row) for row in rows]
