"""Calls over the last minutes, in steps: how many came, how many were not served, how long their set-up took."""

from __future__ import annotations

from dataclasses import dataclass

from shared.call.states import Direction, Outcome
from shared.storage import database

#: A step, and how many are kept.
STEP_SECONDS = 10
STEPS = 90
#: Calls of the last steps may still be connected, or end: they are asked for again.
_OPEN_STEPS = 6
#: Of the calls of a question the newest are looked at: what it costs has a bound at any load.
MOST_CALLS = 20_000

_NOT_SERVED = f"('{Outcome.REFUSED}', '{Outcome.FAILED}')"
_POINTS = f"""
SELECT floor(extract(epoch FROM received_at) / {STEP_SECONDS})::bigint AS step, count(*) AS received,
       count(*) FILTER (WHERE outcome IN {_NOT_SERVED}) AS not_served,
       percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM connected_at - received_at))
           FILTER (WHERE connected_at IS NOT NULL AND direction = '{Direction.INBOUND}') AS setup
FROM (SELECT received_at, connected_at, direction, outcome FROM ari.calls
      WHERE received_at >= to_timestamp(%s::bigint * {STEP_SECONDS})
      ORDER BY received_at DESC LIMIT {MOST_CALLS}) AS recent
GROUP BY step
"""  # noqa: S608 - built from constants
_NOW = f"SELECT floor(extract(epoch FROM clock_timestamp()) / {STEP_SECONDS})::bigint AS step"  # noqa: S608 - from constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The calls that were received within one step."""

    #: Seconds since 1970, at the step's beginning, by Postgres's clock.
    at: int
    received: int
    #: Refused or failed so far.
    not_served: int
    #: Seconds from the caller's arrival to connected; None where no call was connected.
    p50: float | None
    p95: float | None
    p99: float | None


class CallSeries:
    """The points of the last steps. Keeps what cannot change any more, so that a question is about the newest calls.

    Not thread-safe.
    """

    def __init__(self) -> None:
        #: Step → its calls; steps without calls are missing.
        self._points: dict[int, Point] = {}
        self._asked_up_to = 0

    def read(self, db: database.Database) -> tuple[Point, ...]:
        """Return the points, the oldest first; the last one is of the step that is not over yet."""
        with db.connection() as connection:
            row = connection.execute(_NOW).fetchone()
            assert row is not None
            now: int = row["step"]
            oldest = now - STEPS + 1
            since = max(oldest, min(now, self._asked_up_to) - _OPEN_STEPS)
            rows = connection.execute(_POINTS, [since]).fetchall()
        kept = {step: point for step, point in self._points.items() if oldest <= step < since}
        self._points = kept | {each["step"]: _point(each) for each in rows}
        self._asked_up_to = now
        return tuple(self._points.get(step, _nothing(step)) for step in range(oldest, now + 1))


def _point(row: database.Row) -> Point:
    p50, p95, p99 = row["setup"] or (None, None, None)
    return Point(
        at=row["step"] * STEP_SECONDS,
        received=row["received"],
        not_served=row["not_served"],
        p50=p50,
        p95=p95,
        p99=p99,
    )


def _nothing(step: int) -> Point:
    return Point(at=step * STEP_SECONDS, received=0, not_served=0, p50=None, p95=None, p99=None)
