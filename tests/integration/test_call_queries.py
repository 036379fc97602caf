"""What the operator asks of calls: filters, pages, and calls that are followed. The plans: test_plans.py."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from shared import errors
from shared.call.calls import Call, replace
from shared.call.states import Direction, Fault, Outcome, State
from shared.operator import call_queries
from shared.operator.call_following import Following
from shared.operator.call_queries import Cursor, Filter
from shared.storage import database
from shared.storage.postgres_calls import PostgresCalls
from tests import arictl_program

pytestmark = pytest.mark.services

CONNECTIONS = """
INSERT INTO ari.connections (source_id, organization_id, state)
VALUES (1, 1, 'active'), (2, 1, 'active'), (3, 2, 'active');
INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)
SELECT connection_id, 1, 'http://pbx-' || connection_id, 'a', 'a', 'x' FROM ari.connections
"""
FAILED = {"outcome": Outcome.FAILED, "reason": "media refused: 400", "fault": Fault.ASTERISK}


class Calls:
    """Made-up calls in a database; each is a second older than the one made before."""

    def __init__(self, db: database.Database) -> None:
        self.db = db
        self.store = PostgresCalls(db, who="worker-1", prefix="aip-")
        self.newest_at = self.store.now()
        self.made: list[Call] = []

    def make(self, **changes: Any) -> uuid.UUID:
        """Store an ended call."""
        received_at = changes.pop("received_at", self.newest_at - timedelta(seconds=len(self.made)))
        values: dict[str, Any] = {
            "call_id": uuid.uuid4(), "connection_id": 1, "connection_version": 1, "organization_id": 1,
            "channel_id": f"1700.{len(self.made)}", "channel_created": "c", "entry": 1, "direction": Direction.INBOUND,
            "state": State.ENDED, "received_at": received_at, "state_since": received_at, "deadline_at": None,
            "caller_number": "+491", "called_number": "5551", "outcome": Outcome.COMPLETED, "reason": "caller hung up",
        }  # fmt: skip
        if changes.get("state", State.ENDED) is not State.ENDED:
            values |= {"outcome": None, "reason": None, "deadline_at": received_at + timedelta(hours=1)}
        call = Call(**values | changes)
        assert self.store.insert(call, [], None)
        self.made.append(call)
        return call.call_id

    def change(self, call_id: uuid.UUID, **changes: Any) -> None:
        """Write a call once more."""
        sets = ", ".join(f"{name} = %s" for name in changes)
        with self.db.connection() as connection:
            connection.execute(f"UPDATE ari.calls SET {sets} WHERE call_id = %s", [*changes.values(), call_id])

    def of(self, **wanted: Any) -> list[uuid.UUID]:
        """Return the calls that a filter lists."""
        return [call.call_id for call in call_queries.list_calls(self.db, Filter(**wanted)).calls]


@pytest.fixture
def calls(database_url: str) -> Iterator[Calls]:
    with arictl_program.filled(database_url) as db:
        with db.connection() as connection:
            for statement in CONNECTIONS.split(";"):
                connection.execute(statement)
        yield Calls(db)


def test_each_filter_lists_the_calls_that_have_it_newest_first(calls: Calls) -> None:
    now = calls.newest_at
    live = calls.make(state=State.CONNECTED, workflow_run_id=7)
    busy = calls.make(outcome=Outcome.BUSY, fault=Fault.FAR_END, reason="busy", called_number="+491")
    other = calls.make(organization_id=2, connection_id=3, caller_number="+492", called_number="+491")
    failed = calls.make(**FAILED, connection_id=2, replacements=("1700.9",))
    ending = calls.make(**FAILED, state=State.ENDING)
    for wanted, expected in [
        ({}, [live, busy, other, failed, ending]),
        ({"is_live": True}, [live, ending]),
        ({"is_live": False}, [busy, other, failed]),
        ({"state": State.ENDING}, [ending]),
        ({"state": State.ENDED, "is_live": True}, []),
        ({"number": "+491"}, [live, busy, other, failed, ending]),
        ({"number": "+492"}, [other]),
        ({"number": "5551", "is_live": True}, [live, ending]),
        ({"number": "+49"}, []),
        ({"channel": "1700.2"}, [other]),
        ({"channel": "1700.9"}, [failed]),
        ({"workflow_run_id": 7}, [live]),
        ({"organization_id": 2}, [other]),
        ({"connection_id": 2}, [failed]),
        ({"connection_id": 99}, []),
        ({"outcome": Outcome.BUSY}, [busy]),
        ({"outcome": Outcome.FAILED}, [failed, ending]),
        ({"fault": Fault.ASTERISK}, [failed, ending]),
        ({"fault": Fault.ASTERISK, "number": "5551", "connection_id": 2}, [failed]),
        ({"fault": Fault.US}, []),
        ({"since": now - timedelta(seconds=2)}, [live, busy, other]),
        ({"until": now - timedelta(seconds=2)}, [failed, ending]),
        ({"since": now - timedelta(seconds=3), "until": now - timedelta(seconds=1)}, [other, failed]),
    ]:
        assert calls.of(**wanted) == expected, wanted  # type: ignore[arg-type]


def test_pages_follow_each_other_without_a_gap_though_calls_came_in_the_same_moment(calls: Calls) -> None:
    at = calls.newest_at
    made = {calls.make(received_at=at - timedelta(seconds=number // 3)) for number in range(10)}
    seen, after, pages = [], None, 0
    while pages == 0 or after is not None:
        page = call_queries.list_calls(calls.db, after=after, limit=4)
        # A new call moves nothing.
        calls.make(received_at=at + timedelta(seconds=1))
        assert len(page.calls) <= 4
        seen += [call.call_id for call in page.calls]
        after, pages = page.next, pages + 1
    assert (set(seen), len(seen), pages) == (made, 10, 3)


def test_a_cursor_is_read_as_it_was_written_and_nothing_else_is() -> None:
    cursor = Cursor(received_at=datetime.fromisoformat("2026-11-29T21:30:00.000001+00:00"), call_id=uuid.uuid4())
    assert Cursor.parse(str(cursor)) == cursor
    for text in (
        "",
        "1-2",
        f"{cursor}0",
        f"-{cursor}",
        "'; DROP TABLE ari.calls; --",
        "9" * 18 + f"-{cursor.call_id.hex}",
    ):
        with pytest.raises(errors.PermanentError, match="no cursor"):
            Cursor.parse(text)


def test_calls_of_an_earlier_release_have_a_fault_when_they_are_read_and_are_found_by_it(calls: Calls) -> None:
    """It has ended many of them; a page is filled up from those that have the fault."""
    ours = [calls.make(outcome=Outcome.FAILED, reason="media not created: the worker did not report back")]
    for _ in range(5):
        calls.make(outcome=Outcome.FAILED, reason="agent lost: media leg ended, cause 38")
    ours.append(
        calls.make(outcome=Outcome.FAILED, reason="media not created: the worker did not report back", fault=Fault.US)
    )
    unknown = calls.make(outcome=Outcome.FAILED, reason="joining for too long")
    newer = calls.make()
    calls.change(newer, outcome="forwarded", reason="by a newer release", fault="weather")
    assert calls.of(fault=Fault.US) == ours
    assert calls.of(fault=Fault.UNKNOWN) == [unknown]
    assert len(calls.of(fault=Fault.AGENT)) == 5
    page = call_queries.list_calls(calls.db, Filter(fault=Fault.US), limit=2)
    assert ([call.call_id for call in page.calls], page.next) == (ours, None)
    assert call_queries.get(calls.db, newer).call.fault == "weather"
    assert call_queries.get(calls.db, unknown).call.fault == Fault.UNKNOWN


def test_a_page_of_a_fault_reads_a_bounded_number_of_calls_without_one(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_queries, "_MOST_READS", 2)
    monkeypatch.setattr(call_queries, "_LATER_READ", 3)
    for _ in range(6):
        calls.make(outcome=Outcome.FAILED, reason="agent lost: media leg ended")
    ours = calls.make(outcome=Outcome.FAILED, reason="media not created: the worker did not report back")
    page = call_queries.list_calls(calls.db, Filter(fault=Fault.US), limit=3)
    assert page.calls == ()
    assert page.next is not None
    page = call_queries.list_calls(calls.db, Filter(fault=Fault.US), after=page.next, limit=3)
    assert ([call.call_id for call in page.calls], page.next) == ([ours], None)


def test_calls_are_followed_when_they_come_and_when_they_end_and_each_is_told_once(calls: Calls) -> None:
    before, live = calls.make(), calls.make(state=State.CONNECTED)
    following = Following(calls.db, Filter())
    assert following.look() == []
    assert following.look() == [], f"{before} and {live} are there"
    later = calls.store.now() + timedelta(seconds=1)
    came, brief = (
        calls.make(state=State.RECEIVED, received_at=later),
        calls.make(received_at=later + timedelta(seconds=1)),
    )
    assert told(following) == [came, brief]
    assert told(following) == []
    calls.change(live, state="ended", outcome="completed")
    calls.change(came, state="connected")
    # Committed late.
    late = calls.make(received_at=later - timedelta(seconds=0.5))
    assert told(following) == [live, late]
    calls.change(came, state="ended", outcome="failed", fault="us")
    assert told(following) == [came]
    assert told(following) == []


def test_a_call_is_followed_from_when_it_is_wanted_on(calls: Calls) -> None:
    following = Following(calls.db, Filter(fault=Fault.US, organization_id=1))
    following.look()
    later = calls.store.now() + timedelta(seconds=1)
    ours, well, _ = (calls.make(state=State.JOINING, received_at=later, **of) for of in (
        {}, {}, {"organization_id": 2, "connection_id": 3}))  # fmt: skip
    assert told(following) == []
    calls.change(ours, state="ending", outcome="failed", fault="us")
    calls.change(well, state="ended", outcome="completed")
    assert told(following) == [ours]
    calls.change(ours, state="ended")
    assert told(following) == [ours]


def told(following: Following) -> list[uuid.UUID]:
    return [call.call_id for call in following.look()]


def test_only_so_many_calls_are_watched(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.operator.call_following.MOST_WATCHED", 2)
    following = Following(calls.db, Filter())
    following.look()
    later = calls.store.now() + timedelta(seconds=1)
    oldest, *others = (
        calls.make(state=State.RECEIVED, received_at=later + timedelta(seconds=number)) for number in range(3)
    )
    following.look()
    following.look()
    for call_id in (oldest, *others):
        calls.change(call_id, state="ended", outcome="completed")
    assert set(told(following)) >= set(others)
    assert len(following._watched) <= 2


def test_what_was_made_of_a_call_is_whole(calls: Calls) -> None:
    call_id = calls.make(**FAILED)
    stored = calls.store.load(call_id)
    assert stored == replace(calls.made[0], lock_version=0)
    calls.change(call_id, tech_cause=486, hangup_cause=17)
    history = call_queries.get(calls.db, call_id)
    assert (history.call.fault, history.tech_cause, history.hangup_cause) == (Fault.ASTERISK, 486, 17)
    assert [row.name for row in history.timeline] == ["CallRecorded"]
    assert history.dead_letters == ()
    with pytest.raises(errors.PermanentError, match="no call"):
        call_queries.get(calls.db, uuid.uuid4())
