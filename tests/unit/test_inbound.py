"""A leg in Stasis becomes a call once: what is written for it, and what a leg that is known already becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared.asterisk.events import Channel, Event, EventType
from shared.call import commands, facts
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.quota_rules import Quota
from shared.call.states import Cause, Direction, Outcome, State
from shared.call.steps import Step
from shared.inbound_lookup import Destination
from shared.platform.ports import NoRoute
from shared.storage.call_writer import CallWriter
from shared.storage.connections import InboundTarget
from shared.storage.timeline import TimelineEntry
from tests.simulation.commits import Transaction
from tests.simulation.stores import MemoryStore
from tests.support.calls import CALL_ID, CONNECTED, ENDED, LIMITS, RECEIVED
from tests.support.flows import CommandQueue, InstantDatabase
from tests.support.rounds import GONE, LOOK_AT_APP, Rounds, channel
from workers.call_allowance import CallAllowance
from workers.claims import Arrival
from workers.inbound import Inbound

HERE = ConnectionVersion(7, 1)
NAMING = Naming("aip-")
BEFORE, ENTERED, AFTER = (f"2026-05-01T12:00:0{second}.000+0000" for second in (1, 2, 3))
ARGS = ("workflow_run_id=9", "workflow_id=1")
ROUTE = NoRoute(reason="no route", hangup_cause=1)
TARGET = InboundTarget(served_by=ConnectionVersion(7, 2), organization_id=3, quota=Quota(organization_id=3))
DESTINATION = Destination(target=TARGET, route=ROUTE)
LEG = Channel(
    id=RECEIVED.channel_id, name="PJSIP/trunk-1", state="Ring", created=RECEIVED.channel_created,
    caller_number="+49151", called_number="100", app_name="Stasis", app_data="voiceai",
)  # fmt: skip
#: The call of an entry before, whose caller is still there.
KNOWN = replace(CONNECTED, entered_stamp=ENTERED)
OUTGOING = f"channel {LEG.id} of {LEG.created} goes out, for another program to dial: left alone"
#: The look at a leg, and at what is in the app.
PLACE = [f"GET /channels/{LEG.id}", LOOK_AT_APP]
LOOK_AT_BRIDGE = f"GET /bridges/{NAMING.bridge_id(KNOWN)}"
ABANDONED = replace(ENDED, outcome=Outcome.ABANDONED, caller_left=True, left_stamp=AFTER, attempt=0)


def started(**more: Any) -> Event:
    """Return a StasisStart."""
    leg = replace(LEG, **more.pop("leg", {}))
    return Event(type=EventType.STASIS_START, application="voiceai", channel=leg, **{"stamp": AFTER, **more})


class Store(MemoryStore):
    """Calls in memory; keeps the timeline of connections."""

    def __init__(self, *known: Call, app_of: Mapping[int, tuple[int, str]]) -> None:
        super().__init__(
            InstantDatabase(), lambda *_: None, app_of=lambda connection_id: app_of.get(connection_id, (3, "app"))
        )
        self.notes: list[tuple[str, str, int | None]] = []
        for call in known:
            assert self.insert(call, [], None)

    def append_timeline(self, timeline: Sequence[TimelineEntry], **where: Any) -> None:
        self.notes += [(entry.name, entry.detail, where.get("connection_id")) for entry in timeline]

    def is_noted(self, entry: TimelineEntry, *, connection_id: int, within: timedelta) -> bool:
        return (entry.name, entry.detail, connection_id) in self.notes

    @property
    def noted(self) -> list[tuple[str, int | None]]:
        """The notes without their details."""
        return [(name, connection_id) for name, _, connection_id in self.notes]


class Runs:
    """The platform's runs; one may wait for a channel."""

    def __init__(self, waiting: int | None) -> None:
        self._waiting = waiting
        self.ended: list[tuple[Call, str, str]] = []
        self.ended_in: list[Call] = []

    def end(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        self.ended.append((call, media_id, bridge_id))

    def waiting(self, db: Any, *, organization_id: int, channel_id: str) -> int | None:
        assert (organization_id, channel_id) == (3, LEG.id)
        return self._waiting

    def end_in(self, db: Any, call: Call, events: object) -> None:
        cast(Transaction, db).writes.append(lambda: self.ended_in.append(call))


class Scene:
    """The part for callers around known calls; an admission writes the call and does nothing else."""

    def __init__(
        self, *known: Call, destination: Destination | None = DESTINATION,
        asterisk: Rounds | None = None, age_ms: float = 600.0, waiting: int | None = None,
        app_of: Mapping[int, tuple[int, str]] = MappingProxyType({}),
        most_calls: int = 100,
    ) -> None:  # fmt: skip
        self.store = Store(*known, app_of=app_of)
        self.runs = Runs(waiting)
        self.queue = CommandQueue()
        self.arrivals: list[Arrival] = []
        self.transfer_legs: list[str] = []
        self.resumed: list[tuple[UUID, Step]] = []
        self.reported: list[tuple[UUID, facts.Fact]] = []
        self.asterisk = asterisk or Rounds()
        ids: Iterator[UUID] = (UUID(int=number) for number in range(1, 100))
        self.inbound = Inbound(
            flow=cast(Any, self),
            writer=CallWriter(self.store, self.queue, LIMITS, who="test", new_id=lambda: next(ids)),
            connections=cast(Any, SimpleNamespace(inbound_target=self._target_of(destination))),
            lookup=cast(Any, SimpleNamespace(destination=lambda _connection, _called, *, assume: destination)),
            asterisks=cast(Any, SimpleNamespace(at=self.asterisk.asterisks.of)),
            runs=cast(Any, self.runs),
            naming=NAMING,
            # A tenth of an hour's comes at once; no time passes.
            allowance=CallAllowance(10 * most_calls, clock=lambda: 0.0),
            age_ms=lambda at_ms: age_ms if at_ms == 4_000 else -1.0,
            transfer_legs=cast(Any, SimpleNamespace(entered=self._transfer_leg_entered)),
        )

    def _transfer_leg_entered(self, *, connection: ConnectionVersion, event: Event) -> None:
        self.transfer_legs.append(event.leg.id)

    @staticmethod
    def _target_of(destination: Destination | None) -> Any:
        return lambda _connection: destination.target if destination is not None else None

    def admit(self, call: Call, arrival: Arrival) -> bool:
        self.arrivals.append(arrival)
        return self.store.insert(call, [], None)

    def resume(self, call_id: UUID, step: Step) -> None:
        self.resumed.append((call_id, step))

    def report(self, call: Call, *happened: facts.Fact) -> None:
        self.reported += [(call.call_id, fact) for fact in happened]

    def enter(self, event: Event) -> None:
        self.inbound.caller_entered(connection=HERE, at_ms=4_000, event=event)

    @property
    def new(self) -> list[Call]:
        """The calls written since the beginning."""
        return [row.call for call_id, row in self.store.rows.items() if call_id != CALL_ID]


# ── new callers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_leg_that_came_for_a_transfer_is_no_caller() -> None:
    for args in (("transfer", "8e1f"), ("transfer,8e1f",)):
        scene = Scene()
        scene.enter(started(args=args))
        assert (scene.new, scene.arrivals, scene.reported) == ([], [], [])
        assert scene.transfer_legs == [started().leg.id]


def test_a_caller_s_leg_becomes_a_call() -> None:
    scene = Scene()
    scene.enter(started(args=("support",)))
    (call,) = scene.new
    moment = scene.store.now()
    assert call == Call(
        call_id=UUID(int=1), connection_id=7, connection_version=2, organization_id=3, channel_id=LEG.id,
        channel_created=LEG.created, entry=1, direction=Direction.INBOUND, state=State.RECEIVED, received_at=moment,
        state_since=moment, deadline_at=moment + LIMITS.queue_wait(), channel_name=LEG.name, caller_number="+49151",
        called_number="100", args=("support",), entered_stamp=AFTER, id_prefix="aip-",
    )  # fmt: skip
    assert scene.arrivals == [Arrival(target=TARGET, route=ROUTE, waited_seconds=0.6)]
    assert (scene.reported, scene.resumed, scene.runs.ended) == ([], [], [])


def test_what_asterisk_does_not_report_is_not_made_up() -> None:
    unserved = Destination(target=replace(TARGET, served_by=None, reason="removed"), route=None)
    scene = Scene(destination=unserved)
    scene.enter(started(stamp="", args=ARGS, leg={"caller_number": ""}))
    (call,) = scene.new
    assert (call.connection, call.entered_stamp, call.caller_number) == (HERE, None, "unknown")
    assert call.direction is Direction.OUTBOUND


def test_how_long_an_event_waited_is_known_by_redis_s_clock() -> None:
    scene = Scene(age_ms=250.0)
    scene.enter(started())
    assert [arrival.waited_seconds for arrival in scene.arrivals] == [0.25]


def test_a_leg_that_a_resync_found_has_not_waited() -> None:
    scene = Scene()
    scene.inbound.receive(connection=HERE, leg=LEG, args=())
    assert [arrival.waited_seconds for arrival in scene.arrivals] == [0.0]
    assert [call.entered_stamp for call in scene.new] == [None]


@pytest.mark.parametrize(
    ("event", "note"),
    [
        (
            started(replaces="1700000000.9"),
            ("ChannelReplaced", f"channel {LEG.id} took the place of 1700000000.9, which is of no call: left alone", 7),
        ),
        (
            started(leg={"name": "AudioSocket/1"}),
            ("ForeignMedia", f"channel {LEG.id} (AudioSocket/1) is another controller's media: left alone", 7),
        ),
        *(
            (started(leg={"state": state}, args=args), ("OutgoingLeg", OUTGOING, 7))
            for state, args in [
                ("Down", ()),
                ("Ringing", ("support",)),
                ("Dialing", ()),
                ("Rsrvd", ()),
                ("Dialing Offhook", ()),
            ]
        ),
    ],
)
def test_a_leg_that_is_no_new_caller_is_noted_only(event: Event, note: tuple[str, str, int]) -> None:
    scene = Scene()
    scene.enter(event)
    assert scene.store.notes == [note]
    assert (scene.new, scene.arrivals) == ([], [])


@pytest.mark.parametrize(
    ("leg", "args", "reason"),
    [
        (LEG, ("x" * 8192,), "the arguments of Stasis() are longer than 8192 bytes together"),
        (LEG, ("",) * 8193, "the arguments of Stasis() are longer than 8192 bytes together"),
        (LEG, (*ARGS, "x" * 8192), "the arguments of Stasis() are longer than 8192 bytes together"),
        (replace(LEG, called_number="5" * 513), (), "the called number is longer than 512 characters"),
    ],
)
@pytest.mark.parametrize("stamp", [AFTER, ""])
def test_a_leg_whose_deciding_text_is_too_long_is_refused_by_name(
    leg: Channel, args: tuple[str, ...], reason: str, stamp: str
) -> None:
    """By its event and by a resync: it is written as refused, so that no other worker serves it by what was cut."""
    scene = Scene()
    for _ in range(2):
        scene.inbound.receive(connection=HERE, leg=leg, args=args, stamp=stamp)
    (call,) = scene.new
    assert (call.state, call.outcome, call.reason, call.hangup_cause) == (
        State.ENDING, Outcome.REFUSED, reason, Cause.NOT_ALLOWED,
    )  # fmt: skip
    assert scene.queue.enqueued == [commands.TearDown.of(call)]
    assert scene.arrivals == []


def test_a_leg_of_an_unknown_connection_is_left_alone() -> None:
    scene = Scene(destination=None)
    scene.enter(started())
    assert (scene.new, scene.arrivals) == ([], [])


def test_a_caller_of_an_app_instance_that_is_another_organization_s_is_left_to_it() -> None:
    elsewhere = replace(TARGET, served_by=None, is_anothers=True)
    scene = Scene(destination=Destination(target=elsewhere, route=None))
    scene.enter(started())
    assert scene.store.noted == [("AnotherOwner", 7)]
    assert (scene.new, scene.arrivals) == ([], [])


def test_a_caller_whom_another_organization_serves_is_left_to_it() -> None:
    """It had the app instance before: its call has the channel's entry, and is none of ours."""
    scene = Scene(replace(CONNECTED, connection_id=6, organization_id=2), app_of={6: (2, "app"), 7: (3, "app")})
    scene.enter(started())
    assert scene.store.noted == [("AnotherOwner", 7)]
    assert (scene.new, scene.reported, scene.resumed) == ([], [], [])


# ── legs that are known ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_caller_reported_again_before_its_admission_is_admitted_now() -> None:
    scene = Scene(replace(RECEIVED, entered_stamp=AFTER))
    scene.enter(started())
    assert scene.resumed == [(CALL_ID, Step.ADMISSION)]
    assert scene.new == []


@pytest.mark.parametrize("stamp", [ENTERED, ""])
def test_a_caller_reported_again_later_changes_nothing(stamp: str) -> None:
    scene = Scene(KNOWN)
    scene.enter(started(stamp=stamp, args=ARGS))
    assert (scene.new, scene.reported, scene.resumed, scene.runs.ended) == ([], [], [], [])
    assert scene.asterisk.rounds == []


@pytest.mark.parametrize("stamp", [BEFORE, AFTER])
def test_a_caller_who_is_with_the_agent_has_not_come_back_whatever_the_stamp(stamp: str) -> None:
    """The clock of an Asterisk may be set between two events: a late one may look like a new one."""
    bridge = {"id": NAMING.bridge_id(KNOWN), "channels": [NAMING.media_id(KNOWN), LEG.id]}
    here = channel(LEG.id, created=LEG.created)
    scene = Scene(KNOWN, asterisk=Rounds({LOOK_AT_BRIDGE: [bridge], PLACE[0]: [here]}))
    scene.enter(started(stamp=stamp))
    assert (scene.new, scene.reported) == ([], [])
    assert scene.asterisk.rounds == [[LOOK_AT_BRIDGE], PLACE]


@pytest.mark.parametrize("stamp", [BEFORE, AFTER])
@pytest.mark.parametrize("channels", [None, [NAMING.media_id(KNOWN)]])
def test_a_caller_who_came_back_ends_the_call_before_and_begins_another(stamp: str, channels: list[str] | None) -> None:
    bridge = GONE if channels is None else {"id": NAMING.bridge_id(KNOWN), "channels": channels}
    leg = channel(LEG.id, created=LEG.created)
    scene = Scene(KNOWN, asterisk=Rounds({LOOK_AT_BRIDGE: [bridge], f"GET /channels/{LEG.id}": [leg]}))
    scene.enter(started(stamp=stamp))
    assert scene.reported == [(CALL_ID, facts.CallerLeft(leg_id=LEG.id, stamp=stamp, is_up=True))]
    (call,) = scene.new
    # Its first id was used for the call that could not be written.
    assert (call.entry, call.call_id, call.state) == (2, UUID(int=2), State.RECEIVED)
    assert scene.arrivals[1] == scene.arrivals[0]


@pytest.mark.parametrize("answer", [GONE, channel(LEG.id, created="later")])
def test_a_late_event_begins_no_call_of_a_leg_that_went_down_with_its_asterisk(answer: object) -> None:
    answers: dict[str, Sequence[object]] = {LOOK_AT_BRIDGE: [GONE], f"GET /channels/{LEG.id}": [answer]}
    scene = Scene(KNOWN, asterisk=Rounds(answers))
    scene.enter(started(stamp=BEFORE))
    assert scene.reported == [(CALL_ID, facts.CallerLeft(leg_id=LEG.id, stamp=BEFORE, is_up=True))]
    assert scene.new == []


@pytest.mark.parametrize(
    ("answer", "is_new"),
    [
        pytest.param(channel(LEG.id, created=LEG.created), True, id="in the app"),
        pytest.param(channel(LEG.id, created=LEG.created, app="other"), False, id="elsewhere"),
        pytest.param(channel(LEG.id, created="later"), False, id="another leg of this id"),
        pytest.param(GONE, False, id="gone"),
    ],
)
def test_a_leg_whose_call_is_over_is_new_only_if_it_is_in_stasis(answer: object, *, is_new: bool) -> None:
    scene = Scene(replace(ABANDONED, left_stamp=BEFORE), asterisk=Rounds({f"GET /channels/{LEG.id}": [answer]}))
    scene.enter(started())
    assert [call.entry for call in scene.new] == ([2] if is_new else [])
    assert scene.reported == []
    assert scene.asterisk.rounds == [PLACE]


@pytest.mark.parametrize(
    ("known", "args", "is_ended"),
    [
        pytest.param(ABANDONED, ARGS, True, id="a platform's leg"),
        pytest.param(ABANDONED, (), False, id="a caller's leg"),
        pytest.param(replace(ABANDONED, outcome=Outcome.COMPLETED), ARGS, False, id="a call that had its run"),
    ],
)
def test_the_run_of_a_leg_that_ended_before_its_start_ends(
    known: Call, args: tuple[str, ...], *, is_ended: bool
) -> None:
    """Only the start names the run."""
    scene = Scene(known, asterisk=Rounds({f"GET /channels/{LEG.id}": [GONE]}))
    scene.enter(started(stamp=ENTERED, args=args))
    assert scene.new == []
    named = replace(known, direction=Direction.OUTBOUND, args=ARGS)
    assert scene.runs.ended == ([(named, NAMING.media_id(named), NAMING.bridge_id(named))] if is_ended else [])


def test_the_run_of_a_leg_whose_call_was_written_meanwhile_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker has recorded the end of this entry as abandoned, between the look at the entry before and now."""
    known = replace(ABANDONED, left_stamp=BEFORE)
    here = channel(LEG.id, created=LEG.created)
    scene = Scene(known, asterisk=Rounds({f"GET /channels/{LEG.id}": [here]}))
    monkeypatch.setattr(scene, "admit", lambda *_: False)
    scene.enter(started(args=ARGS))
    assert [call for call, _, _ in scene.runs.ended] == [replace(known, direction=Direction.OUTBOUND, args=ARGS)]


# ── legs that are one too many ───────────────────────────────────────────────────────────────────────────────────────


def one_too_many(*known: Call, answer: object = None) -> Scene:
    """Return a scene whose connection has had its last call."""
    scene = Scene(*known, asterisk=Rounds({f"GET /channels/{LEG.id}": [answer]}), most_calls=1)
    scene.enter(started(leg={"id": "the last"}))
    scene.arrivals.clear()
    return scene


def test_a_caller_who_is_one_too_many_is_refused_without_a_call() -> None:
    scene = one_too_many(answer=channel(LEG.id, created=LEG.created))
    scene.enter(started())
    assert [call.channel_id for call in scene.new] == ["the last"]
    assert scene.asterisk.rounds == [PLACE, [f"DELETE /channels/{LEG.id}"]]
    assert scene.asterisk.requests[-1].query == {"reason_code": "42"}
    assert scene.store.noted == [("TooManyCalls", 7)]


@pytest.mark.parametrize(
    ("known", "answer"),
    [
        pytest.param([], GONE, id="it does not exist"),
        pytest.param([], channel(LEG.id, created=LEG.created, app="other"), id="it has left"),
        pytest.param([replace(ABANDONED, left_stamp=BEFORE)], channel(LEG.id, created="later"), id="another leg"),
        pytest.param([KNOWN], channel(LEG.id, created=LEG.created), id="it has a call"),
    ],
)
def test_a_leg_that_is_one_too_many_and_not_a_new_caller_is_left_alone(known: list[Call], answer: object) -> None:
    scene = one_too_many(*known, answer=answer)
    scene.enter(started())
    assert scene.asterisk.rounds in ([], [PLACE])
    assert (scene.arrivals, scene.reported) == ([], [])


def test_a_leg_that_is_one_too_many_for_a_resync_waits_for_the_next_one() -> None:
    scene = one_too_many()
    scene.inbound.receive(connection=HERE, leg=LEG, args=())
    assert (scene.arrivals, scene.asterisk.rounds, scene.store.noted) == ([], [], [("TooManyCalls", 7)])


def test_a_leg_that_left_and_was_one_too_many_is_not_recorded() -> None:
    scene = one_too_many()
    assert scene.inbound.record_abandoned(connection=HERE, event=left()) is None
    assert [call.channel_id for call in scene.new] == ["the last"]


# ── legs that were over before ───────────────────────────────────────────────────────────────────────────────────────


def left(**more: Any) -> Event:
    return replace(started(**more), type=EventType.STASIS_END)


def test_a_leg_that_left_before_it_was_received_becomes_an_abandoned_call() -> None:
    scene = Scene(asterisk=Rounds({f"GET /channels/{LEG.id}": [GONE]}))
    assert scene.inbound.record_abandoned(connection=HERE, event=left(cause=16)) is None
    (call,) = scene.new
    moment = scene.store.now()
    assert (call.state, call.outcome, call.caller_left) == (State.ENDED, Outcome.ABANDONED, True)
    assert (call.ending_at, call.ended_at, call.deadline_at) == (moment, moment, None)
    assert (call.left_stamp, call.entered_stamp, call.hangup_cause, call.args) == (AFTER, None, 16, ())
    assert call.reason == "caller hung up before the call was received"
    # Its late StasisStart finds it.
    scene.enter(started(stamp=ENTERED))
    assert len(scene.new) == 1


def test_a_leg_that_left_without_a_stamp_is_recorded_without_one() -> None:
    scene = Scene()
    scene.inbound.record_abandoned(connection=HERE, event=left(stamp=""))
    assert [call.left_stamp for call in scene.new] == [None]


def test_a_call_that_was_written_meanwhile_is_returned() -> None:
    scene = Scene(KNOWN)
    assert scene.inbound.record_abandoned(connection=HERE, event=left()) == KNOWN
    assert scene.new == []


def test_nothing_is_recorded_for_an_unknown_connection() -> None:
    scene = Scene(destination=None, waiting=9)
    assert scene.inbound.record_abandoned(connection=HERE, event=left()) is None
    outcome = (Outcome.BUSY, "busy", 17)
    assert not scene.inbound.record_unanswered(connection=HERE, event=left(), outcome=outcome)
    assert (scene.new, scene.runs.ended_in) == ([], [])


def test_the_run_of_a_leg_that_was_not_answered_ends_with_its_call() -> None:
    scene = Scene(waiting=9)
    outcome = (Outcome.BUSY, "busy", 17)
    assert scene.inbound.record_unanswered(connection=HERE, event=left(), outcome=outcome)
    (call,) = scene.new
    assert (call.direction, call.workflow_run_id, call.state) == (Direction.OUTBOUND, 9, State.ENDED)
    assert (call.outcome, call.reason, call.hangup_cause) == outcome
    assert scene.runs.ended_in == [call]


def test_the_run_of_a_leg_that_is_recorded_already_is_not_ended_twice() -> None:
    scene = Scene(KNOWN, waiting=8)
    assert scene.inbound.record_unanswered(connection=HERE, event=left(), outcome=(Outcome.BUSY, "busy", 17))
    assert (scene.new, scene.runs.ended_in) == ([], [])


def test_a_leg_that_no_run_waits_for_is_not_recorded() -> None:
    scene = Scene()
    assert not scene.inbound.record_unanswered(connection=HERE, event=left(), outcome=(Outcome.BUSY, "busy", 17))
    assert (scene.new, scene.runs.ended_in) == ([], [])
