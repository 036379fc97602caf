"""The timeline: what happened to a call or a connection, who did it, how long it took and why. Rows of ari.timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shared.call import facts
from shared.call.calls import Change
from shared.call.states import State

#: The note for a leg that became no call: its connection has had too many.
TOO_MANY_CALLS = "TooManyCalls"
#: The facts that a teardown repeats while its Asterisk gives no answer. Each raises the call's `step_retries`.
_REPEATED = (facts.DeadlinePassed, facts.RemovalPending)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """A row that is no transition: a request, a refusal, an observation, a dead letter."""

    kind: Literal["request", "refusal", "note", "dead-letter"]
    name: str
    detail: str = ""
    at: datetime | None = None
    took_ms: float | None = None
    attempt: int | None = None


def tries(change: Change) -> int:
    """Return how often a teardown was tried before, when a change is another try that came to nothing; else 0."""
    is_repeated = change.before.state is change.after.state is State.ENDING and isinstance(change.fact, _REPEATED)
    # Each try has a deadline that passed and a removal that stayed pending.
    return change.after.step_retries // 2 if is_repeated else 0


def worth_writing(
    entries: Sequence[TimelineEntry], changes: Sequence[Change]
) -> tuple[Sequence[TimelineEntry], Sequence[Change]]:
    """Return what of a write goes into the timeline.

    Repetition is counted, and written each time that its count has doubled: a teardown that is tried for days writes
    few rows. Requests are written with its first tries only: later on the reason names those that failed.
    """
    if any(tries(change) < 2 for change in changes):
        return entries, changes
    return (), [change for change in changes if tries(change).bit_count() == 1]
