"""One message for the end of a leg, which Asterisk tells in up to three events; none for an event that is repeated.

A caller who hangs up sends a ChannelHangupRequest, with the cause, and some milliseconds later a StasisEnd, without it:
the request waits for the StasisEnd, and one message carries both. That of a media leg is no message
by itself, and its cause is kept for the StasisEnd, however long that takes. A media leg that is removed sends a
StasisEnd and a ChannelDestroyed, which say the same: the second one is dropped. If it was deleted, the StasisEnd waits
for the second one, whose cause tells whether a teardown has done so. Then neither is passed on: the teardown looks
itself until the leg is gone. Dropped is also an event that is in every field the one before it of its leg: no Asterisk
sends it, unless to make us work. Each message saved is a hop through Redis and some statements of a worker.

Of a leg that was not answered, Dial, ChannelHangupRequest and ChannelDestroyed tell in part how the dialling came out,
within a millisecond and in any order: the ChannelDestroyed carries what the others told, too.

Of the events that a leg sends audio the first one is passed on.

A StasisStart may say that its channel has taken the place of another one. Then the end of that other one ends nothing.
It is dropped, so that no worker handles it before the StasisStart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from shared.asterisk.events import Event, EventType
from shared.call import dialling, ids
from shared.call.states import Cause

_T = TypeVar("_T")

#: How long a hang-up request waits for its StasisEnd, the end of an unanswered leg for its dial status, and the
#: StasisEnd of a deleted media leg for its ChannelDestroyed. A caller who hangs up waits for nothing.
WAIT_SECONDS = 0.02
#: Beyond these many legs of one socket, events pass as they come.
_WAITING = 256
_ENDED = 256
_TOLD_IN_PART = 256
_REPLACED = 256
_HEARD = 256
_ANSWERED = "Up"
#: The cause in a ChannelHangupRequest that a DELETE has made, whatever cause was asked for (measured, 22.10).
_DELETED = 32
#: The legs of one socket whose last event is remembered.
_TOLD = 64
_ENDS = (EventType.STASIS_END, EventType.CHANNEL_DESTROYED, EventType.CHANNEL_HANGUP_REQUEST)
#: Nor does an event wait that has more text about its leg than this.
_LONGEST = 1024


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    event: Event
    at_ms: int


class LegEnds:
    """Passes the events of one socket on, in their order for each leg.

    Args:
        push: Takes an event and when it was read, by Redis's clock; returns False when it had to be dropped.
        later: Calls a function after some seconds.
    """

    def __init__(
        self,
        push: Callable[[Event, int], bool],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._push = push
        self._later = later
        self._waiting: dict[str, _Waiting] = {}
        #: The media legs whose StasisEnd was passed on, the oldest first.
        self._ended: OrderedDict[str, None] = OrderedDict()
        #: The media legs that are being hung up → the cause, and that of their websocket.
        self._causes: OrderedDict[str, tuple[int, int | None]] = OrderedDict()
        #: Of the legs that were not answered: creation time, dial status and hang-up cause, the oldest first.
        self._in_part: OrderedDict[str, tuple[str, str, int | None]] = OrderedDict()
        #: The legs whose place another channel has taken, the oldest first.
        self._replaced: OrderedDict[str, None] = OrderedDict()
        #: The legs that have sent audio, the oldest first.
        self._heard: OrderedDict[str, None] = OrderedDict()
        #: Leg → the hash of its last event, the leg told of last at the end.
        self._told: OrderedDict[str, int] = OrderedDict()

    def take(self, event: Event, at_ms: int) -> None:
        """Pass an event on, now or within WAIT_SECONDS; drop one that says nothing new."""
        leg_id = event.leg.id
        if event.type is EventType.CHANNEL_TALKING_STARTED:
            if leg_id not in self._heard and self._push(event, at_ms):
                _remember(self._heard, leg_id, None, most=_HEARD)
            return
        if self._is_repeated(event) or self._is_of_replaced(event):
            return
        if ids.parse(leg_id) is not None:
            self._take_own(event, at_ms)
            return
        if event.type is EventType.CHANNEL_DESTROYED:
            event = self._with_the_others(event)
        elif event.leg.state != _ANSWERED:
            self._keep(event)
        self._take_other(event, at_ms)

    def _is_repeated(self, event: Event) -> bool:
        leg_id, told = event.leg.id, hash(event)
        if self._told.get(leg_id) == told:
            return True
        self._told[leg_id] = told
        self._told.move_to_end(leg_id)
        if len(self._told) > _TOLD:
            self._told.popitem(last=False)
        return False

    def _is_of_replaced(self, event: Event) -> bool:
        """True for the end of a leg whose place another channel has taken."""
        if event.replaces is not None:
            self._waiting.pop(event.replaces, None)
            _remember(self._replaced, event.replaces, None, most=_REPLACED)
        if event.type in _ENDS:
            return event.leg.id in self._replaced
        # It has come into the app again.
        self._replaced.pop(event.leg.id, None)
        return False

    def flush(self) -> None:
        """Pass on what waits: the socket is closed."""
        for waiting in list(self._waiting.values()):
            self._end_wait(waiting)

    def _take_other(self, event: Event, at_ms: int) -> None:
        leg_id = event.leg.id
        if leg_id in self._waiting:
            self._take_next(event, at_ms)
        elif self._may_wait(event):
            self._wait(event, at_ms)
        else:
            self._push(event, at_ms)

    def _wait(self, event: Event, at_ms: int) -> None:
        waiting = self._waiting[event.leg.id] = _Waiting(event, at_ms)
        self._later(WAIT_SECONDS, lambda: self._end_wait(waiting))

    def _keep(self, event: Event) -> None:
        """Keep what an event tells of how the dialling of its leg came out."""
        status = event.dial_status if event.dial_status in dialling.UNANSWERED_STATUSES else ""
        cause = event.cause if event.type is EventType.CHANNEL_HANGUP_REQUEST else None
        if not status and not cause:
            return
        created, known_status, known_cause = self._in_part.pop(event.leg.id, (event.leg.created, "", None))
        if created == event.leg.created:
            # Of two the one that leaves less open; the first where they do not differ.
            status = min(filter(None, (known_status, status)), key=lambda one: dialling.doubt(one, None), default="")
            cause = dialling.clearer(known_cause, cause)
        self._in_part[event.leg.id] = event.leg.created, status, cause
        if len(self._in_part) > _TOLD_IN_PART:
            self._in_part.popitem(last=False)

    def _with_the_others(self, destroyed: Event) -> Event:
        created, status, cause = self._in_part.get(destroyed.leg.id, ("", "", None))
        if created != destroyed.leg.created:
            return destroyed
        del self._in_part[destroyed.leg.id]
        return replace(destroyed, dial_status=status, cause=dialling.clearer(destroyed.cause, cause))

    def _may_wait(self, event: Event) -> bool:
        if event.args or not self._has_room(event):
            return False
        if event.type is EventType.CHANNEL_DESTROYED:
            # A leg that was answered is Up to its end.
            return not event.dial_status and event.leg.state != _ANSWERED
        # The end of a leg that the product originated is told by its Dial events and its ChannelDestroyed.
        is_request = event.type is EventType.CHANNEL_HANGUP_REQUEST and event.cause is not None
        return is_request and not ids.is_originated(event.leg.id)

    def _has_room(self, event: Event) -> bool:
        return len(event.leg.app_data) <= _LONGEST and len(self._waiting) < _WAITING

    def _take_next(self, event: Event, at_ms: int) -> None:
        """Take an event of a leg of which another one waits."""
        waiting = self._waiting[event.leg.id]
        first, is_same = waiting.event, event.leg.created == waiting.event.leg.created
        if is_same and first.type is EventType.CHANNEL_HANGUP_REQUEST:
            if event.type is EventType.CHANNEL_HANGUP_REQUEST:
                # The first request has the cause.
                return
            if event.type is EventType.STASIS_END:
                del self._waiting[event.leg.id]
                self._push(replace(event, cause=first.cause, tech_cause=first.tech_cause), at_ms)
                return
        if is_same and event.type is EventType.DIAL and first.type is EventType.CHANNEL_DESTROYED:
            # In the usual order.
            self._push(event, at_ms)
            self._end_wait(waiting)
            return
        self._end_wait(waiting)
        self._take_other(event, at_ms)

    def _end_wait(self, waiting: _Waiting) -> None:
        event = waiting.event
        if self._waiting.get(event.leg.id) is not waiting:
            return
        del self._waiting[event.leg.id]
        match event.type:
            case EventType.STASIS_END:
                self._push_own_end(event, waiting.at_ms)
            case EventType.CHANNEL_DESTROYED:
                self._push(self._with_the_others(event), waiting.at_ms)
            case _:
                self._push(event, waiting.at_ms)

    def _take_own(self, event: Event, at_ms: int) -> None:
        leg_id = event.leg.id
        match event.type:
            case EventType.CHANNEL_HANGUP_REQUEST if event.cause is not None and leg_id not in self._causes:
                # The first request has the cause.
                _remember(self._causes, leg_id, (event.cause, event.tech_cause))
            case EventType.STASIS_END:
                cause, tech_cause = self._causes.pop(leg_id, (event.cause, event.tech_cause))
                event = replace(event, cause=cause, tech_cause=tech_cause)
                if cause == _DELETED and self._has_room(event):
                    self._wait(event, at_ms)
                else:
                    self._push_own_end(event, at_ms)
                return
            case EventType.CHANNEL_DESTROYED if self._is_told(event):
                return
        self._push(event, at_ms)

    def _is_told(self, destroyed: Event) -> bool:
        """True for the ChannelDestroyed of a media leg whose StasisEnd tells the same, or that needs no telling."""
        leg_id = destroyed.leg.id
        if destroyed.cause == Cause.CALL_CLEARED:
            # The teardown of its call has removed it, and looks until it is gone.
            for kept in (self._waiting, self._ended, self._causes):
                kept.pop(leg_id, None)
            return True
        if leg_id in self._waiting:
            self._end_wait(self._waiting[leg_id])
        if leg_id not in self._ended:
            return False
        del self._ended[leg_id]
        return True

    def _push_own_end(self, ended: Event, at_ms: int) -> None:
        if self._push(ended, at_ms):
            _remember(self._ended, ended.leg.id, None)


def _remember(legs: OrderedDict[str, _T], leg_id: str, what: _T, *, most: int = _ENDED) -> None:
    """Keep something of a leg; forget that of the oldest one of too many."""
    legs[leg_id] = what
    if len(legs) > most:
        legs.popitem(last=False)
