"""What a run holds once its call is over: as the platform writes it of its own calls, and nothing of others is lost."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from shared import errors
from shared.call.calls import Call
from shared.call.states import Cause, Direction, Outcome
from shared.platform import dograh
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import execute, one, run
from tests.support import round_trips
from tests.support.calls import RECEIVED

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("layout", ["stand-alone", "newest"], indirect=True),
]

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
CALL = replace(
    RECEIVED, organization_id=1, workflow_id=1, user_id=1, ending_at=NOW, outcome=Outcome.FAILED, reason="why it was"
)
OUTBOUND = replace(CALL, direction=Direction.OUTBOUND)
TALKED = replace(CALL, connected_at=NOW, outcome=Outcome.COMPLETED)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        yield made


def created(db: database.Database, call: Call = CALL) -> Call:
    """Create the run of a call; return the call with it."""
    with db.transaction() as connection:
        return replace(call, workflow_run_id=dograh.Runs(db).create(connection, call))


def runs(db: database.Database, *, tells: bool = True) -> dograh.Runs:
    return dograh.Runs(db, run_completion="platform", tells_platform=tells)


def begin_campaign(db: database.Database) -> tuple[int, int]:
    """Return the ids of a campaign and of a run that it has queued."""
    if one(db, "SELECT to_regclass('campaigns') IS NULL AS it")["it"]:
        return 3, 4
    campaign = one(
        db,
        "INSERT INTO campaigns (name, organization_id, workflow_id, created_by, source_type, source_id, state,"
        " processed_rows, failed_rows, rate_limit_per_second, max_retries, source_sync_status)"
        " VALUES ('c', 1, 1, 1, 'csv', 'x', 'running', 0, 0, 1, 1, 'completed') RETURNING id",
    )["id"]
    queued = one(
        db,
        "INSERT INTO queued_runs (campaign_id, source_uuid, context_variables, state)"
        " VALUES (%s, 'u', '{}', 'processed') RETURNING id",
        campaign,
    )["id"]
    return campaign, queued


def waiting(db: database.Database) -> list[dict[str, Any]]:
    with db.connection() as connection:
        return connection.execute("SELECT * FROM ari.outbox ORDER BY workflow_run_id").fetchall()


def merge_as_the_platform_does(
    db: database.Database, run_id: int, added: dict[str, Any], pause: threading.Event
) -> None:
    """Lock the row, merge in Python, write all of it; `pause` is waited for before the write."""
    with db.transaction() as connection:
        row = connection.execute(
            "SELECT gathered_context, logs FROM workflow_runs WHERE id = %s FOR UPDATE", [run_id]
        ).fetchone()
        assert row is not None
        assert pause.wait(10)
        connection.execute(
            "UPDATE workflow_runs SET gathered_context = %s, logs = %s WHERE id = %s",
            [json.dumps(row["gathered_context"] | added), json.dumps(row["logs"] | added), run_id],
        )


def is_waited_for(db: database.Database) -> bool:
    """Whether a statement waits for a lock that another has."""
    query = (
        "SELECT count(*) AS it FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(one(db, query)["it"])


def until_waited_for(db: database.Database) -> None:
    until = threading.Event()
    for _ in range(200):
        if is_waited_for(db):
            return
        until.wait(0.05)
    pytest.fail("nothing waits for the run's lock")


WRITERS = {
    "the end": lambda runs, call: runs.end(call, media_id="m", bridge_id="b"),
    "the ids of the legs": lambda runs, call: runs.note_media(replace(call, attempt=2), media_id="m", bridge_id="b"),
    "the state of a transfer": lambda runs, call: runs.note_transfer(call),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_key_that_the_platform_writes_at_the_same_time_is_kept_when_it_is_first(
    db: database.Database, writer: str
) -> None:
    call = created(db)
    assert call.workflow_run_id is not None
    execute(db, 'UPDATE workflow_runs SET gathered_context = \'{"transfer_state": "in-progress"}\'')
    go_on = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        theirs = pool.submit(merge_as_the_platform_does, db, call.workflow_run_id, {"trace_url": "t"}, go_on)
        ours = pool.submit(_after_it_is_locked, db, call.workflow_run_id, lambda: WRITERS[writer](runs(db), call))
        until_waited_for(db)
        go_on.set()
        theirs.result(10), ours.result(10)
    gathered = run(db, call.workflow_run_id)["gathered_context"]
    written = {"the end": "error", "the ids of the legs": "bridge_id", "the state of a transfer": "transfer_state"}
    assert gathered["trace_url"] == "t"
    assert written[writer] in gathered
    assert gathered["transfer_state"] == ("complete" if writer == "the state of a transfer" else "in-progress")


def _after_it_is_locked(db: database.Database, run_id: int, write: Any) -> None:
    for _ in range(200):
        try:
            with db.transaction() as connection:
                connection.execute("SELECT 1 FROM workflow_runs WHERE id = %s FOR UPDATE NOWAIT", [run_id])
        except errors.DatabaseUnavailable:
            break
        threading.Event().wait(0.02)
    write()


def test_a_key_that_the_platform_writes_at_the_same_time_is_kept_when_it_is_second(db: database.Database) -> None:
    call = created(db)
    assert call.workflow_run_id is not None
    at_once = threading.Event()
    at_once.set()
    with ThreadPoolExecutor(1) as pool:
        with db.transaction() as connection:
            runs(db).end_in(connection, call, {})
            connection.execute("SELECT 1")
            theirs = pool.submit(merge_as_the_platform_does, db, call.workflow_run_id, {"trace_url": "t"}, at_once)
            until_waited_for(db)
        theirs.result(10)
    row = run(db, call.workflow_run_id)
    assert (row["gathered_context"]["trace_url"], row["gathered_context"]["error"]) == ("t", "why it was")
    assert row["is_completed"]


@pytest.mark.parametrize("how", [{}, {"direction": Direction.OUTBOUND, "request_id": "r"}], ids=["inbound", "ours"])
def test_a_call_without_quota_has_the_run_that_the_platform_would_write(
    db: database.Database, how: dict[str, Any]
) -> None:
    refused = replace(CALL, outcome=Outcome.REFUSED, reason="the credits are used up", hangup_cause=Cause.NOT_ALLOWED)
    call = created(db, replace(refused, **how))
    assert call.workflow_run_id is not None
    execute(db, "UPDATE workflow_runs SET logs = '{\"theirs\": [1]}'")
    runs(db).end(call, media_id="m", bridge_id="b")
    row = run(db, call.workflow_run_id)
    assert (row["state"], row["is_completed"], row["usage_info"]) == ("completed", True, {"call_duration_seconds": 0})
    said = {"error": "the credits are used up", "call_disposition": "error", "mapped_call_disposition": "error"}
    assert row["gathered_context"].items() >= said.items()
    assert "call_tags" not in row["gathered_context"]
    assert row["logs"] == {
        "theirs": [1],
        "realtime_feedback_events": [
            {
                "type": "rtf-pipeline-error",
                "payload": {"error": "the credits are used up", "fatal": True, "processor": "call_start"},
                "timestamp": "2026-05-01T12:00:00.000+00:00",
                "turn": 0,
            }
        ],
    }
    assert [row["workflow_run_id"] for row in waiting(db)] == [call.workflow_run_id]


@pytest.mark.parametrize(
    "over", ["is_completed = true", "state = 'completed'", "state = 'completed', is_completed = true"]
)
def test_a_run_that_the_platform_has_failed_or_completed_is_not_written_over(db: database.Database, over: str) -> None:
    call = created(db, replace(OUTBOUND, outcome=Outcome.BUSY))
    assert call.workflow_run_id is not None
    campaign_id, _ = begin_campaign(db)
    execute(
        db,
        f'UPDATE workflow_runs SET {over}, gathered_context = \'{{"error": "theirs"}}\', campaign_id = %s',
        campaign_id,
    )
    before = run(db, call.workflow_run_id)
    runs(db).end(call, media_id="m", bridge_id="b")
    assert (run(db, call.workflow_run_id), waiting(db)) == (before, [])


def test_a_run_whose_completion_was_never_written_is_open(db: database.Database) -> None:
    """The platform's column may be NULL."""
    call = created(db, replace(OUTBOUND, outcome=Outcome.BUSY))
    assert call.workflow_run_id is not None
    execute(db, "UPDATE workflow_runs SET is_completed = NULL")
    with db.transaction() as connection:
        found = runs(db).waiting(connection, organization_id=1, channel_id=call.channel_id)
    assert found == call.workflow_run_id
    runs(db).end(call, media_id="m", bridge_id="b")
    assert run(db, call.workflow_run_id)["is_completed"]


@pytest.mark.parametrize(
    ("outcome", "tag", "retry"),
    [
        (Outcome.BUSY, "telephony_busy", "busy"),
        (Outcome.NO_ANSWER, "telephony_no-answer", "no_answer"),
        (Outcome.FAILED, "telephony_failed", None),
        (Outcome.CANCELED, "telephony_canceled", None),
    ],
)
def test_an_outbound_run_is_tagged_and_its_campaign_is_to_be_told(
    db: database.Database, outcome: Outcome, tag: str, retry: str | None
) -> None:
    call = created(db, replace(OUTBOUND, outcome=outcome))
    assert call.workflow_run_id is not None
    tags = '{"call_tags": ["theirs", "not_connected"], "call_id": "x"}'
    campaign_id, queued_run_id = begin_campaign(db)
    execute(
        db,
        "UPDATE workflow_runs SET campaign_id = %s, queued_run_id = %s, gathered_context = %s",
        campaign_id,
        queued_run_id,
        tags,
    )
    runs(db).end(call, media_id="m", bridge_id="b")
    assert run(db, call.workflow_run_id)["gathered_context"]["call_tags"] == ["theirs", "not_connected", tag]
    (row,) = waiting(db)
    assert (row["workflow_run_id"], row["retry_reason"]) == (call.workflow_run_id, retry)
    assert (row["campaign_id"], row["queued_run_id"]) == (campaign_id, queued_run_id)


@pytest.mark.parametrize("tags", ['"odd"', "5", "null", "1e999", "{}"])
def test_tags_that_are_no_list_are_replaced(db: database.Database, tags: str) -> None:
    call = created(db, replace(OUTBOUND, outcome=Outcome.BUSY))
    execute(db, "UPDATE workflow_runs SET gathered_context = %s", f'{{"call_tags": {tags}}}')
    runs(db).end(call, media_id="m", bridge_id="b")
    gathered = run(db, call.workflow_run_id or 0)["gathered_context"]
    assert gathered["call_tags"] == ["not_connected", "telephony_busy"]


@pytest.mark.parametrize("column", ["logs", "usage_info"])
def test_a_nul_in_a_run_keeps_it_from_no_end(db: database.Database, column: str) -> None:
    """Postgres can store it in JSON, and cannot look into it. Of gathered_context the platform's index keeps it out."""
    call = created(db, replace(CALL, outcome=Outcome.REFUSED))
    theirs = r'{"theirs": "\u0000"'
    execute(db, f"UPDATE workflow_runs SET {column} = %s", theirs + "}")
    runs(db).end(call, media_id="m", bridge_id="b")
    row = one(db, f"SELECT is_completed, {column}::text AS it FROM workflow_runs")
    assert row["is_completed"]
    assert row["it"].startswith(theirs)


def test_a_caller_who_gave_up_has_no_tags_of_a_placed_call(db: database.Database) -> None:
    call = created(db, replace(CALL, outcome=Outcome.ABANDONED))
    runs(db).end(call, media_id="m", bridge_id="b")
    assert "call_tags" not in run(db, call.workflow_run_id or 0)["gathered_context"]
    assert len(waiting(db)) == 1


@pytest.mark.parametrize("why", ["connected", "running", "not ours to tell", "rolled back"])
def test_of_what_is_not_ours_to_tell_the_platform_is_not_told(db: database.Database, why: str) -> None:
    """A run that connected ends at the platform; so does what follows one that the voice agent has."""
    call = created(db, TALKED if why == "connected" else CALL)
    if why == "running":
        execute(db, "UPDATE workflow_runs SET state = 'running'")
    made = runs(db, tells=why != "not ours to tell")
    with contextlib.suppress(errors.TransientError), db.transaction() as connection:
        made.end_in(connection, call, {})
        if why == "rolled back":
            raise errors.TransientError("after it")
    assert waiting(db) == []
    assert run(db, call.workflow_run_id or 0)["is_completed"] is (why != "rolled back")


def test_what_is_to_be_told_goes_with_the_end_of_the_run(db: database.Database) -> None:
    """In its transaction, and with its round trips."""
    call = created(db)
    with round_trips.recorded() as trips:
        runs(db).end(call, media_id="m", bridge_id="b")
    assert trips == [["BEGIN", "SELECT"], ["UPDATE workflow_runs", "INSERT ari.outbox", "COMMIT"]]


def test_a_run_whose_end_was_forgotten_is_told_of_once(db: database.Database) -> None:
    call = created(db)
    for _ in range(2):
        execute(db, "UPDATE workflow_runs SET state = 'initialized', is_completed = false")
        runs(db).end(call, media_id="m", bridge_id="b")
    assert len(waiting(db)) == 1


def test_a_transfer_whose_destination_left_before_it_was_found_is_over(db: database.Database) -> None:
    """The platform completes the run; that the call has ended is ours to say."""
    call = created(db, TALKED)
    execute(db, "UPDATE workflow_runs SET gathered_context = %s", '{"transfer_state": "in-progress"}')
    runs(db).end(call, media_id="m", bridge_id="b")
    assert call.workflow_run_id is not None
    found = run(db, call.workflow_run_id)
    assert (found["gathered_context"], found["is_completed"]) == ({"transfer_state": "terminated"}, False)


def test_a_run_that_the_voice_agent_has_refused_after_the_join_never_connected(db: database.Database) -> None:
    """The platform would leave it open: none of its pipelines has begun it."""
    call = created(db, replace(TALKED, outcome=Outcome.FAILED, attempt=1))
    assert not runs(db).is_begun(call)
    runs(db).end(call, media_id="m", bridge_id="b")
    row = run(db, call.workflow_run_id or 0)
    gathered = row["gathered_context"]
    assert (row["is_completed"], row["usage_info"]) == (True, {"call_duration_seconds": 0})
    assert (gathered["call_disposition"], gathered["error"]) == ("error", "why it was")
    assert "bridge_id" not in gathered
    assert [each["workflow_run_id"] for each in waiting(db)] == [call.workflow_run_id]


@pytest.mark.parametrize("change", ["state = 'running'", "is_completed = true"])
def test_a_run_that_the_voice_agent_has_begun_is_left_to_it_however_its_call_came_out(
    db: database.Database, change: str
) -> None:
    """Without the platform none writes that it has begun; nor is it asked about a run that is gone."""
    call = created(db, replace(TALKED, outcome=Outcome.FAILED, attempt=1))
    assert dograh.Runs(db, run_completion="ours").is_begun(call)
    execute(db, f"UPDATE workflow_runs SET {change}")
    before = run(db, call.workflow_run_id or 0)
    assert runs(db).is_begun(call)
    runs(db).end(call, media_id="m", bridge_id="b")
    assert (run(db, call.workflow_run_id or 0), waiting(db)) == (before, [])
    execute(db, "DELETE FROM workflow_runs")
    assert runs(db).is_begun(call)
    assert runs(db).is_begun(replace(call, workflow_run_id=None))
