"""What the tables say: the calls and runs of the organizations that are judged, and dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import rows

#: The judge changes nothing, even if it is wrong, and waits for no server for long.
_OPTIONS = "-c default_transaction_read_only=on -c statement_timeout=5000 -c timezone=UTC"
_CALLS = """
    SELECT replace(call_id::text, '-', '') AS call_id, organization_id, channel_id, direction, state, outcome, reason,
           workflow_id, workflow_run_id, request_id, extract(epoch FROM received_at)::float AS received_at,
           extract(epoch FROM connected_at)::float AS connected_at, extract(epoch FROM ending_at)::float AS ending_at,
           extract(epoch FROM ended_at)::float AS ended_at
      FROM ari.calls WHERE organization_id = ANY(%s) ORDER BY received_at
"""
_RUNS = """
    SELECT r.id, w.organization_id, r.gathered_context ->> 'call_id' AS channel_id, r.is_completed,
           r.gathered_context ->> 'call_disposition' AS disposition
      FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id WHERE w.organization_id = ANY(%s) ORDER BY r.id
"""
_LETTERS = """
    SELECT extract(epoch FROM at)::float AS at, replace(call_id::text, '-', '') AS call_id, name, detail
      FROM ari.timeline WHERE kind = 'dead-letter' ORDER BY id
"""
_STORY = """
    SELECT to_char(at, 'HH24:MI:SS.MS') AS at, kind, name, state_from, state_to, attempt, took_ms, who, detail
      FROM ari.timeline WHERE call_id = %s::uuid ORDER BY id
"""
_SAMPLE = """
    WITH states AS (SELECT state, count(*) AS calls FROM ari.calls WHERE organization_id = ANY(%(ours)s) GROUP BY 1)
    SELECT (SELECT coalesce(json_object_agg(state, calls), '{}') FROM states) AS calls,
           (SELECT count(*) FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id
             WHERE w.organization_id = ANY(%(ours)s) AND r.is_completed IS NOT TRUE) AS open_runs,
           (SELECT count(*) FROM ari.timeline WHERE kind = 'dead-letter') AS dead_letters
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """A row of ari.calls. Times are unix seconds by Postgres's clock."""

    call_id: str
    organization_id: int
    channel_id: str
    direction: str
    state: str
    received_at: float
    outcome: str | None = None
    reason: str | None = None
    workflow_id: int | None = None
    workflow_run_id: int | None = None
    request_id: str | None = None
    connected_at: float | None = None
    ending_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A row of workflow_runs, with the channel and the disposition that its gathered context names."""

    id: int
    organization_id: int
    channel_id: str | None
    is_completed: bool
    disposition: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that failed permanently."""

    at: float
    call_id: str | None
    name: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables at one moment."""

    calls: Sequence[CallRow] = ()
    runs: Sequence[RunRow] = ()
    dead_letters: Sequence[DeadLetter] = ()


@dataclass(slots=True, kw_only=True)
class Database:
    """Reads the tables. A connection that broke is made anew by the next reading.

    Every method raises psycopg.Error when Postgres cannot be asked.
    """

    url: str
    organizations: Sequence[int]
    _connection: psycopg.Connection[dict[str, Any]] | None = field(default=None, init=False)

    def read(self) -> Tables:
        """Return all rows, of one snapshot."""
        connection = self._connected()
        ours = [list(self.organizations)]
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            return Tables(
                calls=[CallRow(**row) for row in connection.execute(_CALLS, ours)],
                runs=[RunRow(**row) for row in connection.execute(_RUNS, ours)],
                dead_letters=[DeadLetter(**row) for row in connection.execute(_LETTERS)],
            )

    def sample(self) -> dict[str, Any]:
        """Return the numbers of calls by state, of open runs and of dead letters."""
        row = self._connected().execute(_SAMPLE, {"ours": list(self.organizations)}).fetchone()
        assert row is not None
        return row

    def story(self, call_id: str) -> list[str]:
        """Return the timeline of a call, a line of text for each row."""
        return [_told(row) for row in self._connected().execute(_STORY, [call_id])]

    def _connected(self) -> psycopg.Connection[dict[str, Any]]:
        if self._connection is None or self._connection.broken or self._connection.closed:
            self._connection = psycopg.connect(
                self.url,
                autocommit=True,
                connect_timeout=3,
                tcp_user_timeout=5000,
                options=_OPTIONS,
                row_factory=rows.dict_row,
            )
        return self._connection


def _told(row: dict[str, Any]) -> str:
    states = f"{row['state_from'] or ''} → {row['state_to'] or ''}" if row["state_to"] else ""
    attempt = f"attempt {row['attempt']}" if row["attempt"] else ""
    took = f"{row['took_ms']:.0f} ms" if row["took_ms"] is not None else ""
    said = (row["at"], row["who"], row["kind"], row["name"], states, attempt, took, row["detail"])
    return " ".join(part for part in said if part)
