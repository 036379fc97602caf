"""Quotas on a real Postgres: limits, minutes of a month, and slots, exact for any number of concurrent calls."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from shared import errors
from shared.call import commands, facts
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.quota_rules import Quota
from shared.call.states import Cause, Direction, Outcome, State
from shared.call.steps import Step
from shared.platform import dograh
from shared.storage import database, quotas
from shared.storage.call_store import ClaimRequest
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from tests import databases
from tests.support.call_rows import make_call
from tests.support.flows import CommandQueue, decide
from workers.claims import Claim

pytestmark = pytest.mark.services

LIMITS = Limits()
ADMITTED = facts.Admitted(workflow_id=1, user_id=2, media_client="media")
CALLERS = 50
MARCH = datetime(2026, 3, 1, tzinfo=UTC)
NOON = MARCH + timedelta(hours=12)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    # As many connections as callers: they wait for each other at the lock alone.
    with databases.with_connection(database_url, size=CALLERS) as made:
        yield made


@pytest.fixture
def make(store: PostgresCalls) -> Callable[..., Call]:
    """Writes a call of a channel of its own."""
    return lambda **fields: make_call(store, uuid.uuid4().hex, **fields)


@pytest.fixture
def own(db: database.Database) -> quotas.Quotas:
    return quotas.Quotas(db, now=lambda: NOON)


def used(store: PostgresCalls, organization_id: int = 3) -> int:
    with store.transaction() as connection:
        return store.slots_used(connection, organization_id)


def admit(writer: CallWriter, call: Call, slots: int | None, owner: str = "") -> Call:
    """Admit a call that may be served, slots aside, as the step does; return it as it is then."""

    def work(claim: Claim) -> Sequence[facts.Fact]:
        connection = claim.begin()
        refusal = quotas.no_free_slot(writer.store, connection, call.organization_id, slots)
        return (refusal or ADMITTED,)

    decide(writer, call, work, step=Step.ADMISSION, owner=owner)
    after = writer.store.load(call.call_id)
    assert after is not None
    return after


def execute(db: database.Database, query: str, *values: object) -> None:
    with db.connection() as connection:
        connection.execute(query, values)


# ── slots ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("slots", [0, 1, 7, 49])
def test_of_fifty_concurrent_callers_as_many_are_admitted_as_there_are_slots(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call], slots: int
) -> None:
    waiting = [make() for _ in range(CALLERS)]
    gate = threading.Barrier(CALLERS)

    def arrive(call: Call) -> Call:
        gate.wait()
        return admit(writer, call, slots)

    with ThreadPoolExecutor(CALLERS) as pool:
        arrived = list(pool.map(arrive, waiting))
    states = [call.state for call in arrived]
    assert (states.count(State.ADMITTED), states.count(State.ENDING)) == (slots, CALLERS - slots)
    assert used(store) == slots
    for call in arrived:
        if call.state is State.ENDING:
            assert (call.outcome, call.hangup_cause) == (Outcome.REFUSED, Cause.BUSY)
            assert call.reason == f"too many concurrent calls: {slots} of {slots} slots in use"


def test_fifty_callers_and_as_many_who_leave_never_exceed_the_slots(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    """Callers come and go at the same time: after each admission at most as many slots as the limit are used."""
    slots, most = 5, []
    gate = threading.Barrier(CALLERS)

    def come_and_go(call: Call) -> None:
        gate.wait()
        admitted = admit(writer, call, slots)
        with store.transaction() as connection:
            store.lock_organization(connection, 3)
            most.append(store.slots_used(connection, 3))
        if admitted.state is State.ADMITTED:
            ending = writer.record(admitted, facts.CallerLeft()).call
            writer.record(ending, facts.LegsRemoved())

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(come_and_go, [make() for _ in range(CALLERS)]))
    assert len(most) == CALLERS
    assert 0 < max(most) <= slots
    assert used(store) == 0


def test_another_organization_does_not_wait_for_the_lock(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    other = make(organization_id=4)
    with store.transaction() as connection:
        store.lock_organization(connection, 3)
        connection.flush()
        assert admit(writer, other, 1).state is State.ADMITTED
        with ThreadPoolExecutor(1) as pool:
            blocked = pool.submit(admit, writer, make(), 1)
            with pytest.raises(errors.DatabaseUnavailable):
                # Waiting is bounded by a statement's time, and leaves the call as it was.
                blocked.result(timeout=10)
    assert used(store) == 0
    assert used(store, 4) == 1


def test_an_organization_s_calls_are_its_own(
    writer: CallWriter, store: PostgresCalls, make: Callable[..., Call]
) -> None:
    for organization_id in (3, 4):
        assert admit(writer, make(organization_id=organization_id), 1).state is State.ADMITTED
        assert admit(writer, make(organization_id=organization_id), 1).state is State.ENDING


def test_without_a_limit_nothing_is_counted_and_no_lock_is_waited_for(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    with store.transaction() as connection:
        store.lock_organization(connection, 3)
        connection.flush()
        assert admit(writer, make(), None).state is State.ADMITTED
    assert used(store) == 1


def test_an_originated_call_is_written_under_the_same_lock_and_count(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    """As an outbound call is written: lock, count, insert. Callers who come at the same time are counted with it."""
    slots, gate = 3, threading.Barrier(CALLERS)

    def originate() -> bool:
        gate.wait()
        now = store.now()
        call = Call(
            call_id=uuid.uuid4(), connection_id=1, connection_version=1, organization_id=3,
            channel_id=uuid.uuid4().hex, channel_created="", entry=1, direction=Direction.OUTBOUND,
            state=State.ORIGINATING, received_at=now, state_since=now, deadline_at=now, workflow_id=1,
        )  # fmt: skip
        with store.transaction() as connection:
            store.lock_organization(connection, 3)
            if store.slots_used(connection, 3) >= slots:
                return False
            return store.insert_in(connection, call)

    def arrive(call: Call) -> bool:
        gate.wait()
        return admit(writer, call, slots).state is State.ADMITTED

    callers = [make() for _ in range(CALLERS // 2)]
    with ThreadPoolExecutor(CALLERS) as pool:
        requested = [pool.submit(originate) for _ in range(CALLERS // 2)]
        admitted = [pool.submit(arrive, call) for call in callers]
        assert sum(done.result() for done in [*requested, *admitted]) == slots
    assert used(store) == slots


def test_a_call_that_ended_meanwhile_is_neither_admitted_nor_refused(
    writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make()
    left = writer.record(call, facts.CallerLeft()).call
    assert [admit(writer, call, slots) for slots in (0, 1, None)] == [left] * 3


@pytest.mark.parametrize(("slots", "command"), [(1, commands.CreateRun), (0, commands.TearDown)])
def test_an_admission_leads_to_its_command_and_ends_its_claim(
    store: PostgresCalls, queue: CommandQueue, make: Callable[..., Call], slots: int, command: type
) -> None:
    writer, call = CallWriter(store, queue, LIMITS, who="test"), make()
    claimed = store.claim(call.call_id, ClaimRequest(owner="w1", step=Step.ADMISSION, duration=timedelta(seconds=9)))
    assert claimed is not None
    after = admit(writer, claimed, slots, owner="w1")
    assert queue.enqueued == [command(call_id=call.call_id)]
    step = Step.RUNS if slots else Step.TEARDOWN
    assert store.claim(call.call_id, ClaimRequest(owner="w2", step=step, duration=timedelta(seconds=9))) is not None
    assert after.lock_version != claimed.lock_version


LIVE: list[tuple[State, dict[str, Any]]] = [
    (State.RECEIVED, {}),
    (State.ADMITTED, {"workflow_id": 1}),
    (State.PREPARED, {"workflow_id": 1, "attempt": 1, "workflow_run_id": 7}),
    (State.PREPARED, {"workflow_id": 1, "attempt": 2, "workflow_run_id": 7, "legs_created": True}),
    (State.JOINING, {"workflow_id": 1, "attempt": 1, "workflow_run_id": 7}),
    (State.CONNECTED, {"workflow_id": 1, "attempt": 1, "workflow_run_id": 7}),
    (State.ORIGINATING, {"workflow_id": 1, "direction": Direction.OUTBOUND}),
    (State.RINGING, {"workflow_id": 1, "direction": Direction.OUTBOUND}),
]
ENDS: list[facts.Fact] = [
    facts.Refused(reason="no", hangup_cause=17),
    facts.LegsRefused(attempt=1, reason="no"),
    facts.LegsUnknown(attempt=2, reason="no"),
    facts.MediaGone(attempt=1),
    facts.JoinRefused(attempt=1, reason="no"),
    facts.BridgeLost(attempt=1, reason="no"),
    facts.CallerHangingUp(hangup_cause=16),
    facts.CallerLeft(),
    facts.CallerGone(hangup_cause=16),
    facts.OriginateRefused(reason="no"),
    facts.EndRequested(reason="operator"),
    facts.DeadlinePassed(),
]


def test_a_slot_is_free_again_however_a_call_ends(
    store: PostgresCalls, writer: CallWriter, db: database.Database, make: Callable[..., Call]
) -> None:
    ways = 0
    for state, fields in LIVE:
        for fact in ENDS:
            long_ago = store.now() - timedelta(hours=9)
            overdue = {"deadline_at": long_ago, "step_retries": 99} if isinstance(fact, facts.DeadlinePassed) else {}
            in_doubt_until = {"attempt_in_doubt_until": long_ago} if isinstance(fact, facts.LegsUnknown) else {}
            call = make(state=state, **fields, **overdue, **in_doubt_until)
            admitted = int(state is not State.RECEIVED)
            assert used(store) == admitted, state
            ending = writer.record(call, fact).call
            if ending.state is not State.ENDING:
                execute(db, "DELETE FROM ari.calls")
                continue
            ways += 1
            # It uses its slot until its legs are verified to be gone; a call that was never admitted uses none.
            assert used(store) == admitted, (state, fact)
            # No request can take effect any more.
            execute(db, "UPDATE ari.calls SET attempt_in_doubt_until = NULL, earlier_in_doubt_until = NULL")
            certain = store.load(call.call_id)
            assert certain is not None
            writer.record(certain, facts.LegsRemoved())
            assert used(store) == 0, (state, fact)
            execute(db, "DELETE FROM ari.calls")
    assert ways >= 40


@pytest.mark.parametrize(("seconds", "slots"), [(0, 1), (55, 1), (61, 0), (100_000, 0)])
def test_a_call_that_cannot_be_torn_down_frees_its_slot_after_a_minute(
    store: PostgresCalls, make: Callable[..., Call], seconds: int, slots: int
) -> None:
    ended_at = store.now() - timedelta(seconds=seconds)
    make(state=State.ENDING, workflow_id=1, connected_at=ended_at - timedelta(seconds=5), ending_at=ended_at)
    assert used(store) == slots


def test_a_refused_call_never_has_a_slot(store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]) -> None:
    """A dialler that calls again and again does not keep out the callers who can be served."""
    first = admit(writer, make(), 1)
    for _ in range(5):
        assert admit(writer, make(), 1).state is State.ENDING
    assert used(store) == 1
    writer.record(writer.record(first, facts.CallerLeft()).call, facts.LegsRemoved())
    assert admit(writer, make(), 1).state is State.ADMITTED


# ── minutes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("connected_at", "ending_at", "seconds"),
    [
        pytest.param(None, NOON, 0, id="never-connected"),
        pytest.param(MARCH, MARCH + timedelta(seconds=90), 90, id="within"),
        pytest.param(MARCH - timedelta(seconds=60), MARCH + timedelta(seconds=30), 30, id="across-the-beginning"),
        pytest.param(MARCH - timedelta(seconds=60), MARCH, 0, id="ended-as-it-began"),
        pytest.param(MARCH - timedelta(days=9), MARCH - timedelta(days=8), 0, id="last-month"),
        pytest.param(NOON - timedelta(seconds=45), None, 45, id="live"),
        pytest.param(MARCH - timedelta(hours=1), None, 12 * 3600, id="live-since-last-month"),
        pytest.param(NOON + timedelta(seconds=1), None, 0, id="connected-a-moment-after-this-clock"),
    ],
)
def test_minutes_are_those_talked_in_the_month(
    own: quotas.Quotas, make: Callable[..., Call], connected_at: datetime | None, ending_at: datetime | None,
    seconds: float,
) -> None:  # fmt: skip
    make(state=State.CONNECTED if ending_at is None else State.ENDED, connected_at=connected_at, ending_at=ending_at)
    make(state=State.ENDED, connected_at=NOON - timedelta(hours=1), ending_at=NOON, organization_id=4)
    assert own.used_seconds(3) == pytest.approx(seconds)


def test_minutes_add_up_as_time_goes_on(db: database.Database, make: Callable[..., Call]) -> None:
    """The sum kept of a month and the sum read again are the same at every moment."""
    clock = NOON
    kept, fresh = (quotas.Quotas(db, now=lambda: clock) for _ in range(2))
    for number in range(12):
        ended_at = NOON + timedelta(seconds=20 * number)
        make(state=State.ENDED, connected_at=ended_at - timedelta(seconds=10), ending_at=ended_at)
        make(state=State.CONNECTED, connected_at=ended_at)
        clock = ended_at + timedelta(seconds=5)
        live = sum(20 * (number - older) + 5 for older in range(number + 1))
        assert kept.used_seconds(3) == pytest.approx(10 * (number + 1) + live)
    assert kept.used_seconds(3) == pytest.approx(fresh.used_seconds(3))
    clock = datetime(2026, 4, 1, 0, 1, tzinfo=UTC)
    assert kept.used_seconds(3) == pytest.approx(12 * 60), "a new month begins at nothing"
    assert kept.used_seconds(99) == 0


def test_calls_that_ended_a_minute_ago_are_not_read_again(db: database.Database, make: Callable[..., Call]) -> None:
    clock = NOON
    kept = quotas.Quotas(db, now=lambda: clock)
    make(state=State.ENDED, connected_at=NOON - timedelta(seconds=100), ending_at=NOON - timedelta(seconds=61))
    make(state=State.ENDED, connected_at=NOON - timedelta(seconds=100), ending_at=NOON - timedelta(seconds=59))
    assert kept.used_seconds(3) == pytest.approx(39 + 41)
    execute(db, "DELETE FROM ari.calls")
    assert kept.used_seconds(3) == pytest.approx(39)
    # Written late: it is younger than the kept sum, and is found.
    make(state=State.ENDED, connected_at=NOON - timedelta(seconds=60), ending_at=NOON - timedelta(seconds=59))
    assert kept.used_seconds(3) == pytest.approx(39 + 1)


@pytest.mark.parametrize("same_moment", [False, True])
def test_a_month_is_summed_up_piece_by_piece_and_by_any_process(
    db: database.Database, make: Callable[..., Call], monkeypatch: pytest.MonkeyPatch, *, same_moment: bool
) -> None:
    """Whichever process has written the row: each look reads one piece more, and in the end it is every call once."""
    monkeypatch.setattr(quotas, "_PIECE", 4)
    for number in range(11):
        ended_at = NOON - timedelta(hours=1, seconds=0 if same_moment and number > 2 else number)
        make(state=State.ENDED, connected_at=ended_at - timedelta(seconds=10), ending_at=ended_at)
    looks = [quotas.Quotas(db, now=lambda: NOON).used_seconds(3) for _ in range(5)]
    assert looks == ([110] * 5 if same_moment else [40, 80, 110, 110, 110])
    execute(db, "DELETE FROM ari.calls")
    assert quotas.Quotas(db, now=lambda: NOON).used_seconds(3) == 110


def test_a_command_waits_until_a_month_is_summed_up(
    own: quotas.Quotas, make: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_PIECE", 4)
    for number in range(11):
        ended_at = NOON - timedelta(seconds=61 + number)
        make(state=State.ENDED, connected_at=ended_at - timedelta(seconds=10), ending_at=ended_at)
    assert own.summed_seconds(3) == pytest.approx(110)


def test_of_two_looks_at_once_the_later_write_takes_nothing_back(
    db: database.Database, make: Callable[..., Call]
) -> None:
    for seconds in (90, 400):
        ended_at = NOON - timedelta(seconds=seconds)
        make(state=State.ENDED, connected_at=ended_at - timedelta(seconds=10), ending_at=ended_at)
    behind = quotas.Quotas(db, now=lambda: NOON - timedelta(seconds=300))
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with ThreadPoolExecutor(1) as pool:
        with db.transaction() as connection:
            assert _looked(connection) == 20
            look = pool.submit(behind.used_seconds, 3)
            while not connection.execute(waiting).rowcount:
                time.sleep(0.01)
        assert look.result(timeout=30) == 20, "it sees the younger call as well"
    with db.connection() as connection:
        assert connection.execute("SELECT until, seconds FROM ari.usage").fetchall() == [
            {"until": NOON - timedelta(seconds=60), "seconds": 20}
        ]


def _looked(connection: database.Connection) -> float:
    """Look at the month in a transaction that is open still."""

    class Opened:
        """A database with this one connection."""

        connection = staticmethod(lambda: contextlib.nullcontext(connection))

    return quotas.Quotas(cast(Any, Opened), now=lambda: NOON).used_seconds(3)


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_changed_is_changed_and_the_rest_is_kept(own: quotas.Quotas) -> None:
    assert own.of(3) == Quota(organization_id=3)
    assert own.all() == []
    own.change(3, {"concurrent_calls": 2})
    own.change(4, {"blocked": True})
    assert own.change(3, {"minutes_per_month": 100}) == own.of(3)
    assert own.all() == [
        Quota(organization_id=3, concurrent_calls=2, minutes_per_month=100),
        Quota(organization_id=4, blocked=True),
    ]
    own.change(3, {"concurrent_calls": None})
    assert own.of(3) == Quota(organization_id=3, minutes_per_month=100)
    assert own.remove(3)
    assert not own.remove(3)
    assert own.of(3) == Quota(organization_id=3)
    with pytest.raises(errors.DatabaseRefused):
        own.change(3, {"concurrent_calls": -1})


def test_many_changes_at_once_are_all_kept(own: quotas.Quotas) -> None:
    changes: list[dict[str, Any]] = [{"concurrent_calls": 2}, {"minutes_per_month": 100}, {"blocked": True}]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda change: own.change(3, change), changes))
    assert own.of(3) == Quota(organization_id=3, blocked=True, concurrent_calls=2, minutes_per_month=100)


class NoBudget:
    """The adapter `sql` makes no request."""


def test_the_adapter_refuses_by_the_limits_as_they_are_now(own: quotas.Quotas, make: Callable[..., Call]) -> None:
    call = make()
    make(state=State.ENDED, connected_at=NOON - timedelta(minutes=2), ending_at=NOON)

    def reason() -> str | None:
        refused = own.refusal(call, user_id=2, budget=NoBudget())
        return refused.reason if refused is not None else None

    assert reason() is None
    own.change(4, {"blocked": True, "minutes_per_month": 0})
    assert reason() is None, "another organization's"
    own.change(3, {"minutes_per_month": 3, "concurrent_calls": 0})
    assert reason() is None
    own.change(3, {"minutes_per_month": 2})
    assert reason() == "the month's 2 minutes are used up"
    own.change(3, {"blocked": True})
    assert reason() == "the organization is blocked"
    own.remove(3)
    assert reason() is None


def test_slots_are_the_lower_of_the_product_s_limit_and_the_platform_s(
    db: database.Database, own: quotas.Quotas
) -> None:
    execute(db, "INSERT INTO organizations (id, provider_id) VALUES (3, 'o3')")
    slots = quotas.Slots(own, dograh.Accounts(db), default=8)
    assert (slots.of(3), quotas.Slots(own, dograh.Accounts(db), default=None).of(3)) == (8, None)
    execute(
        db,
        "INSERT INTO organization_configurations (organization_id, key, value)"
        " VALUES (3, 'CONCURRENT_CALL_LIMIT', '{\"value\": 5}')",
    )
    assert slots.of(3) == 5
    own.change(3, {"concurrent_calls": 2})
    assert slots.of(3) == 2
    own.change(3, {"concurrent_calls": 20})
    assert slots.of(3) == 5
    assert slots.of(4) == 8
