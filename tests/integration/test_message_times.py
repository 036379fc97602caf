"""The message in work goes into the timeline of each call that it changes, by the write that is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from shared import current_message
from shared.call import facts
from shared.call.calls import Call
from shared.current_message import CurrentMessage
from shared.storage.call_writer import CallWriter
from shared.storage.database import Database
from shared.storage.postgres_calls import PostgresCalls
from shared.storage.timeline import MESSAGE_BEGUN, MessageBegun
from tests.support import call_rows

pytestmark = pytest.mark.services


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    current_message.end()


def begin(actor: str = "leg_ended") -> None:
    now = time.monotonic()
    message = CurrentMessage(
        actor=actor,
        queue="teardown",
        message_id="m",
        received=now - 0.03,
        pushed=now - 0.02,
        due=now - 0.02,
        begun=now - 0.01,
    )
    current_message.begin(message)


def notes(db: Database, call: Call) -> list[dict[str, Any]]:
    with db.connection() as connection:
        return connection.execute(
            "SELECT *, at < clock_timestamp() AS is_past FROM ari.timeline"
            " WHERE call_id = %s AND name = %s ORDER BY id",
            [call.call_id, MESSAGE_BEGUN],
        ).fetchall()


def test_each_call_is_told_once_of_the_message_that_changed_it(
    db: Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    first, second = make(), make("2.2")
    assert notes(db, first) == []
    begin()
    for call in (first, second):
        recorded = writer.record(call, call_rows.ADMITTED)
        assert writer.record(recorded.call, facts.EndRequested(reason="one")).applied
        (row,) = notes(db, call)
        assert row["is_past"]
        parsed = MessageBegun.parse(row["detail"])
        assert parsed is not None
        assert (parsed.actor, round(parsed.pushed_ms or 0), round(parsed.begun_ms)) == ("leg_ended", 10, 20)
        assert round(row["took_ms"]) == 20
    begin("dial_ended")
    gone = facts.CallerLeft(leg_id=first.channel_id)
    assert writer.record(writer.store.load(first.call_id) or first, gone).applied
    assert len(notes(db, first)) == 2


def test_a_write_that_came_to_nothing_is_told_with_the_next(
    db: Database, writer: CallWriter, store: PostgresCalls, make: Callable[..., Call]
) -> None:
    call = make()
    begin()
    stale = replace(call, lock_version=call.lock_version + 1)
    transition = writer.transition(stale, [facts.EndRequested(reason="one")])
    assert store.save(transition.changes, timeline=(), owner="", claim=None) is None
    assert notes(db, call) == []
    assert writer.record(call, facts.EndRequested(reason="one")).applied
    assert len(notes(db, call)) == 1


def test_without_a_message_nothing_is_told(db: Database, writer: CallWriter, make: Callable[..., Call]) -> None:
    call = make()
    assert writer.record(call, facts.EndRequested(reason="one")).applied
    assert notes(db, call) == []
