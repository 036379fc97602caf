"""What a peer can repeat writes so many rows an hour, and then the number of those that were not written."""

from __future__ import annotations

import uuid
from dataclasses import replace

from shared import token_bucket
from shared.storage.timeline import TimelineEntry
from shared.storage.timeline_allowance import TimelineAllowance
from tests.support.calls import CONNECTED, ENDED


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def entries(count: int, name: str = "ForeignLeg") -> list[TimelineEntry]:
    return [TimelineEntry(kind="refusal", name=name, detail=f"leg {number}") for number in range(count)]


def test_so_many_of_a_kind_are_written_and_the_next_one_counts_the_others() -> None:
    clock = Clock()
    allowance = TimelineAllowance(60, clock)
    assert len(allowance.admitted(entries(100), call=None, connection_id=7)) == 60
    assert allowance.admitted(entries(5), call=None, connection_id=7) == []
    clock.now += 60
    (written,) = allowance.admitted(entries(3), call=None, connection_id=7)
    assert written.detail == "leg 0 (and 45 more like it)"
    clock.now += 3600
    written, *more = allowance.admitted(entries(100), call=None, connection_id=7)
    assert written.detail == "leg 0 (and 2 more like it)"
    assert [entry.detail for entry in more] == [f"leg {number}" for number in range(1, 60)]


def test_an_hour_of_repetition_writes_no_more_than_twice_the_allowance() -> None:
    clock, written = Clock(), 0
    allowance = TimelineAllowance(60, clock)
    once = entries(1)
    for _ in range(36_000):
        clock.now += 0.1
        written += len(allowance.admitted(once, call=None, connection_id=7))
    assert 118 <= written <= 120


def test_no_kind_takes_the_rows_of_another() -> None:
    allowance = TimelineAllowance(10, Clock())
    for connection_id, name in ((7, "ForeignLeg"), (7, "ChannelReplaced"), (8, "ForeignLeg"), (None, "act")):
        assert len(allowance.admitted(entries(20, name), call=None, connection_id=connection_id)) == 10
    for one in (CONNECTED, replace(CONNECTED, call_id=uuid.uuid4())):
        assert len(allowance.admitted(entries(20), call=one, connection_id=None)) == 10


def test_the_calls_of_a_connection_that_have_ended_are_one_kind() -> None:
    """There are ever more of them, and a peer may name each."""
    allowance = TimelineAllowance(10, Clock())
    over = [replace(ENDED, call_id=uuid.uuid4()) for _ in range(20)]
    assert sum(len(allowance.admitted(entries(1), call=one, connection_id=None)) for one in over) == 10


def test_what_is_remembered_is_bounded() -> None:
    allowance = TimelineAllowance(10, Clock())
    for connection_id in range(token_bucket._KEPT + 5):
        allowance.admitted(entries(1), call=None, connection_id=connection_id)
    assert len(allowance._buckets._buckets) == token_bucket._KEPT
