"""The ladder of a call: Asterisk, listener, queue, worker and agent, and what passed between them. Pure.

Each rung is an event, a message, a request with its answer, or a gap: a time in which nothing passed, which names the
part that owed the next message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from shared.operator import stories, waits
from shared.operator.call_queries import TimelineRow
from shared.operator.stories import CallStory, duration
from shared.operator.waits import Part, Wait

#: From left to right.
LANES = (Part.ASTERISK, Part.LISTENER, Part.QUEUE, Part.WORKER, Part.AGENT)


class Kind(StrEnum):
    """What a rung is."""

    EVENT = "event"
    MESSAGE = "message"
    REQUEST = "request"
    ANSWER = "answer"
    #: A worker or the scheduler stored something: nothing passed.
    FACT = "fact"
    GAP = "gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One line of the ladder: from one lane to another, or on one lane where both are the same."""

    kind: Kind
    at: datetime
    source: Part
    target: Part
    text: str
    #: Of a gap, and of a request until its answer; else 0.
    seconds: float = 0.0
    #: True for a request that was not carried out, and for what tells of a failure.
    is_bad: bool = False
    row: TimelineRow | None = None


#: Facts that an event of Asterisk brings, by what happened.
_EVENTS = {
    "CallReceived": "the caller's leg entered Stasis",
    "CallRecorded": "a leg ended that no call knew",
    "MediaReady": "the media leg entered Stasis: the agent has accepted it",
    "MediaGone": "the media leg ended",
    "CallerHangingUp": "a hang-up of the caller's leg was requested",
    "CallerLeft": "the caller's leg left Stasis",
    "CallerGone": "the caller's leg is gone",
    "Dialled": "how the dialling came out",
    "FarEndAnswered": "the far end has answered",
    "LegReplaced": "another channel has taken a leg's place",
    "DestinationGone": "the leg that the caller was transferred to is gone",
}
_BAD = ("MediaGone", "LegsUnknown", "LegsRefused", "JoinRefused", "BridgeLost", "DeadlinePassed", "WorkerDied",
        "claim broken", "DialUnsent", "DialLost", "OriginateRefused", "RemovalPending", "Refused")  # fmt: skip
#: What the scheduler writes is told by the queue's side: it orders the step again.
_SCHEDULED = ("DeadlinePassed", "WorkerDied", "claim broken")


def rungs(story: CallStory) -> tuple[Rung, ...]:
    """Return the rungs of a call, ordered by time. Each wait of 100 ms or longer that no request fills is a gap."""
    # Where messages are told of, each event has one: the facts that it led to are the worker's.
    has_messages = any(stories.message_begun(row) is not None for row in story.rows)
    found = [*(rung for row in story.rows for rung in _of_row(row, has_messages=has_messages))]
    found += map(_gap, _gaps(story))
    return tuple(sorted(found, key=_order))


def _order(rung: Rung) -> tuple[datetime, bool]:
    """A gap stands before the rung that ended it."""
    is_gap = rung.kind is Kind.GAP
    return rung.at + timedelta(seconds=rung.seconds) if is_gap else rung.at, not is_gap


def _gaps(story: CallStory) -> Iterator[Wait]:
    """Yield the waits that no request fills."""
    for wait in waits.waits(story):
        if wait.before is None or wait.before.kind != "request" or wait.after is not wait.before:
            yield wait


def _gap(wait: Wait) -> Rung:
    lane = wait.debt.part if wait.debt.part in LANES else Part.ASTERISK
    text = f"{duration(wait.seconds)}: {wait.debt.what}"
    if wait.debt.part is not Part.PARTIES:
        text = f"{duration(wait.seconds)}: {wait.debt.part.named} owes the next message: {wait.debt.what}"
    return Rung(kind=Kind.GAP, at=wait.begun_at, source=lane, target=lane, text=text, seconds=wait.seconds,
                is_bad=wait.debt.part is not Part.PARTIES, row=wait.before)  # fmt: skip


def _of_row(row: TimelineRow, *, has_messages: bool) -> Iterator[Rung]:
    if row.kind == "request":
        yield from _request(row)
        return
    if (message := stories.message_begun(row)) is not None:
        yield from _message(row, message)
        return
    text, is_bad = _text(row), row.kind in ("dead-letter", "refusal") or row.name.endswith("gave up")
    is_bad = is_bad or row.name in _BAD
    lane = Part.QUEUE if row.name in _SCHEDULED else Part.WORKER
    is_event = row.name in _EVENTS and not has_messages
    source, kind = (Part.ASTERISK, Kind.EVENT) if is_event else (lane, Kind.FACT)
    yield Rung(kind=kind, at=row.at, source=source, target=lane, text=text, is_bad=is_bad, row=row)


def _message(row: TimelineRow, message: stories.Message) -> Iterator[Rung]:
    """Return an event with the message that told it, or the message of a command."""
    told = message.told
    name = f"{told.actor}, try {told.tries + 1}" if told.tries else told.actor
    if message.is_of_event:
        yield Rung(kind=Kind.EVENT, at=message.came_at, source=Part.ASTERISK, target=Part.LISTENER,
                   text=told.about, row=row)  # fmt: skip
        yield Rung(kind=Kind.MESSAGE, at=message.pushed_at, source=Part.LISTENER, target=Part.QUEUE,
                   text=name, row=row)  # fmt: skip
    yield Rung(kind=Kind.MESSAGE, at=message.begun_at, source=Part.QUEUE, target=Part.WORKER, text=name, row=row)


def _request(row: TimelineRow) -> Iterator[Rung]:
    is_bad = not stories.is_done(row) and not row.detail.startswith("404")
    seconds = (row.took_ms or 0.0) / 1000
    yield Rung(kind=Kind.REQUEST, at=row.at, source=Part.WORKER, target=Part.ASTERISK, text=row.name,
               seconds=seconds, is_bad=is_bad, row=row)  # fmt: skip
    answered, answer = stories.ends_at(row), row.detail.partition("\n")[0] or "answered"
    yield Rung(kind=Kind.ANSWER, at=answered, source=Part.ASTERISK, target=Part.WORKER,
               text=f"{answer} after {duration(seconds)}", is_bad=is_bad, row=row)  # fmt: skip
    if waits.is_media_request(row) and stories.is_done(row):
        yield Rung(kind=Kind.MESSAGE, at=answered, source=Part.ASTERISK, target=Part.AGENT,
                   text="Asterisk connects the media leg", row=row)  # fmt: skip


def _text(row: TimelineRow) -> str:
    said = _EVENTS.get(row.name)
    name = f"{row.name}: {said}" if said else row.name
    if row.state_to is None:
        return name
    return f"{name} ({row.state_from} → {row.state_to})" if row.state_from else f"{name} (→ {row.state_to})"
