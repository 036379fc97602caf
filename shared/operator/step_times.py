"""What the newest calls have waited for, step by step: how long, and which call waited longest."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from shared.operator import call_queries, waits
from shared.operator.stories import CallStory
from shared.operator.waits import Debt, Part
from shared.storage import database

#: The newest calls that are looked at: their timelines are read.
MOST_CALLS = 200
#: A shorter one is not told: it is the work itself.
_SHORTEST_SECONDS = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """What calls have waited for, and how long: the sum of each call."""

    #: The part that had to act, as the verdict of a call names it.
    part: str
    what: str
    #: How many calls have waited for it.
    calls: int
    #: Seconds.
    p50: float
    p95: float
    longest: float
    #: The call that has waited longest.
    example: UUID


def read(db: database.Database, within: timedelta) -> tuple[StepTime, ...]:
    """Return the steps of the newest calls received within a time, the slowest first. Raises DatabaseUnavailable."""
    return of(CallStory(history=each) for each in call_queries.newest(db, within, limit=MOST_CALLS))


def of(stories: Iterable[CallStory]) -> tuple[StepTime, ...]:
    """Return the steps of calls, the slowest first. Pure."""
    seconds: dict[Debt, dict[UUID, float]] = defaultdict(lambda: defaultdict(float))
    for story in stories:
        for wait in waits.every_wait(story):
            # While the parties talk, no message is due.
            if wait.debt.part is not Part.PARTIES:
                seconds[wait.debt][story.call.call_id] += wait.seconds
    found = (_step(debt, of_calls) for debt, of_calls in seconds.items())
    return tuple(sorted((one for one in found if one.longest >= _SHORTEST_SECONDS), key=lambda one: -one.p95))


def _step(debt: Debt, of_calls: dict[UUID, float]) -> StepTime:
    times = sorted(of_calls.values())
    return StepTime(
        part=str(debt.part),
        what=debt.what,
        calls=len(times),
        p50=statistics.median(times),
        p95=times[min(len(times) - 1, int(len(times) * 0.95))],
        longest=times[-1],
        example=max(of_calls, key=lambda call_id: of_calls[call_id]),
    )
