"""`arictl top` fits a terminal of 80 columns and 24 lines, whatever it has to show."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from arictl import top
from shared import messages
from shared.call.states import Fault, Outcome, State
from shared.operator.overview_sample import Calls, Queue, Sample, Traffic

MANY = 123_456
CALLS = Calls(
    live=dict.fromkeys(map(str, State), MANY),
    received_per_second=1234.56,
    looked_at=20_000,
    connected=20_000,
    setup_p50=0.1234,
    setup_p95=12.34,
    setup_p99=2345.6,
    outcomes=dict.fromkeys(map(str, Outcome), MANY),
    faults=dict.fromkeys(map(str, Fault), MANY),
    connections=dict.fromkeys(
        ("connected", "connecting", "unassigned", "parked", "quarantined", "occupied", "x"), MANY
    ),
    leader="scheduler-of-a-host-with-a-long-name.example.com-12345/abcdef",
    overdue=MANY,
)
TRAFFIC = Traffic(
    queues=tuple(
        Queue(name=name, waiting=MANY, delayed=MANY, in_flight=MANY, oldest_seconds=98_765.4)
        for name in messages.QUEUES
    ),
    dead_letters=100_000,
    dead_letters_dropped=MANY,
    listeners=tuple(map(str, range(100))),
    workers=tuple(map(str, range(1000))),
    oldest_work_seconds=1234.5,
)


def shown(
    *, calls: Calls | None = CALLS, traffic: Traffic | None = TRAFFIC, missing: tuple[str, ...] = ()
) -> list[str]:
    sample = Sample(at=datetime.now(UTC), took_seconds=0.1, calls=calls, traffic=traffic, missing=missing)
    console = Console(width=80, height=24, file=io.StringIO(), record=True)
    console.print(top.picture(sample))
    return console.export_text().splitlines()


@pytest.mark.parametrize(
    "lines",
    [
        shown(),
        shown(calls=None, missing=("Postgres cannot be reached: " + "x" * 500,)),
        shown(traffic=None, missing=("Redis: " + "x" * 500,)),
        shown(calls=None, traffic=None, missing=("Postgres", "Redis\x1b[2J[red]")),
    ],
    ids=["everything", "without-postgres", "without-redis", "nothing"],
)
def test_it_fits(lines: list[str]) -> None:
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_what_is_wrong_stands_first() -> None:
    lines = shown(calls=None, missing=("Postgres cannot be reached",))
    assert lines[1].strip() == "Postgres cannot be reached"
    assert any("teardown" in line for line in lines)
    assert "\x1b[2J" not in "".join(shown(calls=None, traffic=None, missing=("\x1b[2J",)))
