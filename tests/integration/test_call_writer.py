"""Facts into calls on a real Postgres: conflicts, commands, the timeline, and steps with a transaction."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from shared import errors
from shared.call import commands, facts
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import Outcome, State
from shared.call.steps import Step
from shared.storage import database
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import TimelineEntry
from tests.support.call_rows import claim_of, claim_request, one, timeline
from tests.support.flows import CommandQueue, claimed, decide, flow
from workers.claims import Claim

pytestmark = pytest.mark.services

LIMITS = Limits()
ADMITTED = facts.Admitted(workflow_id=1, user_id=2, media_client="media")


def test_after_a_version_conflict_the_core_is_asked_again(
    store: PostgresCalls, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    stale = make(state=State.PREPARED, attempt=1, attempt_in_doubt_until=store.now() + timedelta(seconds=14))
    assert writer.record(stale, facts.LegsCreated(attempt=1)).call.state is State.PREPARED
    # For the call as it was read, this fact would not lead to the join.
    recorded = writer.record(stale, facts.MediaReady(attempt=1))
    assert recorded.call.state is State.JOINING
    assert queue.enqueued == [commands.JoinLegs(call_id=stale.call_id, attempt=1)]


def test_the_last_commit_leads_to_the_one_join(
    store: PostgresCalls, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    in_doubt_until = store.now() + timedelta(seconds=14)
    for number in range(10):
        call = make(f"2.{number}", state=State.PREPARED, attempt=1, attempt_in_doubt_until=in_doubt_until)
        both = [facts.LegsCreated(attempt=1), facts.MediaReady(attempt=1)]
        threads = [threading.Thread(target=writer.record, args=(call, fact)) for fact in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert queue.names == ["JoinLegs"] * 10


def test_a_fact_that_no_longer_applies_writes_only_its_requests(
    store: PostgresCalls, db: database.Database, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ENDED, deadline_at=None)
    request = TimelineEntry(kind="request", name="POST /x", detail="200", took_ms=3.0, attempt=1)
    recorded = writer.record(call, facts.LegsCreated(attempt=1), timeline=[request])
    assert (recorded.applied, queue.names) == (False, ["RemoveAttempt"])
    assert store.load(call.call_id) == call
    row = timeline(db, call)[-1]
    assert (row["kind"], row["name"], row["detail"], row["took_ms"], row["attempt"]) == (
        "request",
        "POST /x",
        "200",
        3.0,
        1,
    )


def test_a_result_that_no_longer_applies_ends_its_claim_all_the_same(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    """The media leg ended while the answer for the bridge was awaited: the next attempt must not wait for the claim."""
    call = make(state=State.PREPARED, attempt=2)
    assert store.claim(call.call_id, claim_request(Step.MEDIA)) is not None
    assert not writer.record(call, facts.LegsCreated(attempt=2), owner="another").applied
    assert claim_of(db, call) == ("w1", "media")
    assert not writer.record(call, facts.LegsCreated(attempt=2), owner="w1").applied
    assert claim_of(db, call) == (None, None)


def test_each_transition_is_in_the_timeline(
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


def test_commands_that_cannot_be_enqueued_do_not_undo_what_is_stored(
    store: PostgresCalls, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    queue.is_away = True
    call = make()
    assert writer.record(call, ADMITTED).applied
    loaded = store.load(call.call_id)
    assert loaded is not None
    assert loaded.state is State.ADMITTED


def test_a_run_is_created_exactly_once(
    store: PostgresCalls, db: database.Database, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)
    with db.connection() as connection:
        connection.execute("CREATE TABLE made (id serial PRIMARY KEY)")

    def create(claim: Claim) -> Sequence[facts.Fact]:
        row = claim.begin().execute("INSERT INTO made DEFAULT VALUES RETURNING id").fetchone()
        assert row is not None
        assert claim.call.call_id == call.call_id
        return (facts.RunCreated(workflow_run_id=int(row["id"])),)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decide(writer, call, create, step=Step.RUNS), range(8)))
    made = one(db, "SELECT count(*) AS runs, max(id) AS id FROM made")
    loaded = store.load(call.call_id)
    assert loaded is not None
    assert (made["runs"], loaded.workflow_run_id, loaded.state) == (1, made["id"], State.PREPARED)
    assert queue.names == ["StartMedia"]


def test_a_run_that_cannot_be_stored_is_not_created(
    store: PostgresCalls, db: database.Database, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)
    with db.connection() as connection:
        connection.execute("CREATE TABLE made (id serial PRIMARY KEY)")

    def create(claim: Claim) -> Sequence[facts.Fact]:
        claim.begin().execute("INSERT INTO made DEFAULT VALUES")
        raise errors.DatabaseUnavailable("gone in between")

    with pytest.raises(errors.DatabaseUnavailable):
        decide(writer, call, create, step=Step.RUNS)
    assert one(db, "SELECT count(*) AS runs FROM made")["runs"] == 0
    assert store.load(call.call_id) == call
    assert queue.enqueued == []


def test_a_statement_that_fails_in_a_step_fails_it_as_the_store_says(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    """An outage is retried, a refusal is a dead letter at once: only the store's errors say which it is."""
    call = make(state=State.ADMITTED)

    def convert(claim: Claim) -> Sequence[facts.Fact]:
        claim.begin().execute("SELECT 'x'::integer")
        return (facts.RunCreated(workflow_run_id=1),)

    with pytest.raises(errors.DatabaseRefused, match="invalid input syntax"):
        decide(writer, call, convert, step=Step.RUNS)
    assert store.load(call.call_id) == call


def test_a_row_that_stays_locked_fails_the_step_as_the_store_says(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)
    with store.transaction() as connection:
        assert store.lock(connection, call.call_id) == call
        with pytest.raises(errors.DatabaseUnavailable):
            writer.begin(call, lock=True)


def test_a_call_that_ended_meanwhile_gets_no_run(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)
    with db.connection() as connection:
        connection.execute("CREATE TABLE made (id serial PRIMARY KEY)")
    ended = writer.record(call, facts.CallerLeft()).call

    def create(claim: Claim) -> Sequence[facts.Fact]:
        claim.begin().execute("INSERT INTO made DEFAULT VALUES")
        return (facts.RunCreated(workflow_run_id=1),)

    decide(writer, call, create, step=Step.RUNS)
    assert store.load(call.call_id) == ended
    assert one(db, "SELECT count(*) AS runs FROM made")["runs"] == 0
    unknown = replace(call, call_id=uuid.uuid4())
    decide(writer, unknown, create, step=Step.RUNS)
    assert store.load(unknown.call_id) is None
    assert one(db, "SELECT count(*) AS runs FROM made")["runs"] == 0


def test_facts_stored_together_are_one_write_and_each_has_its_row(
    store: PostgresCalls, db: database.Database, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ADMITTED)

    claims: list[Claim] = []

    def create(claim: Claim) -> Sequence[facts.Fact]:
        claim.begin()
        return (facts.RunCreated(workflow_run_id=5),)

    def media(claim: Claim) -> Sequence[facts.Fact]:
        claims.append(claim)
        return ()

    flow(writer, {Step.RUNS: create, Step.MEDIA: media}, serves={Step.RUNS, Step.MEDIA}).run(
        claimed(writer, call, Step.RUNS, owner="w1")
    )
    (going,) = claims
    # The attempt begins with the claim of its step.
    assert going.call == store.load(call.call_id)
    assert (going.call.state, going.call.attempt) == (State.PREPARED, 1)
    rows = one(db, "SELECT array_agg(name || ' ' || kind || ' ' || coalesce(state_to, '') ORDER BY id) AS all"
                   " FROM ari.timeline WHERE kind <> 'transition' OR state_from IS NOT NULL")  # fmt: skip
    assert rows["all"] == ["RunCreated transition prepared", "AttemptBegun fact "]
    assert one(db, "SELECT attempt, media_id FROM ari.attempts")["media_id"] == f"aip-{call.call_id.hex}-m1"
    assert one(db, "SELECT claim_owner, claim_step FROM ari.calls") == {"claim_owner": "w1", "claim_step": "media"}
    # The claim's owner carries the step out itself: no command is due.
    assert queue.names == []


def test_after_a_restore_no_call_that_was_being_set_up_begins_an_attempt(
    db: database.Database, store: PostgresCalls, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    """The statement of docs/operations.md: a row of an hour ago does not know which ids were used since."""
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    (statement,) = re.findall(r"^ *(UPDATE ari\.calls.*?;)$", page, re.MULTILINE | re.DOTALL)
    long_ago = store.now() - timedelta(hours=1)
    made = {state: make(str(state), state=state, deadline_at=long_ago) for state in State if state is not State.ENDED}
    assert store.claim(made[State.PREPARED].call_id, claim_request(Step.MEDIA)) is not None
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
    assert set(queue.names) == {"TearDown"}
