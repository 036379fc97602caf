"""A leg of the platform's that was not answered: two events tell of it, and the one that tells more wins.

In either order, whenever the platform writes which channel it has called, and if workers take them up a while apart.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from shared.asterisk import events
from shared.asterisk.events import EventType
from shared.call.states import Outcome
from tests.support.leg_scenes import HERE, Scene, event

#: Dial status, the cause of the end, and how the dialling came out (measured, 22.10).
ENDS = [
    ("BUSY", 0, (Outcome.BUSY, "busy")),
    ("BUSY", 17, (Outcome.BUSY, "busy")),
    ("NOANSWER", 19, (Outcome.NO_ANSWER, "not answered")),
    ("NOANSWER", 0, (Outcome.NO_ANSWER, "not answered")),
    ("CANCEL", 0, (Outcome.NO_ANSWER, "not answered")),
    ("CANCEL", 16, (Outcome.NO_ANSWER, "not answered")),
    ("NOANSWER", 21, (Outcome.FAILED, "rejected")),
    ("CONGESTION", 0, (Outcome.FAILED, "congestion")),
    ("CHANUNAVAIL", 1, (Outcome.FAILED, "unallocated number")),
    # Neither tells more than the other.
    ("CHANUNAVAIL", 20, (Outcome.FAILED, "not reached")),
]
#: Seconds between the two events, and from the first of them until the platform has written the channel.
APART = (0.0, 0.0005, 0.02, 0.15, 0.3)
WRITTEN_AFTER = (0.0, 0.0004, 0.02, 0.09, 0.11, 0.31, 0.5, 0.75, 1.6, 3.1, 7.9)


def came_to(first: Callable[[Scene], None], second: Callable[[Scene], None], *, apart: float, written: float) -> object:
    """Play both events in virtual time; return how the run was ended, once for all."""
    scene = Scene()
    ended: list[Any] = []
    queue: list[tuple[float, int, Callable[[], None]]] = []
    numbers = itertools.count()

    def after(moment: float, do: Callable[[], None]) -> None:
        heapq.heappush(queue, (moment, next(numbers), do))

    after(0.0, lambda: first(scene))
    after(apart, lambda: second(scene))
    while queue:
        now, _, do = heapq.heappop(queue)
        scene.has_run = now >= written and not ended
        outcomes = len(scene.outcomes)
        do()
        if scene.has_run:
            ended += scene.outcomes[outcomes:]
        for message, wait in scene.later:
            again = events.decode(message.kwargs["event"])
            looks = message.kwargs["looks"]
            look = functools.partial(scene.events.leg_unanswered, connection=HERE, event=again, looks=looks)
            after(now + wait.total_seconds(), look)
        scene.later.clear()
    (outcome,) = ended
    result, reason, _cause = outcome
    return result, reason.partition(",")[0]


@pytest.mark.parametrize(("status", "cause", "outcome"), ENDS)
def test_the_event_that_tells_more_ends_the_run_in_any_order_and_at_any_delay_of_the_platform_s_write(
    status: str, cause: int, outcome: tuple[Outcome, str]
) -> None:
    def dial(scene: Scene) -> None:
        scene.events.dial_ended(connection=HERE, event=event(EventType.DIAL, dial_status=status))

    def end(scene: Scene) -> None:
        scene.events.leg_ended(connection=HERE, event=event(EventType.CHANNEL_DESTROYED, cause=cause))

    for (first, second), apart, written in itertools.product([(dial, end), (end, dial)], APART, WRITTEN_AFTER):
        assert came_to(first, second, apart=apart, written=written) == outcome, (apart, written)
