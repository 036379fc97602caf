"""The connections, as an operator reads them: the state of each event socket, and why it is not open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from shared import errors
from shared.asterisk import circuit_breaker, rest
from shared.platform.ports import ConfigurationRow
from shared.storage import connections, database

#: For this long the last report of a worker's breaker counts: two intervals of its reports.
_BREAKER_SECONDS = 2 * circuit_breaker.REPEAT_SECONDS + circuit_breaker.LONGEST_PAUSE_SECONDS
#: The same for a request that was denied. A teardown that cannot remove a leg makes one a minute.
_DENIED_SECONDS = 2 * rest.DENIED_SECONDS + 60

#: Notes and live calls are read once for all: by the index of the timeline's age, as a connection may have any number
#: of older ones, and by that of the calls that have not ended.
_LIST = f"""
WITH breakers AS (
    SELECT connection_id, version, string_agg(who || ' (' || reason || ')', ', ' ORDER BY who) AS workers FROM (
        SELECT DISTINCT ON (connection_id, split_part(detail, ': ', 1), who) connection_id,
               split_part(detail, ': ', 1) AS version, who, name, split_part(detail, ': ', 2) AS reason
        FROM ari.timeline WHERE call_id IS NULL AND at > now() - interval '{_BREAKER_SECONDS} seconds' AND kind = 'note'
          AND name IN ('{circuit_breaker.OPENED}', '{circuit_breaker.CLOSED}')
        ORDER BY connection_id, split_part(detail, ': ', 1), who, id DESC) AS last
    WHERE name = '{circuit_breaker.OPENED}' GROUP BY connection_id, version
), denials AS (
    SELECT DISTINCT ON (connection_id, split_part(detail, ': ', 1)) connection_id,
           split_part(detail, ': ', 1) AS version, split_part(detail, ': ', 2) AS answer
    FROM ari.timeline WHERE call_id IS NULL AND at > now() - interval '{_DENIED_SECONDS} seconds' AND kind = 'note'
      AND name = '{rest.DENIED}'
    ORDER BY connection_id, split_part(detail, ': ', 1), id DESC
), live AS (
    SELECT connection_id, connection_version, count(*)::integer AS calls FROM ari.calls
    WHERE state <> 'ended' AND state <> 'ending' GROUP BY connection_id, connection_version
), live_of AS (
    SELECT connection_id, sum(calls)::integer AS calls FROM live GROUP BY connection_id
)
SELECT c.connection_id, c.organization_id, c.state, c.reason, c.suspension, c.suspension_reason, v.version,
       v.endpoint, v.app, v.socket_state, v.socket_since, v.last_event_at, v.reconnects, v.last_error, v.past_error,
       v.past_error_at, v.listener_id, v.previous_listener_id, v.parked_at, v.asked_at IS NOT NULL AS asked,
       v.superseded_at IS NOT NULL AS superseded,
       coalesce(CASE WHEN v.version IS NULL THEN o.calls ELSE l.calls END, 0) AS live,
       'circuit breaker open in ' || b.workers AS breaker,
       'requests are denied (' || d.answer || '): is the ARI user read_only?' AS denied
FROM ari.connections c
LEFT JOIN ari.connection_versions v ON v.connection_id = c.connection_id AND v.retired_at IS NULL
LEFT JOIN live l ON l.connection_id = c.connection_id AND l.connection_version = v.version
LEFT JOIN live_of o ON o.connection_id = c.connection_id
LEFT JOIN breakers b ON b.connection_id = c.connection_id AND b.version = v.version::text
LEFT JOIN denials d ON d.connection_id = c.connection_id AND d.version = v.version::text
WHERE c.state <> 'removed' OR v.version IS NOT NULL
ORDER BY c.connection_id, v.version
"""  # noqa: S608 - built from constants

_RECONCILED = "SELECT source_id FROM ari.connections WHERE state <> 'removed'"
_LEADS = "SELECT 1 FROM ari.leases WHERE name = 'scheduler' AND expires_at > clock_timestamp()"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedConnection:
    """One version of a connection."""

    connection_id: int
    organization_id: int
    #: Null if it was always refused.
    version: int | None
    #: `active`, `refused` or `removed`, by its configuration.
    state: str
    #: An older version, which serves its calls to their end.
    superseded: bool
    endpoint: str | None
    app: str | None
    #: `park` or `drain` by an operator, and why.
    suspension: str | None
    suspension_reason: str | None
    #: Of its event socket: `connected`, `connecting`, `unassigned`, `parked`, `quarantined`, `occupied`, …
    socket_state: str | None
    socket_since: datetime | None
    last_event_at: datetime | None
    reconnects: int
    live_calls: int
    listener: str | None
    #: During a hand-off: the listener that keeps the socket open until the other one has opened it.
    previous_listener: str | None
    #: What is wrong now; empty if nothing is.
    problem: str
    #: What was wrong last.
    past_problem: str
    past_problem_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionList:
    """All of them, and whether the list is current."""

    connections: tuple[ListedConnection, ...]
    #: Configurations that are not connected yet.
    waiting: int
    #: Without a leading scheduler nothing of this changes.
    scheduler_leads: bool
    #: Why the configurations cannot be read; empty if they can.
    unserved: str


class Configurations(Protocol):
    """The platform's configurations."""

    def all(self) -> Sequence[ConfigurationRow]:
        """Return them. Raises PlatformUnserved."""


def read(db: database.Database, configurations: Configurations) -> ConnectionList:
    """Return every connection that is not removed, or has calls still. Raises DatabaseUnavailable."""
    with db.connection() as connection:
        rows = connection.execute(_LIST).fetchall()
        reconciled = {row["source_id"] for row in connection.execute(_RECONCILED).fetchall()}
        leads = connection.execute(_LEADS).fetchone() is not None
    configured, unserved = set(), ""
    try:
        configured = {row.source_id for row in configurations.all()}
    except errors.PlatformUnserved as exc:
        unserved = str(exc)
    return ConnectionList(
        connections=tuple(map(_listed, rows)),
        waiting=len(configured - reconciled),
        scheduler_leads=leads,
        unserved=unserved,
    )


def _listed(row: database.Row) -> ListedConnection:
    return ListedConnection(
        connection_id=row["connection_id"],
        organization_id=row["organization_id"],
        version=row["version"],
        state=row["state"],
        superseded=row["superseded"],
        endpoint=row["endpoint"],
        app=row["app"],
        suspension=row["suspension"],
        suspension_reason=row["suspension_reason"] or None,
        socket_state=row["socket_state"],
        socket_since=row["socket_since"],
        last_event_at=row["last_event_at"],
        reconnects=row["reconnects"] or 0,
        live_calls=row["live"],
        listener=row["listener_id"],
        previous_listener=row["previous_listener_id"],
        problem=_problem(row),
        # Its first sentence: what was to be done against it stands behind that, and is over, too.
        past_problem=str(row["past_error"] or "").partition(". ")[0],
        past_problem_at=row["past_error_at"],
    )


def _problem(row: database.Row) -> str:
    suspended = connections.SUSPENDED.get(row["suspension"], "") if row["suspension"] else ""
    if suspended and row["suspension_reason"]:
        suspended = f"{suspended}: {row['suspension_reason']}"
    now = [suspended or row["reason"] or row["last_error"], row["breaker"], row["denied"]]
    if any(now):
        return "; ".join(filter(None, now))
    if row["asked"] and row["parked_at"] is None:
        return "waits for a worker to tell whether another process has the app"
    if row["socket_state"] == "unassigned" and row["listener_id"] is None:
        return "no listener assigned: none is running, or none has capacity (LISTENER_CAPACITY)"
    return ""
