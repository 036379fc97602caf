"""The series of calls and the open breakers that the overview shows, on a real Postgres."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from shared.asterisk import circuit_breaker
from shared.call.calls import Call
from shared.call.states import Direction, State
from shared.operator import breakers, call_series
from shared.operator.call_series import STEP_SECONDS, STEPS, CallSeries, Point
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls

pytestmark = pytest.mark.services

Make = Callable[..., Call]
Received = Callable[..., datetime]


@pytest.fixture
def received(make: Make, store: PostgresCalls) -> Received:
    """Write a call that was received some steps ago, in the middle of its step; return the moment."""
    began = store.now()
    numbers = iter(range(1_000))

    def write(steps: int, setup: float | None = 0.2, outcome: str = "completed", **fields: object) -> datetime:
        seconds = began.timestamp() // STEP_SECONDS * STEP_SECONDS + STEP_SECONDS / 2 - steps * STEP_SECONDS
        at = datetime.fromtimestamp(seconds, UTC)
        connected = at + timedelta(seconds=setup) if setup is not None else None
        ended = {"state": State.ENDED, "outcome": outcome, "ending_at": at, "ended_at": at, "deadline_at": None}
        make(f"{next(numbers)}.1", received_at=at, connected_at=connected, **(ended | fields))
        return at

    return write


def at(points: tuple[Point, ...], moment: datetime) -> Point:
    """Return the point of a moment."""
    (found,) = (point for point in points if 0 <= moment.timestamp() - point.at < STEP_SECONDS)
    return found


def test_each_step_has_its_calls_and_their_set_up(db: database.Database, received: Received) -> None:
    for number in range(100):
        set_up = received(6, setup=(number + 1) / 100)
    received(12, None, "refused")
    received(12, None, "failed")
    received(12, None, "abandoned")
    # A far end that takes long to answer is no slow set-up.
    lost = received(12, 25.0, direction=Direction.OUTBOUND)
    received(STEPS + 6)
    points = CallSeries().read(db)
    assert len(points) == STEPS
    assert {later.at - earlier.at for earlier, later in itertools.pairwise(points)} == {STEP_SECONDS}
    of_setup, of_losses = at(points, set_up), at(points, lost)
    assert (of_setup.received, of_setup.not_served) == (100, 0)
    assert of_setup.p50 == pytest.approx(0.505)
    assert of_setup.p95 == pytest.approx(0.9505)
    assert of_setup.p99 == pytest.approx(0.9901)
    assert (of_losses.received, of_losses.not_served, of_losses.p50) == (4, 2, None)
    assert sum(point.received for point in points) == 104


def test_only_what_can_still_change_is_asked_for_again(db: database.Database, received: Received) -> None:
    late, early = received(2), received(30)
    series = CallSeries()
    series.read(db)
    received(2, None, "failed")
    # Nothing is received in the past: a call that is found there now shows that it was asked for.
    received(30)
    points = series.read(db)
    assert (at(points, late).received, at(points, late).not_served) == (2, 1)
    assert at(points, early).received == 1
    assert at(CallSeries().read(db), early).received == 2


def test_what_a_question_costs_has_a_bound(
    db: database.Database, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = call_series._POINTS.replace(f"LIMIT {call_series.MOST_CALLS}", "LIMIT 3")
    monkeypatch.setattr(call_series, "_POINTS", bounded)
    moments = [received(steps) for steps in (3, 3, 6, 9)]
    points = CallSeries().read(db)
    assert [at(points, moment).received for moment in moments] == [2, 2, 1, 0], "the newest count"


def test_a_breaker_is_open_until_its_worker_reports_otherwise(db: database.Database) -> None:
    def report(connection_id: int, worker: str, name: str, detail: str, age: float = 0.0) -> None:
        with db.connection() as connection:
            connection.execute(
                "INSERT INTO ari.timeline (at, connection_id, kind, name, who, detail)"
                " VALUES (clock_timestamp() - make_interval(secs => %s), %s, 'note', %s, %s, %s)",
                [age, connection_id, name, worker, detail],
            )

    opened, closed = circuit_breaker.OPENED, circuit_breaker.CLOSED
    report(1, "w1", opened, "2: no answer", 20)
    report(1, "w2", opened, "2: no answer", 20)
    report(1, "w2", closed, "2: ", 10)
    report(2, "w1", closed, "1: ", 20)
    report(2, "w1", opened, "1: refused", 10)
    report(2, "w3", opened, "1: reported long ago", breakers.SECONDS + 5)
    found = [(each.connection_id, each.worker, each.reason) for each in breakers.open_breakers(db)]
    assert found == [(1, "w1", "no answer"), (2, "w1", "refused")]
