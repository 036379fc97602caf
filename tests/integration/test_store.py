"""Calls in a real Postgres: compare-and-set, claims, the timeline written along, and the ledger on top."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from devstack import tcp_proxy
from shared import errors
from shared.call import commands, facts, ids, transitions
from shared.call.calls import Call, Change
from shared.call.limits import Limits
from shared.call.states import Direction, Outcome, State
from shared.call.steps import Step
from shared.storage import database, leases
from shared.storage.call_store import ClaimRequest
from shared.storage.call_writer import CallWriter, UnitOfWork
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import TimelineEntry

pytestmark = pytest.mark.services

LIMITS = Limits()
ADMITTED = facts.Admitted(workflow_id=1, user_id=2, media_client="media")


class CommandQueue:
    """Remembers what was ordered; refuses while the queue is away."""

    def __init__(self) -> None:
        self.given: list[commands.Command] = []
        self.away = False

    def enqueue(self, orders: Sequence[commands.Command], *, connection_id: int) -> None:
        if self.away:
            raise errors.QueueUnavailable("Redis: ConnectionError")
        self.given += orders

    @property
    def names(self) -> list[str]:
        return [type(order).__name__ for order in self.given]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    made = database.Database(database_url, size=10)
    made.open()
    with made.connection() as connection:
        connection.execute("INSERT INTO ari.connections (source_id, organization_id, state) VALUES (1, 3, 'active')")
        connection.execute("INSERT INTO ari.connections (source_id, organization_id, state) VALUES (2, 4, 'active')")
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " VALUES (1, 1, 'http://a', 'a', 'a', 'x'), (1, 2, 'http://a', 'a', 'a', 'y'),"
            " (2, 1, 'http://b', 'b', 'b', 'z')"
        )
    yield made
    made.close()


@pytest.fixture
def store(db: database.Database) -> PostgresCalls:
    return PostgresCalls(db, who="test", prefix="aip-")


@pytest.fixture
def orders() -> CommandQueue:
    return CommandQueue()


@pytest.fixture
def writer(store: PostgresCalls, orders: CommandQueue) -> CallWriter:
    return CallWriter(store, orders, LIMITS, who="test")


@pytest.fixture
def make(store: PostgresCalls) -> Callable[..., Call]:
    """Writes a call, `received` unless told; gives it back as written."""

    def made(channel_id: str = "1.1", **fields: Any) -> Call:
        now = store.now()
        values: dict[str, Any] = {
            "connection_id": 1, "connection_version": 1, "organization_id": 3, "channel_id": channel_id,
            "channel_created": "c", "entry": 1, "direction": Direction.INBOUND, "state": State.RECEIVED,
            "received_at": now, "state_since": now, "deadline_at": now + timedelta(seconds=3),
        } | fields  # fmt: skip
        call = Call(call_id=uuid.uuid4(), **values)
        assert store.insert(call, [], None)
        return call

    return made


def hold(step: Step = Step.ADMISSION, owner: str = "w1", seconds: float = 5.0) -> ClaimRequest:
    return ClaimRequest(owner=owner, step=step, duration=timedelta(seconds=seconds))


def claim_of(db: database.Database, call: Call) -> tuple[str | None, str | None]:
    row = one(db, "SELECT claim_owner, claim_step, claim_until FROM ari.calls WHERE call_id = %s", call.call_id)
    assert (row["claim_owner"] is None) == (row["claim_until"] is None)
    return row["claim_owner"], row["claim_step"]


def one(db: database.Database, query: str, *values: object) -> dict[str, Any]:
    with db.connection() as connection:
        row = connection.execute(query, values).fetchone()
    assert row is not None
    return row


def timeline(db: database.Database, call: Call) -> list[dict[str, Any]]:
    with db.connection() as connection:
        return connection.execute(
            "SELECT * FROM ari.timeline WHERE call_id = %s ORDER BY id", [call.call_id]
        ).fetchall()


def names(db: database.Database, call: Call) -> list[str]:
    return [row["name"] for row in timeline(db, call)]


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_comes_back_as_it_was_written(store: PostgresCalls, make: Callable[..., Call]) -> None:
    now = store.now()
    call = make(
        state=State.ENDING, deadline_at=now, step_retries=2, channel_name="PJSIP/ü", caller_number="+49",
        called_number="5",
        args=("a=1", "", "ü,)"), entered_stamp="s1", left_stamp="s2", workflow_id=1, user_id=2, media_client="media",
        workflow_run_id=9, attempt=2, attempt_in_doubt_until=now, earlier_in_doubt_until=now, legs_created=True,
        media_ready=True,
        caller_left=True, connected_at=now, ending_at=now, outcome=Outcome.COMPLETED, reason="x", hangup_cause=16,
    )  # fmt: skip
    assert store.load(call.call_id) == call
    assert store.load(uuid.uuid4()) is None


def test_a_call_is_inserted_once(store: PostgresCalls, db: database.Database, make: Callable[..., Call]) -> None:
    call = make()
    assert not store.insert(call, [TimelineEntry(kind="note", name="again")], hold())
    # The same entry under another id is the same call too.
    assert not store.insert(replace(call, call_id=uuid.uuid4()), [], None)
    assert names(db, call) == ["CallReceived"]
    assert claim_of(db, call) == (None, None)


def test_a_call_inserted_under_a_claim_is_held(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = replace(make(), call_id=uuid.uuid4(), channel_id="1.2")
    assert store.insert(call, [TimelineEntry(kind="note", name="found")], hold())
    assert claim_of(db, call) == ("w1", "admission")
    assert store.claim(call.call_id, hold(owner="w2")) is None
    assert names(db, call) == ["CallReceived", "found"]


def test_the_newest_entry_of_a_channel_is_found(store: PostgresCalls, make: Callable[..., Call]) -> None:
    first = make()
    second = make(entry=2, received_at=first.received_at + timedelta(seconds=1))
    assert store.last_entry(1, "1.1", "c") == second
    assert store.last_entry(1, "1.1", "another") is None
    assert store.last_entry(2, "1.1", "c") is None, "another tenant's channel of the same id"
    assert store.last_entry(1, "1.1%", "c") is None


def test_the_clock_is_postgres_s(store: PostgresCalls, db: database.Database) -> None:
    now = one(db, "SELECT clock_timestamp() AS now")["now"]
    assert abs((store.now() - now).total_seconds()) < 0.5
    assert store.now() <= store.now()


# ── compare-and-set ──────────────────────────────────────────────────────────────────────────────────────────────────


def admitted(call: Call, store: PostgresCalls) -> Call:
    return transitions.advance(call, ADMITTED, store.now(), LIMITS)[0]


def save(
    store: PostgresCalls, before: Call, after: Call, fact: facts.Fact = ADMITTED, *,
    timeline: Sequence[TimelineEntry] = (),
    owner: str = "", take: ClaimRequest | None = None,
) -> Call | None:  # fmt: skip
    return store.save([Change(before=before, after=after, fact=fact)], timeline=timeline, owner=owner, hold=take)


def test_a_save_raises_the_version(store: PostgresCalls, make: Callable[..., Call]) -> None:
    call = make()
    saved = save(store, call, admitted(call, store))
    assert saved is not None
    assert saved == store.load(call.call_id)
    assert (saved.state, saved.lock_version) == (State.ADMITTED, call.lock_version + 1)


def test_a_stale_save_is_lost_whole(store: PostgresCalls, db: database.Database, make: Callable[..., Call]) -> None:
    call = make()
    after = admitted(call, store)
    assert save(store, call, after) is not None
    request, note = TimelineEntry(kind="request", name="GET /x", took_ms=1.5), TimelineEntry(kind="note", name="found")
    assert save(store, call, replace(after, workflow_id=99), timeline=[request, note]) is None
    loaded = store.load(call.call_id)
    assert loaded is not None
    assert loaded.workflow_id == 1
    # What was asked of an Asterisk was asked, whatever became of the result.
    assert names(db, call) == ["CallReceived", "Admitted", "GET /x"]


def test_two_threads_save_once(store: PostgresCalls, make: Callable[..., Call]) -> None:
    call = make()
    after = admitted(call, store)
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda _: save(store, call, after), range(8)))
    assert sum(one is not None for one in saved) == 1


def test_an_attempt_is_a_row_before_it_is_asked_for(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED)
    until = store.now() + timedelta(seconds=14)
    begun = facts.AttemptBegun(attempt=1, in_doubt_until=until)
    attempting = save(store, call, transitions.advance(call, begun, store.now(), LIMITS)[0], begun)
    assert attempting is not None
    row = one(db, "SELECT * FROM ari.attempts WHERE call_id = %s", call.call_id)
    assert (row["attempt"], row["media_id"]) == (1, ids.media_id("aip-", call.call_id, 1))
    assert (row["bridge_id"], row["outcome"]) == (ids.bridge_id("aip-", call.call_id, 1), None)
    assert row["in_doubt_until"] == until
    unknown = facts.LegsUnknown(attempt=1, reason="no answer")
    after = save(store, attempting, transitions.advance(attempting, unknown, store.now(), LIMITS)[0], unknown)
    assert after is not None
    begun = facts.AttemptBegun(attempt=2, in_doubt_until=until)
    second = save(store, after, transitions.advance(after, begun, store.now(), LIMITS)[0], begun)
    assert second is not None
    created = facts.LegsCreated(attempt=2)
    assert save(store, second, transitions.advance(second, created, store.now(), LIMITS)[0], created) is not None
    with db.connection() as connection:
        rows = connection.execute("SELECT attempt, outcome, outcome_at FROM ari.attempts ORDER BY attempt").fetchall()
    assert [(row["attempt"], row["outcome"]) for row in rows] == [(1, "unknown"), (2, "created")]
    assert all(row["outcome_at"] is not None for row in rows)


# ── claims ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_of_two_threads_gets_the_claim(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make()
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda number: store.claim(call.call_id, hold(owner=f"w{number}")), range(8)))
    (winner,) = [number for number, one in enumerate(claimed) if one is not None]
    assert claim_of(db, call) == (f"w{winner}", "admission")
    held = claimed[winner]
    assert held is not None
    assert held.lock_version == call.lock_version + 1


def test_a_claim_makes_what_was_read_before_stale(store: PostgresCalls, make: Callable[..., Call]) -> None:
    call = make()
    assert store.claim(call.call_id, hold()) is not None
    assert save(store, call, admitted(call, store)) is None


def test_a_call_in_another_state_is_not_claimed(store: PostgresCalls, make: Callable[..., Call]) -> None:
    call = make()
    for step in set(Step) - {Step.ADMISSION}:
        assert store.claim(call.call_id, hold(step)) is None


def test_a_claim_that_ran_out_can_be_taken(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make()
    assert store.claim(call.call_id, hold(seconds=0)) is not None
    assert store.claim(call.call_id, hold(owner="w2")) is not None
    assert claim_of(db, call) == ("w2", "admission")


def test_a_claim_stays_when_another_fact_is_stored(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED, attempt=1, attempt_in_doubt_until=store.now() + timedelta(seconds=14))
    assert store.claim(call.call_id, hold(Step.MEDIA)) is not None
    assert writer.record(call, facts.MediaReady(attempt=1)).applied
    assert claim_of(db, call) == ("w1", "media")


def test_a_claim_goes_when_the_state_changes(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make()
    assert store.claim(call.call_id, hold()) is not None
    writer.record(call, facts.CallerLeft())
    assert claim_of(db, call) == (None, None)


def test_a_claim_goes_when_its_owner_reports(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.ENDING)
    held = store.claim(call.call_id, hold(Step.TEARDOWN))
    assert held is not None
    writer.record(held, facts.RemovalPending(reason="unreachable"), owner="somebody else")
    assert claim_of(db, call) == ("w1", "teardown")
    writer.record(held, facts.RemovalPending(reason="unreachable"), owner="w1")
    assert claim_of(db, call) == (None, None)


def test_a_claim_is_given_back_by_its_owner_only(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make()
    assert store.claim(call.call_id, hold()) is not None
    store.release(call.call_id, "w2")
    assert claim_of(db, call) == ("w1", "admission")
    store.release(call.call_id, "w1")
    assert claim_of(db, call) == (None, None)
    assert store.claim(call.call_id, hold(owner="w2")) is not None


def test_a_change_may_take_the_call_for_the_next_step(
    store: PostgresCalls, db: database.Database, writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED, attempt=1, legs_created=True)
    recorded = writer.record(call, facts.MediaReady(attempt=1), owner="w1", take=Step.BRIDGE)
    assert (recorded.held, recorded.applied, orders.given) == (True, True, [])
    assert claim_of(db, call) == ("w1", "bridge")
    again = writer.record(recorded.call, facts.MediaReady(attempt=1), owner="w2", take=Step.BRIDGE)
    assert (again.held, again.applied, orders.given) == (False, False, [])
    assert claim_of(db, call) == ("w1", "bridge")


def test_an_attempt_is_begun_by_one_worker_only(
    store: PostgresCalls, writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED)
    begun = facts.AttemptBegun(attempt=1, in_doubt_until=store.now() + timedelta(seconds=14))
    with ThreadPoolExecutor(8) as pool:
        recorded = list(
            pool.map(lambda number: writer.record(call, begun, owner=f"w{number}", take=Step.MEDIA), range(8))
        )
    assert sum(one.held for one in recorded) == 1
    assert sum(one.applied for one in recorded) == 1


def test_an_attempt_under_a_live_claim_does_not_begin(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED)
    assert store.claim(call.call_id, hold(Step.MEDIA)) is not None
    begun = facts.AttemptBegun(attempt=1, in_doubt_until=store.now())
    with pytest.raises(errors.TransientError):
        writer.record(call, begun, owner="w2", take=Step.MEDIA)
    loaded = store.load(call.call_id)
    assert loaded is not None
    assert loaded.attempt == 0


# ── the ledger ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_save_asks_the_core_again(writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]) -> None:
    stale = make(state=State.PREPARED, attempt=1)
    assert writer.record(stale, facts.LegsCreated(attempt=1)).call.state is State.PREPARED
    # On what it read, this one would not order the join.
    recorded = writer.record(stale, facts.MediaReady(attempt=1))
    assert recorded.call.state is State.JOINING
    assert orders.given == [commands.JoinLegs(call_id=stale.call_id, attempt=1)]


def test_whoever_commits_last_orders_the_one_join(
    writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    for number in range(10):
        call = make(f"2.{number}", state=State.PREPARED, attempt=1)
        both = [facts.LegsCreated(attempt=1), facts.MediaReady(attempt=1)]
        threads = [threading.Thread(target=writer.record, args=(call, fact)) for fact in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert orders.names == ["JoinLegs"] * 10


def test_a_fact_that_no_longer_applies_writes_only_its_requests(
    store: PostgresCalls, db: database.Database, writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ENDED, deadline_at=None)
    request = TimelineEntry(kind="request", name="POST /x", detail="200", took_ms=3.0, attempt=1)
    recorded = writer.record(call, facts.LegsCreated(attempt=1), timeline=[request])
    assert (recorded.applied, orders.names) == (False, ["RemoveAttempt"])
    assert store.load(call.call_id) == call
    row = timeline(db, call)[-1]
    assert (row["kind"], row["name"], row["detail"], row["took_ms"], row["attempt"]) == (
        "request",
        "POST /x",
        "200",
        3.0,
        1,
    )


def test_the_timeline_tells_each_transition(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(caller_number="+49151", called_number="555")
    call = writer.record(call, ADMITTED, timeline=[TimelineEntry(kind="request", name="GET /q", at=store.now())]).call
    writer.record(call, facts.CallerLeft(stamp="s"))
    arrived, asked, moved, ended = timeline(db, call)
    assert (arrived["name"], arrived["state_to"], arrived["who"]) == ("CallReceived", "received", "test")
    assert "+49151 → 555" in arrived["detail"]
    assert asked["kind"] == "request"
    assert (moved["kind"], moved["state_from"], moved["state_to"]) == ("transition", "received", "admitted")
    assert (ended["name"], ended["state_to"]) == ("CallerLeft", "ending")
    assert "abandoned: caller hung up" in ended["detail"]


def test_orders_that_cannot_be_given_do_not_undo_what_is_stored(
    store: PostgresCalls, writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    orders.away = True
    call = make()
    assert writer.record(call, ADMITTED).applied
    loaded = store.load(call.call_id)
    assert loaded is not None
    assert loaded.state is State.ADMITTED


def test_notes_of_a_connection_have_no_call(store: PostgresCalls, db: database.Database) -> None:
    store.append_timeline([TimelineEntry(kind="refusal", name="ForeignLeg", detail="a\x00b")], connection_id=7)
    row = one(db, "SELECT * FROM ari.timeline")
    assert (row["call_id"], row["connection_id"], row["detail"]) == (None, 7, "a\ufffdb")


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_created_exactly_once(
    store: PostgresCalls, db: database.Database, writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)
    with db.connection() as connection:
        connection.execute("CREATE TABLE made (id serial PRIMARY KEY)")

    def create(decision: UnitOfWork) -> None:
        assert decision.call.call_id == call.call_id
        row = decision.connection.execute("INSERT INTO made DEFAULT VALUES RETURNING id").fetchone()
        assert row is not None
        decision.learn(facts.RunCreated(workflow_run_id=int(row["id"])))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: writer.decide(call, create, owner=""), range(8)))
    made = one(db, "SELECT count(*) AS runs, max(id) AS id FROM made")
    loaded = store.load(call.call_id)
    assert loaded is not None
    assert (made["runs"], loaded.workflow_run_id, loaded.state) == (1, made["id"], State.PREPARED)
    assert orders.names == ["StartMedia"]


def test_a_run_that_cannot_be_stored_is_not_created(
    store: PostgresCalls, db: database.Database, writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)
    with db.connection() as connection:
        connection.execute("CREATE TABLE made (id serial PRIMARY KEY)")

    def create(decision: UnitOfWork) -> None:
        decision.connection.execute("INSERT INTO made DEFAULT VALUES")
        raise errors.DatabaseUnavailable("gone in between")

    with pytest.raises(errors.DatabaseUnavailable):
        writer.decide(call, create, owner="")
    assert one(db, "SELECT count(*) AS runs FROM made")["runs"] == 0
    assert store.load(call.call_id) == call
    assert orders.given == []


def test_a_call_that_ended_meanwhile_gets_no_run(
    db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)
    with db.connection() as connection:
        connection.execute("CREATE TABLE made (id serial PRIMARY KEY)")
    ended = writer.record(call, facts.CallerLeft()).call

    def create(decision: UnitOfWork) -> None:
        decision.connection.execute("INSERT INTO made DEFAULT VALUES")
        decision.learn(facts.RunCreated(workflow_run_id=1))

    recorded = writer.decide(call, create, owner="")
    assert (recorded.call, recorded.applied) == (ended, False)
    assert one(db, "SELECT count(*) AS runs FROM made")["runs"] == 0
    unknown = replace(call, call_id=uuid.uuid4())
    assert not writer.decide(unknown, create, owner="").applied
    assert one(db, "SELECT count(*) AS runs FROM made")["runs"] == 0


def test_facts_stored_together_are_one_write_and_each_has_its_row(
    store: PostgresCalls, db: database.Database, writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)

    def create(decision: UnitOfWork) -> None:
        decision.learn(facts.RunCreated(workflow_run_id=5))
        decision.learn(facts.AttemptBegun(attempt=1, in_doubt_until=store.now() + timedelta(hours=1)))

    recorded = writer.decide(call, create, owner="w1", take=Step.MEDIA)
    assert (recorded.held, recorded.call) == (True, store.load(call.call_id))
    assert (recorded.call.state, recorded.call.attempt) == (State.PREPARED, 1)
    assert recorded.call.lock_version == call.lock_version + 1
    told = one(db, "SELECT array_agg(name || ' ' || kind || ' ' || coalesce(state_to, '') ORDER BY id) AS all"
                   " FROM ari.timeline WHERE kind <> 'transition' OR state_from IS NOT NULL")  # fmt: skip
    assert told["all"] == ["RunCreated transition prepared", "AttemptBegun fact "]
    assert one(db, "SELECT attempt, media_id FROM ari.attempts")["media_id"] == f"aip-{call.call_id.hex}-m1"
    assert one(db, "SELECT claim_owner, claim_step FROM ari.calls") == {"claim_owner": "w1", "claim_step": "media"}
    # Whoever holds the call asks for the media itself.
    assert orders.names == []


# ── what is due ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_is_due_and_in_nobody_s_hands_is_overdue(store: PostgresCalls, make: Callable[..., Call]) -> None:
    now = store.now()
    late, later = now - timedelta(seconds=9), now - timedelta(seconds=60)
    due = make("due", deadline_at=late)
    longest = make("longest", deadline_at=later)
    make("early", deadline_at=now + timedelta(seconds=60))
    make("ended", state=State.ENDED, deadline_at=None)
    make("ended with a deadline", state=State.ENDED, deadline_at=late)
    claimed = make("claimed", deadline_at=late)
    assert store.claim(claimed.call_id, hold()) is not None
    ran_out = make("ran out", deadline_at=late + timedelta(seconds=1))
    assert store.claim(ran_out.call_id, hold(seconds=0)) is not None
    assert [call.channel_id for call in store.overdue(10)] == ["longest", "due", "ran out"]
    assert store.overdue(1) == [longest]
    assert due in store.overdue(2)


def test_open_calls_are_those_of_one_place(store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]) -> None:
    with store.db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " SELECT connection_id, 9, 'http://moved.example', app, ari_user, sealed_password"
            " FROM ari.connection_versions WHERE connection_id = 1 AND version = 1"
        )
    before = store.now() - timedelta(milliseconds=50)
    first, second = make("1"), make("2")
    make("3", state=State.ENDED)
    # After a change of the password alone: of a newer version, in the same endpoint and app.
    make("4", connection_version=2)
    make("5", connection_id=2)
    make("6", connection_version=9)
    assert store.claim(second.call_id, hold()) is not None
    found = {call.channel_id: (changed, claimed) for call, changed, claimed in store.open_calls(1, 1)}
    assert {name: claimed for name, (_, claimed) in found.items()} == {"1": False, "2": True, "4": False}
    assert found["1"][0] > before
    writer.record(first, ADMITTED)
    again = {call.channel_id: changed for call, changed, _ in store.open_calls(1, 1)}
    assert again["1"] > found["1"][0]


def test_what_a_newer_release_wrote_is_left_to_it_and_stops_nobody(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    past = store.now() - timedelta(seconds=9)
    calls_made = [make(channel_id=f"{number}", deadline_at=past + timedelta(seconds=number)) for number in range(4)]
    with db.connection() as connection:
        for call, change in zip(calls_made, ("state = 'transferring'", "outcome = 'moved'"), strict=False):
            connection.execute(f"UPDATE ari.calls SET {change} WHERE call_id = %s", [call.call_id])
    # The batch is not filled by what cannot be driven on.
    assert [call.channel_id for call in store.overdue(3)] == ["2", "3"]
    assert {call.channel_id for call, _, _ in store.open_calls(1, 1)} == {"2", "3"}
    with pytest.raises(errors.CallUnreadable, match="transferring"):
        store.load(calls_made[0].call_id)


def test_a_lease_is_one_holder_s_until_it_is_given_back_or_runs_out(db: database.Database) -> None:
    held = leases.Leases(db)
    assert held.take("resync of 1", "a", 60) == 1
    assert held.take("resync of 1", "b", 60) is None
    assert held.take("resync of 2", "b", 60) == 1, "another lease"
    held.release("resync of 1", "b")
    assert held.take("resync of 1", "b", 60) is None, "only the holder gives it back"
    held.release("resync of 1", "a")
    assert held.take("resync of 1", "b", 0) == 2
    assert held.take("resync of 1", "a", 60) == 3, "it ran out"


def test_a_database_that_was_asked_for_often_while_it_was_away_is_found_again(database_url: str) -> None:
    with tcp_proxy.Wire(database_url) as wire:
        patient = database.Database(wire.url, size=1, statement_seconds=0.05)
        patient.open()
        try:
            wire.cut()
            # For longer than the pool tries to connect by itself (5 s).
            away_until = time.monotonic() + 7
            while time.monotonic() < away_until:
                with pytest.raises(errors.DatabaseUnavailable), patient.connection():
                    pass
            wire.mend()
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline:
                with contextlib.suppress(errors.DatabaseUnavailable), patient.connection() as connection:
                    assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}
                    return
            pytest.fail("never again")
        finally:
            patient.close()


def test_a_database_that_is_away_is_said_so() -> None:
    db = database.Database("postgresql://u:hunter2@127.0.0.1:1/x", size=1, statement_seconds=0.3)
    db.open()
    try:
        with pytest.raises(errors.DatabaseUnavailable) as caught:
            PostgresCalls(db, who="test", prefix="aip-").now()
        assert "hunter2" not in str(caught.value)
    finally:
        db.close()


def test_after_a_restore_no_call_that_was_being_set_up_begins_an_attempt(
    db: database.Database, store: PostgresCalls, writer: CallWriter, orders: CommandQueue, make: Callable[..., Call]
) -> None:
    """The statement of docs/operations.md: a row of an hour ago has forgotten which ids were used since."""
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    (statement,) = re.findall(r"^ *(UPDATE ari\.calls.*?;)$", page, re.MULTILINE | re.DOTALL)
    long_ago = store.now() - timedelta(hours=1)
    made = {state: make(str(state), state=state, deadline_at=long_ago) for state in State if state is not State.ENDED}
    assert store.claim(made[State.PREPARED].call_id, hold(Step.MEDIA)) is not None
    with db.connection() as connection:
        connection.execute(statement)
    for state, call in made.items():
        now = store.load(call.call_id)
        assert now is not None
        if state in (State.CONNECTED, State.ENDING):
            assert now == call
            continue
        assert (now.state, now.outcome, now.reason) == (State.ENDING, Outcome.FAILED, "database restored")
        assert claim_of(db, call) == (None, None)
        writer.record(now, facts.DeadlinePassed())
    assert set(orders.names) == {"TearDown"}


def test_an_outage_of_postgres_is_told_once_and_so_is_its_end(
    db: database.Database, caplog: pytest.LogCaptureFixture
) -> None:
    def ask() -> None:
        with contextlib.suppress(errors.DatabaseUnavailable), db.connection() as connection:
            connection.execute("SELECT 1")

    # arictl, run by other tests in this process, silences it.
    with caplog.at_level("WARNING", logger="shared.storage.database"):
        for _ in range(3):
            # Each time as if the server had stopped.
            with contextlib.suppress(errors.DatabaseUnavailable), db.connection() as connection:
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert caplog.messages == ["Postgres is away: tried again until it is back"]
        ask()
        ask()
        # A statement that takes too long is no outage.
        with pytest.raises(errors.DatabaseUnavailable), db.connection() as connection:
            connection.execute("SELECT pg_sleep(5)")
    assert caplog.messages == ["Postgres is away: tried again until it is back", "Postgres is back"]
