"""The handler of events about legs around fakes: known calls, and what it does to everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from shared import messages
from shared.asterisk.events import Channel, Event, EventType
from shared.call import facts, ids
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.states import Outcome
from shared.call.steps import Step
from shared.storage.timeline import TimelineEntry
from tests.simulation.stores import MemoryStore
from tests.support.calls import CALL_ID, CONNECTED, RINGING
from tests.support.flows import InstantDatabase
from workers.leg_events import LegEvents

PREFIX = "aip-"
HERE = ConnectionVersion(7, 1)
ELSEWHERE = ConnectionVersion(8, 1)
MEDIA_ID = ids.media_id(PREFIX, CALL_ID, 1)
ORIGINATED_ID = ids.originated_id(PREFIX, 7, "campaign 7, row 12")
BEFORE, ENTERED, AFTER = (f"2026-05-01T12:00:0{second}.000+0000" for second in (1, 2, 3))
#: Written under a caller's leg that entered at `ENTERED`.
KNOWN = replace(CONNECTED, entered_stamp=ENTERED)
ASKED_FOR = replace(RINGING, channel_id=ORIGINATED_ID)


def event(kind: EventType, channel_id: str = KNOWN.channel_id, name: str = "PJSIP/1-1", **more: Any) -> Event:
    """Return an event about a leg, by default the caller's of `KNOWN`."""
    created = more.pop("created", KNOWN.channel_created)
    unused = dict.fromkeys(("state", "caller_number", "called_number", "app_name", "app_data"), "")
    leg = Channel(id=channel_id, name=name, created=created, **unused)
    return Event(type=kind, application="voiceai", channel=leg, **{"stamp": AFTER, **more})


class Store(MemoryStore):
    """Calls in memory; keeps the timeline of connections."""

    def __init__(self, *known: Call) -> None:
        super().__init__(InstantDatabase(), lambda *_: None)
        self.notes: list[tuple[str, int | None]] = []
        for call in known:
            assert self.insert(call, [], None)

    def append_timeline(self, timeline: Sequence[TimelineEntry], **where: Any) -> None:
        self.notes += [(entry.name, where.get("connection_id")) for entry in timeline]


class Scene:
    """The handler of events around known calls, and what it does to everything else."""

    def __init__(self, *known: Call) -> None:
        self.store = Store(*known)
        self.reported: list[tuple[UUID, facts.Fact]] = []
        self.recorded: list[facts.Fact] = []
        self.later: list[tuple[messages.Message, timedelta]] = []
        self.slept: list[float] = []
        #: What the part for new callers was asked for.
        self.asked: list[str] = []
        self.outcomes: list[tuple[Outcome, str, int | None]] = []
        #: The attempts that this process waits for.
        self.awaited: list[tuple[UUID, int, str, int]] = []
        #: Two connections of one organization in one app instance.
        self.sharing: set[int] = set()
        #: The channel that is in the bridge in place of the caller's leg.
        self.in_its_place: Channel | None = None
        #: The channels that calls have followed, each with the one that it has replaced.
        self.followed: list[tuple[str, str]] = []
        self.is_up = False
        #: How old the event is.
        self.age_ms = 0.0
        self.is_in_place = False
        self.is_left_alone = False
        self.is_with_another = False
        self.is_transferred = False
        self.has_run = False
        #: The platform has heard that a leg which it originated for a transfer is gone.
        self.is_transfer_leg = False
        self.refused_for = ""
        #: The voice agent has begun the run.
        self.is_begun = True
        #: What was looked for, without ending it.
        self.looked: list[str] = []
        self.call_meanwhile: Call | None = None
        #: The call and the connection whose end this process has stored.
        self.over: tuple[UUID, int] | None = None
        clock = SimpleNamespace(sleep=self._sleep)
        self.events = LegEvents(
            flow=cast(Any, self),
            writer=cast(
                Any, SimpleNamespace(store=self.store, clock=clock, record=self._record, is_over=self._is_over)
            ),
            inbound=cast(Any, self._inbound()),
            naming=Naming(PREFIX),
            transfers=cast(Any, SimpleNamespace(take_up=self._take_up)),
            replacements=cast(Any, self),
            send_later=lambda message, wait: self.later.append((message, wait)),
            refusal_causes=lambda _call: self.refused_for,
        )

    def _is_over(self, call_id: UUID, *, connection_id: int) -> bool:
        return self.over == (call_id, connection_id)

    def _transfer_leg_ended(self, *, connection: ConnectionVersion, event: Event) -> bool:
        return self.is_transfer_leg

    def _look_at_transfer_leg(self, *, connection: ConnectionVersion, event: Event, looks: int) -> None:
        self.asked.append(f"transfer leg on {connection}: {event.leg.id}, look {looks}")

    def _inbound(self) -> object:
        def record_abandoned(*, connection: ConnectionVersion, event: Event) -> Call | None:
            self.asked.append(f"abandoned on {connection}")
            return self.call_meanwhile

        def record_unanswered(*, connection: ConnectionVersion, event: Event, outcome: Any) -> bool:
            self.asked.append(f"unanswered on {connection}")
            self.outcomes.append(outcome)
            return self.has_run

        def is_awaited(connection: ConnectionVersion, leg: Channel) -> bool:
            self.looked.append(f"{leg.id} on {connection}")
            return self.has_run

        def caller_entered(*, connection: ConnectionVersion, at_ms: int, event: Event) -> None:
            self.asked.append(f"entered on {connection} at {at_ms}: {event.leg.id}")

        def successor_entered(over: Call, *, connection: ConnectionVersion, at_ms: int, event: Event) -> None:
            self.asked.append(f"successor of {over.call_id} on {connection} at {at_ms}: {event.leg.id}")

        def is_in_place(connection: ConnectionVersion, call: Call, leg: Channel) -> bool:
            self.asked.append(f"in place on {connection}: {leg.id}")
            return self.is_in_place

        return SimpleNamespace(
            record_abandoned=record_abandoned, record_unanswered=record_unanswered, caller_entered=caller_entered,
            is_in_place=is_in_place, is_awaited=is_awaited, successor_entered=successor_entered,
            age_ms=lambda _at_ms: self.age_ms,
            is_up=lambda _connection, _leg: self.is_up,
            is_left_alone=lambda _connection, _leg: self.is_left_alone,
            is_with_another=lambda _connection, _leg: self.is_with_another,
            connections=SimpleNamespace(share_an_app=self._share_an_app),
            runs=SimpleNamespace(is_begun=lambda _call: self.is_begun),
            transfer_legs=SimpleNamespace(ended=self._transfer_leg_ended, look=self._look_at_transfer_leg),
        )  # fmt: skip

    def successor(self, call: Call, leg_id: str) -> Channel | None:
        return self.in_its_place

    def call_of(self, connection: ConnectionVersion, replaced_id: str, leg_id: str) -> Call | None:
        return self.store.of_channel(connection.connection_id, replaced_id)

    def follow(self, call: Call, leg: Channel, *, replaced_id: str) -> Any:
        assert call.call_id == CALL_ID
        self.followed.append((replaced_id, leg.id))
        return SimpleNamespace(call=call, applied=self.followed.count((replaced_id, leg.id)) == 1)

    def remove_replaced(self, call: Call, replaced_id: str) -> None:
        self.asked.append("replaced channels removed")

    def _share_an_app(self, connection_id: int, other_id: int) -> bool:
        return {connection_id, other_id} == self.sharing

    def _take_up(self, call: Call) -> bool:
        self.asked.append(f"transferred: {call.call_id}")
        return self.is_transferred

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def _record(self, call: Call, *happened: facts.Fact) -> None:
        self.recorded += happened

    def report(self, call: Call, *happened: facts.Fact) -> None:
        self.reported += [(call.call_id, fact) for fact in happened]

    def resume(self, call_id: UUID, step: Step, *, attempt: int) -> None:
        self.asked.append(f"{step} of attempt {attempt} resumed")

    def media_ready(self, call_id: UUID, attempt: int, nonce: str, *, connection_id: int) -> bool:
        return (call_id, attempt, nonce, connection_id) in self.awaited

    @property
    def told(self) -> list[facts.Fact]:
        """The facts reported about the one call."""
        assert {call_id for call_id, _ in self.reported} <= {CALL_ID}
        return [fact for _, fact in self.reported]
