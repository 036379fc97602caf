"""Who owes the next message: the waits of a call, each with the part that it waited for. Pure, from its timeline.

One walk over the timeline: each row says which part has to act next. What is between two rows is that part's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from shared.call.states import State
from shared.operator import stories
from shared.operator.call_queries import TimelineRow
from shared.operator.stories import CallStory
from shared.storage.timeline import SHORTEST_WAIT_SECONDS

#: A shorter wait is the work itself.
SHORTEST_SECONDS = SHORTEST_WAIT_SECONDS


class Part(StrEnum):
    """What a call waits for. The first five are the columns of the ladder, from left to right."""

    ASTERISK = "Asterisk"
    LISTENER = "listener"
    QUEUE = "queue"
    WORKER = "worker"
    AGENT = "voice agent"
    #: The far end of an outbound call.
    FAR_END = "far end"
    SCHEDULER = "scheduler"
    #: Caller and agent talk: no message is due.
    PARTIES = "parties"

    @property
    def named(self) -> str:
        """The part as the subject of a sentence."""
        return str(self) if self is Part.ASTERISK else f"the {self}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Debt:
    """The part that has to act next, and what it is to do."""

    part: Part
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A time in which a call waited for one part.

    Args:
        before: The row that ended the wait; None while it lasts.
        after: The row after which it began.
    """

    debt: Debt
    begun_at: datetime
    ended_at: datetime
    after: TimelineRow | None
    before: TimelineRow | None

    @property
    def seconds(self) -> float:
        return (self.ended_at - self.begun_at).total_seconds()


_PUSH = Debt(part=Part.LISTENER, what="to push the event's message")
_RETRY = Debt(part=Part.QUEUE, what="to bring a message that has failed again, after a pause")
_DELIVER = Debt(part=Part.QUEUE, what="to bring the message to a worker that is free")
#: A worker has it: from then on what it led to tells what is owed.
_BEGUN = Debt(part=Part.WORKER, what="to handle the message")
_ADMIT = Debt(part=Part.WORKER, what="to admit the call")
_CREATE_RUN = Debt(part=Part.WORKER, what="to create the run")
_ASK_FOR_MEDIA = Debt(part=Part.WORKER, what="to ask for media leg and bridge")
_CREATE = Debt(part=Part.ASTERISK, what="to create media leg and bridge")
_ACCEPT = Debt(part=Part.AGENT, what="to accept the media leg")
_PAUSE = Debt(part=Part.WORKER, what="to try again, after a pause for the agent's sake")
_JOIN = Debt(part=Part.WORKER, what="to join the legs")
_VERIFY = Debt(part=Part.WORKER, what="to verify the bridge")
_STORE = Debt(part=Part.WORKER, what="to store the result")
_TALK = Debt(part=Part.PARTIES, what="caller and agent are connected: no message is due")
_TEAR_DOWN = Debt(part=Part.WORKER, what="to remove legs and bridge")
_GONE = Debt(part=Part.ASTERISK, what="to end the legs")
_SWEEP = Debt(part=Part.SCHEDULER, what="to start the step again when its deadline has passed")
_CONTINUE = Debt(part=Part.WORKER, what="another one, to go on with the call")
_DIAL = Debt(part=Part.WORKER, what="to ask Asterisk to dial")
_DIALLING = Debt(part=Part.ASTERISK, what="to answer the request to dial")
_RING = Debt(part=Part.FAR_END, what="to answer")
_DEAD = Debt(part=Part.WORKER, what="it has died")
_LOST = Debt(part=Part.WORKER, what="to begin the step: none did in time")

#: The call has ended: what is written later, such as a dead letter, was waited for by no part.
_NOTHING = Debt(part=Part.WORKER, what="nothing is due")

_OF_STATE: dict[str, Debt] = {
    State.RECEIVED: _ADMIT,
    State.ADMITTED: _CREATE_RUN,
    State.PREPARED: _ASK_FOR_MEDIA,
    State.JOINING: _JOIN,
    State.CONNECTED: _TALK,
    State.ENDING: _TEAR_DOWN,
    State.ORIGINATING: _DIAL,
    State.RINGING: _RING,
    State.ENDED: _NOTHING,
}
#: Facts that order something else than their state does.
_OF_FACT: dict[str, Debt] = {
    "AttemptBegun": _CREATE,
    "LegsCreated": _ACCEPT,
    "LegsFound": _ACCEPT,
    "LegsUnknown": _ASK_FOR_MEDIA,
    "MediaReady": _CREATE,
    "MediaGone": _PAUSE,
    "DialBegun": _DIALLING,
    "DialUnsent": _SWEEP,
    "Originated": _RING,
    "WorkerDied": _CONTINUE,
    "claim broken": _CONTINUE,
}
_SHORTEST = timedelta(seconds=SHORTEST_SECONDS)
#: Media leg and bridge of an attempt are asked for within this time.
_BESIDE = timedelta(seconds=0.1)
_MEDIA = re.compile(r"POST /channels/externalMedia\b")
_CREATING = re.compile(r"POST /bridges/[^/]+$")
_JOINING = re.compile(r"POST /(channels/.+/answer|bridges/.+/addChannel)$")
_ENDING = re.compile(r"DELETE /(channels|bridges)/")


def waits(story: CallStory) -> tuple[Wait, ...]:
    """Return each wait of a call that lasted 100 ms or longer, in their order; of a call that is up, the one now."""
    return tuple(wait for wait in every_wait(story) if wait.seconds >= SHORTEST_SECONDS)


def every_wait(story: CallStory) -> Iterator[Wait]:
    """Yield each wait of a call, however short, in their order."""
    return (wait for wait in _all_waits(story) if wait.debt is not _NOTHING)


def is_media_request(row: TimelineRow) -> bool:
    """True for a request for a media leg."""
    return bool(_MEDIA.match(row.name))


def _all_waits(story: CallStory) -> Iterator[Wait]:
    #: What is owed by what was stored; on top of it a message that is on its way.
    owed, way = _ADMIT, None
    since, last = story.begun_at, None
    for at, row, transit in _moments(story):
        if at > since:
            yield Wait(debt=_seen_later(way or owed, row), begun_at=since, ended_at=at, after=last, before=row)
        since, last = max(since, at), row
        if transit is not None:
            way = transit if transit is not _BEGUN else None
            continue
        answered = stories.ends_at(row)
        if row.kind == "request" and answered > since:
            debt = _ACCEPT if _waits_for_leg(row, story.rows) else _answer(row)
            yield Wait(debt=debt, begun_at=since, ended_at=answered, after=row, before=row)
            since = answered
        owed = _next(owed, row, story.rows)
    if story.call.ended_at is None and story.until > since:
        yield Wait(debt=way or owed, begun_at=since, ended_at=story.until, after=last, before=None)


def _moments(story: CallStory) -> list[tuple[datetime, TimelineRow, Debt | None]]:
    """Return when something happened, with its row; of a message's row its way, and who has it from then on."""
    found: list[tuple[datetime, TimelineRow, Debt | None]] = []
    for row in story.rows:
        message = stories.message_begun(row)
        if message is None:
            found.append((row.at, row, None))
            continue
        # A command was ordered by what is owed already; an event is news of the listener's.
        found += [(message.came_at, row, _PUSH)] if message.is_of_event else []
        if message.due_at > message.pushed_at:
            found.append((message.pushed_at, row, _RETRY))
        found += [(message.due_at, row, _DELIVER), (message.begun_at, row, _BEGUN)]
    return sorted(found, key=lambda moment: moment[0])


def _waits_for_leg(row: TimelineRow, rows: Sequence[TimelineRow]) -> bool:
    """True for a request for a bridge that was answered only when the media leg, asked for beside it, had connected.

    While a media leg connects, Asterisk may let other requests wait for it (measured, 22.10).
    """
    if not _CREATING.match(row.name):
        return False
    answered = stories.ends_at(row)
    connecting = [
        stories.ends_at(each)
        for each in rows
        if is_media_request(each) and stories.is_done(each) and abs(each.at - row.at) < _BESIDE
    ]
    ready = min(_ready_at(row.at, rows), default=None)
    return bool(connecting) and ready is not None and max(connecting) + _SHORTEST <= answered < ready + _SHORTEST


def _ready_at(since: datetime, rows: Sequence[TimelineRow]) -> Iterator[datetime]:
    """Yield when a media leg was ready: when its event came, if that is told, and when a worker stored it."""
    for row in rows:
        message = stories.message_begun(row)
        if message is not None and message.told.actor == "media_leg_ready" and row.at >= since:
            yield message.came_at
        elif row.name == "MediaReady" and row.at >= since:
            yield row.at


def _answer(row: TimelineRow) -> Debt:
    return Debt(part=Part.ASTERISK, what=f"to answer {row.name.split(' ', 1)[0]} {_resource(row.name)}")


def _resource(name: str) -> str:
    """Return which kind of thing a request names, without its id."""
    parts = name.partition(" ")[2].strip("/").split("/")
    return "/".join(parts[:1] + parts[2:]) if len(parts) > 1 and parts[1] != "externalMedia" else "/".join(parts)


def _seen_later(owed: Debt, row: TimelineRow) -> Debt:
    """Return what the wait before a row was for, where only that row tells."""
    if row.name == "claim broken" and row.detail:
        return Debt(part=Part.WORKER, what=row.detail)
    if row.name == "WorkerDied":
        return _DEAD
    if row.name == "DeadlinePassed" and owed.part is Part.WORKER:
        return _LOST
    return owed


def _next(owed: Debt, row: TimelineRow, rows: Iterable[TimelineRow]) -> Debt:
    """Return which part has to act after a row."""
    if row.kind == "request":
        return _after_request(owed, row)
    if row.name.endswith(" gave up"):
        return _SWEEP
    if row.name == "RemovalPending":
        return Debt(part=Part.ASTERISK, what=f"to end the legs: {stories.fields(row).get('reason', row.detail)}")
    if row.state_to is not None:
        return _OF_STATE.get(row.state_to, owed)
    if row.name == "LegsCreated" and _is_ready(row, rows):
        return _JOIN
    return _OF_FACT.get(row.name, owed)


def _is_ready(row: TimelineRow, rows: Iterable[TimelineRow]) -> bool:
    return any(each.name == "MediaReady" and each.attempt == row.attempt and each.at <= row.at for each in rows)


def _after_request(owed: Debt, row: TimelineRow) -> Debt:
    if _MEDIA.match(row.name):
        return _ACCEPT if stories.is_done(row) else _STORE
    if _CREATING.match(row.name):
        # It is sent beside the one for the media leg.
        return owed if owed is _ACCEPT else _CREATE
    if _JOINING.match(row.name):
        return _VERIFY
    if _ENDING.match(row.name):
        return _GONE
    if owed is _VERIFY:
        return _STORE
    return owed
