"""What a peer repeats: so many rows of each kind, and no statement more than it takes to find out what it is."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared.asterisk import events, rest, tcp_connector
from shared.asterisk.events import EventType
from shared.call import ids
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.limits import Limits
from shared.call.quota_rules import Quota
from shared.call.states import Direction, State
from shared.inbound_lookup import Destination
from shared.storage import database
from shared.storage.call_writer import CallWriter
from shared.storage.connections import Connections, InboundTarget
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import TimelineEntry
from tests.support import round_trips
from tests.support.call_rows import one
from tests.support.rounds import GONE, Rounds
from workers.asterisks import RestAsterisks
from workers.call_allowance import CallAllowance
from workers.inbound import Inbound
from workers.leg_events import LegEvents

pytestmark = pytest.mark.services

PREFIX = "aip-"
TARGET = InboundTarget(served_by=ConnectionVersion(1, 1), organization_id=3, quota=Quota(organization_id=3))
CONNECTION = ConnectionVersion(1, 1)
ROWS = 10
REPEATED = 60


@pytest.fixture
def store(db: database.Database) -> PostgresCalls:
    return PostgresCalls(db, who="test", prefix=PREFIX, rows_an_hour=ROWS)


class Handlers:
    """The handlers of events, without what these events do not need."""

    def __init__(self, store: PostgresCalls, writer: CallWriter) -> None:
        nothing = cast(Any, None)
        self.store = store
        self.inbound = Inbound(
            flow=nothing, writer=writer, connections=Connections(store.db), lookup=nothing, asterisks=nothing,
            runs=nothing, naming=Naming(PREFIX), allowance=CallAllowance(10), age_ms=lambda _at_ms: 0.0,
            transfer_legs=nothing,
        )  # fmt: skip
        self.legs = LegEvents(
            flow=nothing,
            writer=writer,
            inbound=self.inbound,
            naming=Naming(PREFIX),
            transfers=nothing,
            replacements=nothing,
            send_later=lambda _message, _wait: None,
            refusal_causes=nothing,
        )
        self.asterisks = RestAsterisks(
            nothing, nothing, Limits(), store, requests_at_once=1, most_sessions=lambda: 1, bounds=rest.AnswerBounds(),
            connector=cast(tcp_connector.TcpConnector, None),
        )  # fmt: skip
        self.asterisks.close()


@pytest.fixture
def handlers(store: PostgresCalls, writer: CallWriter) -> Handlers:
    return Handlers(store, writer)


def event(kind: EventType, leg_id: str = "1.1", name: str = "PJSIP/a-1", **more: Any) -> events.Event:
    leg = events.Channel(
        id=leg_id, name=name, created="c", state="Up", caller_number="", called_number="", app_name="", app_data=""
    )
    return events.Event(type=kind, application="a", stamp="s", channel=leg, **more)


def foreign_leg(handlers: Handlers, others: Call, number: int) -> None:
    leg_id = ids.media_id(PREFIX, others.call_id, 1 + number % 999)
    handlers.legs.leg_ended(connection=CONNECTION, event=event(EventType.CHANNEL_DESTROYED, leg_id))


def replaced(handlers: Handlers, _others: Call, number: int) -> None:
    entered = event(EventType.STASIS_START, f"1.{number}", replaces="1.0")
    handlers.inbound.caller_entered(connection=CONNECTION, at_ms=0, event=entered)


def foreign_media(handlers: Handlers, _others: Call, number: int) -> None:
    entered = event(EventType.STASIS_START, f"1.{number}", "Snoop/1")
    handlers.inbound.caller_entered(connection=CONNECTION, at_ms=0, event=entered)


def breaker(handlers: Handlers, _others: Call, number: int) -> None:
    handlers.asterisks._note(CONNECTION, True, f"failure {number}")


def findings(handlers: Handlers, _others: Call, number: int) -> None:
    found = [TimelineEntry(kind="note", name="Resync", detail=f"leg {number}.{each}") for each in range(20)]
    handlers.store.append_new(found, connection_id=1, within=timedelta(hours=1))


@pytest.mark.parametrize(
    ("repeat", "looks"), [(foreign_leg, 2), (replaced, 0), (foreign_media, 0), (breaker, 0), (findings, 1)]
)
def test_whatever_is_repeated_writes_so_many_rows(
    handlers: Handlers,
    db: database.Database,
    make: Callable[..., Call],
    repeat: Callable[[Handlers, Call, int], None],
    looks: int,
) -> None:
    others = make(connection_id=2, organization_id=4, state=State.PREPARED, attempt=1)
    for number in range(ROWS):
        repeat(handlers, others, number)
    with round_trips.recorded() as trips:
        for number in range(ROWS, REPEATED):
            repeat(handlers, others, number)
    assert one(db, "SELECT count(*) AS count FROM ari.timeline WHERE connection_id = 1")["count"] == ROWS
    assert list(itertools.chain(*trips)) == ["SELECT"] * looks * (REPEATED - ROWS)


class NoLegs(Rounds):
    """An Asterisk without the legs that it reports."""

    def _answer(self, what: str) -> object:
        return GONE


@pytest.mark.parametrize("kind", [EventType.STASIS_START, EventType.STASIS_END])
def test_forged_legs_become_so_many_calls(
    store: PostgresCalls, writer: CallWriter, db: database.Database, kind: EventType
) -> None:
    nothing = cast(Any, None)
    inbound = Inbound(
        flow=cast(Any, SimpleNamespace(admit=lambda call, _arrival: store.insert(call, [], None))), writer=writer,
        connections=cast(Any, SimpleNamespace(inbound_target=lambda _connection: TARGET)),
        lookup=cast(Any, SimpleNamespace(destination=lambda *_, assume: Destination(target=TARGET, route=None))),
        asterisks=cast(Any, SimpleNamespace(at=NoLegs().asterisks.of)), runs=nothing, naming=Naming(PREFIX),
        allowance=CallAllowance(10 * ROWS), age_ms=lambda _at_ms: 0.0,
        transfer_legs=nothing,
    )  # fmt: skip

    def forge(number: int) -> None:
        forged = event(kind, f"1.{number}")
        if kind is EventType.STASIS_START:
            inbound.caller_entered(connection=CONNECTION, at_ms=0, event=forged)
        else:
            inbound.record_abandoned(connection=CONNECTION, event=forged)

    for number in range(ROWS):
        forge(number)
    with round_trips.recorded() as trips:
        for number in range(ROWS, REPEATED):
            forge(number)
    assert one(db, "SELECT count(*) AS count FROM ari.calls")["count"] == ROWS
    assert one(db, "SELECT count(*) AS count FROM ari.timeline WHERE name = 'TooManyCalls'")["count"] == ROWS
    # A leg that is known is let be: so one that enters is looked for.
    looks = (REPEATED - ROWS) * (kind is EventType.STASIS_START)
    statements = list(itertools.chain(*trips))
    assert (statements.count("SELECT"), len(statements)) == (looks, looks + ROWS)


def test_forged_dial_events_write_a_call_once(handlers: Handlers, db: database.Database, writer: CallWriter) -> None:
    leg_id = f"{PREFIX}{uuid.uuid4().hex}-o"
    now = writer.store.now()
    call = Call(
        call_id=uuid.uuid4(), connection_id=1, connection_version=1, organization_id=3, channel_id=leg_id,
        channel_created="", entry=1, direction=Direction.OUTBOUND, state=State.RINGING, received_at=now,
        state_since=now, deadline_at=now + timedelta(seconds=60), request_id="r", dial_endpoint="PJSIP/1",
    )  # fmt: skip
    assert writer.store.insert(call, [], None)
    for status in ("BUSY", "NOANSWER", "CONGESTION") * 5:
        handlers.legs.dial_ended(connection=CONNECTION, event=event(EventType.DIAL, leg_id, dial_status=status))
    rows = one(db, "SELECT count(*) AS count FROM ari.timeline WHERE name = 'Dialled'")
    assert rows["count"] == 1
    stored = writer.store.load(call.call_id)
    assert stored is not None
    assert stored.dial_status == "BUSY"
