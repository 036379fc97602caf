"""The end of a leg in one message: what waits, what is merged, what is dropped, and that nothing stays behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from listener import leg_ends
from shared.asterisk.events import Channel, Event, EventType

PREFIX = "aip-"
CALLER = "1700000000.1"
MEDIA = f"{PREFIX}{'0' * 32}-m1"
ORIGINATED = f"{PREFIX}{'0' * 32}-o"


def event(
    kind: EventType,
    leg: str = CALLER,
    *,
    cause: int | None = None,
    created: str = "then",
    state: str = "Up",
    dial_status: str = "",
) -> Event:
    channel = Channel(
        id=leg,
        name="PJSIP/x",
        state=state,
        created=created,
        caller_number="",
        called_number="",
        app_name="",
        app_data="",
    )
    return Event(type=kind, application="app", stamp="stamp", channel=channel, cause=cause, dial_status=dial_status)


REQUEST = event(EventType.CHANNEL_HANGUP_REQUEST, cause=16)
END = event(EventType.STASIS_END)
DESTROYED = event(EventType.CHANNEL_DESTROYED, cause=16)
START = event(EventType.STASIS_START)


class Socket:
    """The ends of one socket, with a clock that the test moves."""

    def __init__(self) -> None:
        self.pushed: list[Event] = []
        self.at: list[int] = []
        self.has_room = True
        self.timers: list[Callable[[], None]] = []
        self.ends = leg_ends.LegEnds(self._push, self._later)

    def _push(self, event: Event, at_ms: int) -> bool:
        self.pushed.append(event)
        self.at.append(at_ms)
        return self.has_room

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        assert seconds == leg_ends.WAIT_SECONDS
        self.timers.append(do)

    def take(self, *events: Event) -> None:
        for one in events:
            self.ends.take(one, len(self.at))

    def wait(self) -> None:
        """Let the time of every timer so far pass."""
        timers, self.timers = self.timers, []
        for do in timers:
            do()


@pytest.fixture
def socket() -> Socket:
    return Socket()


def test_a_hang_up_request_and_the_stasis_end_after_it_are_one_message_with_the_cause(socket: Socket) -> None:
    socket.take(REQUEST)
    assert socket.pushed == []
    socket.take(END)
    assert socket.pushed == [replace(END, cause=16)]
    socket.wait()
    assert len(socket.pushed) == 1


def test_a_hang_up_request_that_no_end_follows_is_passed_on_when_its_time_is_over(socket: Socket) -> None:
    socket.ends.take(REQUEST, 77)
    socket.wait()
    assert (socket.pushed, socket.at) == ([REQUEST], [77])
    socket.take(END)
    assert socket.pushed == [REQUEST, END]


def test_a_hang_up_request_is_passed_on_when_the_socket_is_closed(socket: Socket) -> None:
    socket.take(REQUEST)
    socket.ends.flush()
    assert socket.pushed == [REQUEST]
    socket.wait()
    assert socket.pushed == [REQUEST]


def test_the_first_of_several_hang_up_requests_has_the_cause(socket: Socket) -> None:
    socket.take(REQUEST, replace(REQUEST, cause=32), END)
    assert socket.pushed == [replace(END, cause=16)]


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, cause=None),
        replace(REQUEST, args=("a",)),
        replace(REQUEST, channel=replace(REQUEST.leg, app_data="a" * 2000)),
    ],
    ids=["without a cause", "with arguments", "large"],
)
def test_a_hang_up_request_that_brings_nothing_or_is_large_does_not_wait(socket: Socket, request_: Event) -> None:
    socket.take(request_, END)
    assert socket.pushed == [request_, END]


@pytest.mark.parametrize(
    "other",
    [
        DESTROYED,
        START,
        event(EventType.STASIS_END, created="now"),
        event(EventType.CHANNEL_HANGUP_REQUEST, cause=17, created="now"),
    ],
)
def test_any_other_event_of_the_leg_comes_after_the_request(socket: Socket, other: Event) -> None:
    """An event of another creation time is of another channel that has the same id."""
    socket.take(REQUEST, other)
    socket.wait()
    assert socket.pushed == [REQUEST, other]


def test_legs_do_not_wait_for_each_other(socket: Socket) -> None:
    other = event(EventType.STASIS_END, "1700000000.2")
    socket.take(REQUEST, other)
    assert socket.pushed == [other]


def test_the_second_end_of_a_media_leg_is_dropped(socket: Socket) -> None:
    end, destroyed = event(EventType.STASIS_END, MEDIA), event(EventType.CHANNEL_DESTROYED, MEDIA, cause=16)
    socket.take(end, destroyed)
    assert socket.pushed == [end]


DELETED = event(EventType.CHANNEL_HANGUP_REQUEST, MEDIA, cause=32)
MEDIA_END = event(EventType.STASIS_END, MEDIA)
CLEARED = event(EventType.CHANNEL_DESTROYED, MEDIA, cause=86)


def test_the_end_of_a_media_leg_that_a_teardown_has_deleted_is_no_message(socket: Socket) -> None:
    socket.take(DELETED)
    told = len(socket.pushed)
    socket.take(MEDIA_END, CLEARED)
    socket.wait()
    assert socket.pushed[told:] == []
    assert (socket.ends._waiting, socket.ends._ended, socket.ends._causes) == ({}, {}, {})


def test_the_end_of_a_media_leg_that_somebody_else_has_deleted_is_told_as_soon_as_that_is_known(
    socket: Socket,
) -> None:
    """An operator at the Asterisk's command line, for instance: the call has to end."""
    socket.take(DELETED, MEDIA_END, event(EventType.CHANNEL_DESTROYED, MEDIA, cause=16))
    socket.wait()
    assert socket.pushed[1:] == [replace(MEDIA_END, cause=32)]
    assert (socket.ends._waiting, socket.ends._ended) == ({}, {})


def test_the_end_of_a_deleted_media_leg_is_told_when_its_last_event_does_not_come_in_time(socket: Socket) -> None:
    socket.take(DELETED, MEDIA_END)
    assert socket.pushed[1:] == []
    socket.wait()
    socket.take(CLEARED)
    assert socket.pushed[1:] == [replace(MEDIA_END, cause=32)]
    assert socket.ends._ended == {}


def test_the_end_of_a_deleted_media_leg_is_told_when_the_socket_is_closed(socket: Socket) -> None:
    socket.take(DELETED, MEDIA_END)
    socket.ends.flush()
    assert socket.pushed[1:] == [replace(MEDIA_END, cause=32)]


def test_a_media_leg_that_a_teardown_has_deleted_before_it_entered_stasis_is_no_message(socket: Socket) -> None:
    socket.take(CLEARED)
    assert socket.pushed == []


def test_a_media_leg_that_its_agent_ends_waits_for_nothing(socket: Socket) -> None:
    socket.take(event(EventType.CHANNEL_HANGUP_REQUEST, MEDIA, cause=16), MEDIA_END)
    assert socket.pushed[1:] == [replace(MEDIA_END, cause=16)]


def test_of_too_many_deleted_media_legs_no_end_waits(socket: Socket) -> None:
    others = [f"{PREFIX}{number:032x}-m1" for number in range(1, 257)]
    socket.take(*(event(EventType.CHANNEL_HANGUP_REQUEST, leg, cause=32) for leg in others))
    told = len(socket.pushed)
    socket.take(*(event(EventType.STASIS_END, leg) for leg in others))
    assert (len(socket.pushed) - told, len(socket.ends._waiting)) == (0, 256)
    socket.take(DELETED, MEDIA_END)
    assert socket.pushed[-1] == replace(MEDIA_END, cause=32)


@pytest.mark.parametrize("cause", [16, 38])
def test_the_end_of_a_media_leg_carries_the_cause_of_its_hang_up_request(socket: Socket, cause: int) -> None:
    """However long it takes; the StasisEnd has none, and the ChannelDestroyed, which has it, is dropped."""
    end = event(EventType.STASIS_END, MEDIA)
    socket.take(replace(event(EventType.CHANNEL_HANGUP_REQUEST, MEDIA, cause=cause), tech_cause=1001))
    socket.wait()
    other = event(EventType.STASIS_END, f"{PREFIX}{1:032x}-m1")
    socket.take(event(EventType.CHANNEL_HANGUP_REQUEST, MEDIA, cause=cause + 1), other, end)
    assert socket.pushed[-2:] == [other, replace(end, cause=cause, tech_cause=1001)]
    assert socket.ends._causes == {}


def test_a_media_leg_that_never_entered_stasis_has_its_one_end(socket: Socket) -> None:
    """A voice agent that cannot be reached: no StasisStart, no StasisEnd, cause 3."""
    destroyed = event(EventType.CHANNEL_DESTROYED, MEDIA, cause=3)
    socket.take(destroyed)
    assert socket.pushed == [destroyed]


def test_the_second_end_of_a_media_leg_is_passed_on_when_the_first_was_lost(socket: Socket) -> None:
    end, destroyed = event(EventType.STASIS_END, MEDIA), event(EventType.CHANNEL_DESTROYED, MEDIA, cause=16)
    socket.has_room = False
    socket.take(end, destroyed)
    assert socket.pushed == [end, destroyed]


def test_the_hang_up_request_of_an_originated_leg_does_not_wait(socket: Socket) -> None:
    request = event(EventType.CHANNEL_HANGUP_REQUEST, ORIGINATED, cause=21)
    socket.take(request)
    assert socket.pushed == [request]


LEGS = pytest.mark.parametrize("leg", [CALLER, ORIGINATED], ids=["the platform's", "ours"])


@LEGS
@pytest.mark.parametrize("status", ["BUSY", "NOANSWER", "CANCEL", "CONGESTION", "CHANUNAVAIL"])
def test_the_end_of_an_unanswered_leg_carries_its_dial_status_in_either_order(leg: str, status: str) -> None:
    for cause, dial_first in itertools.product((0, 16, 19, 21), (True, False)):
        socket = Socket()
        dial = event(EventType.DIAL, leg, state="Down", dial_status=status)
        destroyed = event(EventType.CHANNEL_DESTROYED, leg, state="Ringing", cause=cause)
        socket.take(*((dial, destroyed) if dial_first else (destroyed, dial)))
        assert socket.pushed == [dial, replace(destroyed, dial_status=status)], (cause, dial_first)
        socket.wait()
        assert len(socket.pushed) == 2, (cause, dial_first)
        assert (socket.ends._waiting, socket.ends._in_part) == ({}, {}), (cause, dial_first)


@LEGS
def test_the_end_of_an_unanswered_leg_without_a_dial_status_is_passed_on_when_its_time_is_over(
    socket: Socket, leg: str
) -> None:
    """A leg that rings too long: it has no last Dial event (measured)."""
    destroyed = event(EventType.CHANNEL_DESTROYED, leg, state="Ringing", cause=19)
    socket.take(event(EventType.DIAL, leg, state="Ringing", dial_status="RINGING"), destroyed)
    socket.wait()
    assert socket.pushed[1:] == [destroyed]


def test_a_dial_status_is_of_the_channel_that_was_dialled(socket: Socket) -> None:
    """Another channel may have the same id later."""
    dial = event(EventType.DIAL, state="Down", dial_status="BUSY")
    destroyed = event(EventType.CHANNEL_DESTROYED, state="Ringing", cause=16, created="now")
    socket.take(dial, destroyed)
    socket.wait()
    assert socket.pushed == [dial, destroyed]


@LEGS
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_clearest_status_and_cause_of_several_events_are_told_with_the_end(
    socket: Socket, leg: str, order: tuple[int, ...]
) -> None:
    events = [
        event(EventType.CHANNEL_HANGUP_REQUEST, leg, state="Down", cause=17),
        event(EventType.DIAL, leg, state="Down", dial_status="CHANUNAVAIL"),
        event(EventType.DIAL, leg, state="Down", dial_status="NOANSWER"),
    ]
    destroyed = event(EventType.CHANNEL_DESTROYED, leg, state="Down", cause=16)
    socket.take(*(events[number] for number in order), destroyed)
    socket.wait()
    assert socket.pushed[-1] == replace(destroyed, dial_status="NOANSWER", cause=17)


def test_a_rejected_leg_is_told_with_all_that_is_known(socket: Socket) -> None:
    """Its events as measured: the hang-up request has the cause, too."""
    request = event(EventType.CHANNEL_HANGUP_REQUEST, state="Down", cause=21)
    dial = event(EventType.DIAL, state="Down", dial_status="NOANSWER")
    destroyed = event(EventType.CHANNEL_DESTROYED, state="Down", cause=21)
    socket.take(request, dial, destroyed)
    assert socket.pushed == [request, dial, replace(destroyed, dial_status="NOANSWER")]


def test_what_is_kept_is_bounded(socket: Socket) -> None:
    """A hostile PBX sends hang-up requests of a million legs, and as many ends of media legs."""
    legs = [str(number) for number in range(1000)]
    socket.take(*(event(EventType.CHANNEL_HANGUP_REQUEST, leg, cause=16) for leg in legs))
    assert (len(socket.pushed), len(socket.ends._waiting)) == (744, 256)
    socket.wait()
    assert {one.leg.id for one in socket.pushed} == set(legs)
    assert socket.ends._waiting == {}
    socket.take(*(event(EventType.STASIS_END, f"{PREFIX}{number:032x}-m1") for number in range(1000)))
    assert len(socket.ends._ended) == 256
    socket.take(
        *(event(EventType.CHANNEL_HANGUP_REQUEST, f"{PREFIX}{number:032x}-m1", cause=38) for number in range(1000))
    )
    assert len(socket.ends._causes) == 256
    dials = (event(EventType.DIAL, str(number), state="Down", dial_status="BUSY") for number in range(1000))
    socket.take(*dials)
    assert len(socket.ends._in_part) == 256
    socket.take(*(event(EventType.CHANNEL_DESTROYED, str(number), state="Down") for number in range(700)))
    assert len(socket.ends._waiting) == 256
    assert len(socket.ends._told) == 64


@pytest.mark.parametrize("kind", sorted(set(EventType) - {EventType.CHANNEL_TALKING_STARTED}))
@pytest.mark.parametrize("leg", [CALLER, MEDIA, ORIGINATED])
def test_an_event_that_is_repeated_is_passed_on_once(socket: Socket, kind: EventType, leg: str) -> None:
    socket.take(*[event(kind, leg)] * 100)
    socket.wait()
    assert socket.pushed == [event(kind, leg)]
    socket.take(replace(event(kind, leg), stamp="later"))
    socket.wait()
    assert len(socket.pushed) == 2


def test_of_the_audio_of_a_leg_the_first_event_is_passed_on_and_bounds_what_is_remembered(socket: Socket) -> None:
    heard = event(EventType.CHANNEL_TALKING_STARTED)
    socket.has_room = False
    socket.take(heard)
    socket.has_room = True
    for number in range(100):
        socket.take(START, replace(heard, stamp=str(number)))
    assert socket.pushed.count(heard) == 1, "the one without room"
    assert [each.stamp for each in socket.pushed if each.type is heard.type] == ["stamp", "0"]
    socket.take(*(event(EventType.CHANNEL_TALKING_STARTED, str(number)) for number in range(1000)))
    assert len(socket.ends._heard) == 256


def test_a_leg_that_is_back_within_the_millisecond_is_told(socket: Socket) -> None:
    socket.take(START, END, START)
    assert socket.pushed == [START, END, START]


# ── a leg whose place another channel has taken ──────────────────────────────────────────────────────────────────────

SUCCESSOR = "1700000009.9"
REPLACED = replace(event(EventType.STASIS_START, SUCCESSOR), replaces=CALLER)


@pytest.mark.parametrize("ends", [[END], [REQUEST, END], [END, DESTROYED], [DESTROYED]])
def test_the_end_of_a_leg_that_was_replaced_is_no_message(socket: Socket, ends: list[Event]) -> None:
    socket.take(REPLACED, *ends)
    socket.wait()
    assert socket.pushed == [REPLACED]
    socket.take(event(EventType.STASIS_END, SUCCESSOR))
    assert len(socket.pushed) == 2


def test_a_hang_up_request_that_waits_is_dropped_once_its_leg_is_replaced(socket: Socket) -> None:
    socket.take(REQUEST, REPLACED, END)
    socket.wait()
    socket.ends.flush()
    assert socket.pushed == [REPLACED]


def test_the_end_of_a_media_leg_that_was_replaced_is_no_message(socket: Socket) -> None:
    start = replace(REPLACED, replaces=MEDIA)
    socket.take(start, event(EventType.STASIS_END, MEDIA), event(EventType.CHANNEL_DESTROYED, MEDIA))
    assert socket.pushed == [start]


def test_a_replaced_leg_that_comes_into_the_app_again_ends_as_any_other(socket: Socket) -> None:
    socket.take(REPLACED, END, START, replace(END, stamp="later"))
    assert socket.pushed == [REPLACED, START, replace(END, stamp="later")]


def test_of_replaced_legs_the_last_ones_are_remembered(socket: Socket) -> None:
    for number in range(300):
        socket.take(replace(event(EventType.STASIS_START, f"new-{number}"), replaces=f"old-{number}"))
    socket.pushed.clear()
    socket.take(*(event(EventType.STASIS_END, f"old-{number}") for number in range(300)))
    assert [end.leg.id for end in socket.pushed] == [f"old-{number}" for number in range(44)]
