"""The timeline: what happened to a call or a connection, who did it, how long it took and why. Rows of ari.timeline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from shared.call import facts
from shared.call.calls import Change
from shared.call.states import State
from shared.current_message import CurrentMessage

#: The note for a leg that became no call: its connection has had too many.
TOO_MANY_CALLS = "TooManyCalls"
#: The note for a message that changed the call: see `MessageBegun`.
MESSAGE_BEGUN = "MessageBegun"
#: The note that a call's legs have the function TALK_DETECT, those of these parties: `agent, caller`.
TALK_DETECTION = "TalkDetectionSet"
#: The notes of a call that a party has sent audio. The detail: so long after the call was connected.
HEARD = {"agent": "AgentHeard", "caller": "CallerHeard"}
#: The note of a connection that events may have been missed, which a resync made up for as far as it can.
EVENTS_MISSED = "EventsMissed"
#: A message of a command that waited for a worker for less, in seconds, has no row: what ordered it has one, and so has
#: what it led to.
SHORTEST_WAIT_SECONDS = 0.1
#: Requests with the answer that is expected, which tell nothing that the call's other rows do not: the beginning of the
#: request, and of the answer. What is to be removed is gone already; a bridge is removed; our app is read.
_EXPECTED = (("DELETE ", "404"), ("DELETE /bridges/", "2"), ("GET /applications/", "2"))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageBegun:
    """A message that changed a call: when its event was received, it was pushed, it was due, and a worker began it.

    Its row is a note whose `at` is the first of these that is known, whose `took_ms` leads to the last one, and whose
    detail is this. The moments are by Redis's clock.
    """

    actor: str
    #: After `at`, in ms; None if the message is of no event, or it is not known.
    pushed_ms: float | None = None
    #: From then on it waited for a worker: after it was pushed, or when it was to be tried. None if it is not known.
    due_ms: float | None = None
    begun_ms: float
    #: How often it had failed before.
    tries: int = 0
    #: Its event's type, and the id of the leg; empty if it is of no event.
    about: str = ""

    def detail(self) -> str:
        """Return the text of its row."""
        moments = {"pushed_ms": self.pushed_ms, "due_ms": self.due_ms, "begun_ms": self.begun_ms}
        parts = [f"{name}={value:.1f}" for name, value in moments.items() if value is not None]
        parts += [f"tries={self.tries}"] if self.tries else []
        parts += [f"about={self.about}"] if self.about else []
        return ", ".join([f"actor={self.actor}", *parts])

    @classmethod
    def parse(cls, detail: str) -> MessageBegun | None:
        """Read the detail of a row; None for a text of another form."""
        told, _, about = detail.partition(", about=")
        values = dict(re.findall(r"(\w+)=([\w.-]+)", told))
        try:
            pushed, due = (float(values[name]) if name in values else None for name in ("pushed_ms", "due_ms"))
            return cls(
                actor=values["actor"],
                pushed_ms=pushed,
                due_ms=due,
                begun_ms=float(values["begun_ms"]),
                tries=int(values.get("tries", 0)),
                about=about,
            )
        except (KeyError, ValueError):
            return None


def is_expected(request: str, answer: str) -> bool:
    """Return whether a request, such as `DELETE /bridges/…`, was answered as every such one is: it needs no row."""
    return any(request.startswith(asked) and answer.startswith(said) for asked, said in _EXPECTED)


def is_prompt(message: CurrentMessage) -> bool:
    """Return whether a message tells nothing: a command that a worker began at its first try, as soon as it was due."""
    waited = message.begun - message.came
    is_of_event = message.received is not None or message.pushed is not None or bool(message.about)
    return not is_of_event and not message.tries and waited < SHORTEST_WAIT_SECONDS


def of_message(message: CurrentMessage, *, now: datetime, monotonic: float) -> TimelineEntry:
    """Return the row of a message.

    Args:
        now: Postgres's time, at the moment `monotonic` of the process's own clock.
    """
    pushed, due = (
        None if moment is None else (moment - message.came) * 1000 for moment in (message.pushed, message.due)
    )
    began = (message.begun - message.came) * 1000
    told = MessageBegun(
        actor=message.actor, pushed_ms=pushed, due_ms=due, begun_ms=began, tries=message.tries, about=message.about
    )
    return TimelineEntry(
        kind="note",
        name=MESSAGE_BEGUN,
        detail=told.detail(),
        at=now - timedelta(seconds=monotonic - message.came),
        took_ms=round(began, 2),
    )


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
