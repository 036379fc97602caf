"""Calls in a real Postgres: rows, compare-and-set, the timeline written along, and which calls are due."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from shared import errors
from shared.call import facts, ids, transitions
from shared.call.calls import Call, Change
from shared.call.ids import ConnectionVersion
from shared.call.limits import Limits
from shared.call.states import Outcome, State
from shared.storage import database
from shared.storage.call_store import OpenCall
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import TimelineEntry
from tests.support.call_rows import (
    ADMITTED,
    admitted,
    claim_of,
    claim_request,
    names,
    one,
    save,
    timeline,
)
from tests.support.flows import CommandQueue

pytestmark = pytest.mark.services

LIMITS = Limits()


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


def test_a_call_has_an_entry_of_a_name_once(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call, other = make(), make("1.2")
    heard = TimelineEntry(kind="note", name="AgentHeard", detail="after 0.1 s")
    assert store.append_once(heard, call=call)
    assert not store.append_once(replace(heard, detail="after 9.0 s"), call=call)
    assert store.append_once(replace(heard, name="CallerHeard"), call=call)
    assert store.append_once(heard, call=other)
    assert names(db, call)[-2:] == ["AgentHeard", "CallerHeard"]


def test_a_call_is_inserted_once(store: PostgresCalls, db: database.Database, make: Callable[..., Call]) -> None:
    call = make()
    assert not store.insert(call, [TimelineEntry(kind="note", name="again")], claim_request())
    # The same entry under another id is the same call too.
    assert not store.insert(replace(call, call_id=uuid.uuid4()), [], None)
    assert names(db, call) == ["CallReceived"]
    assert claim_of(db, call) == (None, None)


def test_a_call_inserted_under_a_claim_is_held(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = replace(make(), call_id=uuid.uuid4(), channel_id="1.2")
    assert store.insert(call, [TimelineEntry(kind="note", name="found")], claim_request())
    assert claim_of(db, call) == ("w1", "admission")
    assert store.claim(call.call_id, claim_request(owner="w2")) is None
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


def test_a_save_draws_a_version(store: PostgresCalls, make: Callable[..., Call]) -> None:
    call = make()
    saved = save(store, call, admitted(call, store))
    assert saved is not None
    assert saved == store.load(call.call_id)
    assert saved.state is State.ADMITTED
    assert 0 < saved.lock_version <= 2**30


def test_what_a_fail_over_has_lost_is_not_written_over_by_who_knows_it(
    store: PostgresCalls, make: Callable[..., Call], db: database.Database
) -> None:
    """The row is written anew, as often as before: a counter would be the same by then."""
    call = make()
    lost = save(store, call, admitted(call, store))
    assert lost is not None
    with db.connection() as connection:
        connection.execute(
            "UPDATE ari.calls SET state = 'received', lock_version = %s WHERE call_id = %s",
            [call.lock_version, call.call_id],
        )
    again = save(store, call, admitted(call, store))
    assert again is not None
    assert save(store, lost, replace(lost, step_retries=1)) is None


def test_a_stale_save_is_lost_whole(store: PostgresCalls, db: database.Database, make: Callable[..., Call]) -> None:
    call = make()
    after = admitted(call, store)
    assert save(store, call, after) is not None
    request, note = TimelineEntry(kind="request", name="GET /x", took_ms=1.5), TimelineEntry(kind="note", name="found")
    assert save(store, call, replace(after, workflow_id=99), timeline=[request, note]) is None
    loaded = store.load(call.call_id)
    assert loaded is not None
    assert loaded.workflow_id == 1
    # The request was made, whatever became of the result.
    assert names(db, call) == ["CallReceived", "Admitted", "GET /x"]


def test_two_threads_save_once(store: PostgresCalls, make: Callable[..., Call]) -> None:
    call = make()
    after = admitted(call, store)
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda _: save(store, call, after), range(8)))
    assert sum(one is not None for one in saved) == 1


def test_an_attempt_is_a_row_before_its_requests_are_made(
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


def test_only_a_call_that_is_due_and_unclaimed_is_overdue(store: PostgresCalls, make: Callable[..., Call]) -> None:
    now = store.now()
    late, later = now - timedelta(seconds=9), now - timedelta(seconds=60)
    due = make("due", deadline_at=late)
    longest = make("longest", deadline_at=later)
    make("early", deadline_at=now + timedelta(seconds=60))
    make("ended", state=State.ENDED, deadline_at=None)
    make("ended with a deadline", state=State.ENDED, deadline_at=late)
    claimed = make("claimed", deadline_at=late)
    assert store.claim(claimed.call_id, claim_request()) is not None
    ran_out = make("ran out", deadline_at=late + timedelta(seconds=1))
    assert store.claim(ran_out.call_id, claim_request(seconds=0)) is not None
    assert [call.channel_id for call in store.overdue(10)] == ["longest", "due", "ran out"]
    assert store.overdue(1) == [longest]
    assert due in store.overdue(2)


def open_calls(store: PostgresCalls) -> dict[str, OpenCall]:
    """Return connection 1's open calls by channel."""
    return {found.call.channel_id: found for found in store.open_calls(ConnectionVersion(1, 1))}


def test_open_calls_are_those_of_one_app_instance(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    with store.db.connection() as connection:
        connection.execute(
            "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
            " SELECT connection_id, 9, 'http://moved.example', app, ari_user, sealed_password"
            " FROM ari.connection_versions WHERE connection_id = 1 AND version = 1"
        )
    before = store.now() - timedelta(milliseconds=50)
    first, second = make("1"), make("2")
    make("3", state=State.ENDED)
    # After a change of the password alone: a newer version in the same app instance.
    make("4", connection_version=2)
    make("5", connection_id=2)
    make("6", connection_version=9)
    assert store.claim(second.call_id, claim_request()) is not None
    found = open_calls(store)
    assert {name: call.is_claimed for name, call in found.items()} == {"1": False, "2": True, "4": False}
    assert found["1"].changed_at > before
    writer.record(first, ADMITTED)
    again = open_calls(store)
    assert again["1"].changed_at > found["1"].changed_at


def test_every_write_of_a_call_says_when_an_earlier_release_s_too(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make("1")
    moments = [open_calls(store)["1"].changed_at]
    with db.connection() as connection:
        connection.execute("UPDATE ari.calls SET claim_owner = 'w' WHERE call_id = %s", [call.call_id])
    moments.append(open_calls(store)["1"].changed_at)
    store.append_timeline([TimelineEntry(kind="note", name="x")], call=call)
    assert moments[0] < moments[1] == open_calls(store)["1"].changed_at


class _Later(PostgresCalls):
    """A store whose clock is moved on."""

    waited = timedelta()

    def now(self) -> datetime:
        return super().now() + self.waited


@pytest.mark.parametrize("reasons", [("no answer",), ("answered 401", "answered 503")], ids=["one", "changing"])
def test_a_day_without_an_answer_writes_few_rows(
    db: database.Database, make: Callable[..., Call], reasons: tuple[str, ...]
) -> None:
    store = _Later(db, who="test", prefix="aip-")
    writer = CallWriter(store, CommandQueue(), LIMITS, who="test")
    call = make(state=State.ENDING, attempt=2, outcome=Outcome.COMPLETED, reason="agent hung up")
    requests = [TimelineEntry(kind="request", name=f"DELETE /{number}", detail="no answer") for number in range(6)]
    tries = 0
    while call.state is State.ENDING:
        assert call.deadline_at is not None
        store.waited += max(timedelta(), call.deadline_at - store.now())
        call = writer.record(call, facts.DeadlinePassed()).call
        pending = facts.RemovalPending(reason=reasons[tries % len(reasons)])
        call = writer.record(call, pending, timeline=requests).call
        tries += 1
    assert (call.state, call.unverified, call.reason) == (State.ENDED, True, "agent hung up; not verified")
    assert tries > 24 * 60
    rows = timeline(db, call)
    assert len(rows) < 60
    assert [row["detail"] for row in rows if row["name"] == "RemovalPending"][-2:] == [
        f"reason={reasons[-1]}, tries=1024", f"reason={reasons[(tries - 1) % len(reasons)]}",
    ]  # fmt: skip


def test_a_call_written_by_a_newer_release_is_skipped_and_stops_no_other(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    past = store.now() - timedelta(seconds=9)
    calls_made = [make(channel_id=f"{number}", deadline_at=past + timedelta(seconds=number)) for number in range(4)]
    with db.connection() as connection:
        for call, change in zip(calls_made, ("state = 'transferring'", "outcome = 'moved'"), strict=False):
            connection.execute(f"UPDATE ari.calls SET {change} WHERE call_id = %s", [call.call_id])
    # The batch is not filled by calls that cannot be read.
    assert [call.channel_id for call in store.overdue(3)] == ["2", "3"]
    assert set(open_calls(store)) == {"2", "3"}
    with pytest.raises(errors.CallUnreadable, match="transferring"):
        store.load(calls_made[0].call_id)


def test_what_postgres_cannot_hold_is_replaced_in_the_timeline(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make()
    fact = facts.RemovalPending(reason="a\x00b\ud800 \U0001f600\n")
    entry = TimelineEntry(kind="request", name="GET /\udfff", detail="c\x00d\ud800")
    assert store.save([Change(before=call, after=call, fact=fact)], timeline=[entry], owner="", claim=None) is not None
    with db.connection() as connection:
        rows = connection.execute("SELECT name, detail FROM ari.timeline ORDER BY id").fetchall()
    assert [(row["name"], row["detail"]) for row in rows[1:]] == [
        ("GET /?", "c\ufffdd?"),
        ("RemovalPending", "reason=a\ufffdb? \U0001f600\n"),
    ]


def test_a_note_is_written_once_though_postgres_cannot_hold_it_as_it_is(
    store: PostgresCalls, db: database.Database
) -> None:
    for _ in range(2):
        store.append_new(
            [TimelineEntry(kind="note", name="found", detail="a\x00b")], connection_id=7, within=timedelta(hours=1)
        )
    assert one(db, "SELECT count(*) AS count FROM ari.timeline") == {"count": 1}


def test_notes_of_a_connection_have_no_call(store: PostgresCalls, db: database.Database) -> None:
    store.append_timeline([TimelineEntry(kind="refusal", name="ForeignLeg", detail="a\x00b")], connection_id=7)
    row = one(db, "SELECT * FROM ari.timeline")
    assert (row["call_id"], row["connection_id"], row["detail"]) == (None, 7, "a\ufffdb")
