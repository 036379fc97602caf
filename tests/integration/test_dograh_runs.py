"""The platform's workflow runs: created, attached, ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from devstack import platform_tables
from shared import errors
from shared.call.calls import Call
from shared.call.legs import Attempt, Role
from shared.call.stasis_args import RunArgs
from shared.call.states import Cause, Direction, Outcome, State
from shared.platform import dograh
from shared.platform.ports import NoRoute, Route
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import VALUE, configure, execute, one, publish, run
from tests.support import round_trips

pytestmark = [pytest.mark.services, pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True)]

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
CALL = Call(
    call_id=UUID(int=1),
    connection_id=7,
    connection_version=1,
    organization_id=1,
    channel_id="1762000000.12",
    channel_created="c",
    entry=1,
    direction=Direction.INBOUND,
    state=State.ADMITTED,
    received_at=NOW,
    state_since=NOW,
    deadline_at=NOW,
    channel_name="PJSIP/trunk-1",
    caller_number="+49151'\"%s",
    called_number="5551234",
    workflow_id=1,
    user_id=1,
)
FAILED = replace(CALL, state=State.ENDING, ending_at=NOW, outcome=Outcome.FAILED, reason="voice agent not reached")
TALKED = replace(
    FAILED,
    connected_at=NOW - timedelta(seconds=61.4),
    outcome=Outcome.COMPLETED,
    reason="caller hung up",
    attempt=1,
)


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    connected = (
        "INSERT INTO ari.connections (connection_id, source_id, organization_id, state) OVERRIDING SYSTEM VALUE"
        " VALUES (7, 1, 1, 'active')"
    )
    with dograh_tables.filled(database_url) as made:
        for workflow_id in (1, 3, 4):
            publish(made, workflow_id)
        execute(made, connected)
        yield made


def ours(db: database.Database) -> dograh.Runs:
    """Runs that we complete, whatever the layout."""
    return dograh.Runs(db, run_completion="ours")


def created(db: database.Database, call: Call = CALL, *, first_attempt: Attempt | None = None, **options: Any) -> int:
    with db.transaction() as connection:
        return dograh.Runs(db, **options).create(connection, call, first_attempt=first_attempt)


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_written_as_the_platform_reads_it(db: database.Database) -> None:
    """What each layout has besides: test_newest_runs.py."""
    row = run(db, created(db))
    assert abs(row["created_at"] - datetime.now(UTC)) < timedelta(seconds=10)
    assert row == row | {
        "name": "ARI Inbound +49151'\"%s",
        "workflow_id": 1,
        "definition_id": 1,
        "mode": "ari",
        "call_type": "inbound",
        "state": "initialized",
        "is_completed": False,
        "storage_backend": "s3",
        "usage_info": {},
        "cost_info": {},
        "gathered_context": {"call_id": "1762000000.12", "provider": "ari", "channel_name": "PJSIP/trunk-1"},
        "logs": {},
        "annotations": {},
        "campaign_id": None,
        "queued_run_id": None,
        "recording_url": None,
        "transcript_url": None,
        "public_access_token": None,
    }
    assert row["initial_context"] == row["initial_context"] | {
        "caller_number": "+49151'\"%s",
        "called_number": "5551234",
        "direction": "inbound",
        "provider": "ari",
    }


def test_a_run_pins_the_current_definition(db: database.Database) -> None:
    second = publish(db)
    publish(db, 2)
    row = run(db, created(db, storage_backend="minio"))
    assert (row["definition_id"], row["storage_backend"]) == (second, "minio")


def test_a_run_of_a_transaction_that_fails_is_not_there(db: database.Database) -> None:
    def fail() -> None:
        with db.transaction() as connection:
            dograh.Runs(db).create(connection, CALL)
            raise errors.TransientError("after it")

    with pytest.raises(errors.TransientError):
        fail()
    assert one(db, "SELECT count(*) AS runs FROM workflow_runs")["runs"] == 0


def test_what_another_process_wrote_is_kept(db: database.Database) -> None:
    run_id = created(db)
    call = replace(TALKED, workflow_run_id=run_id)
    foreign = {"their_key": {"deep": [1]}, "call_disposition": "theirs"}
    execute(
        db,
        "UPDATE workflow_runs SET gathered_context = %s, usage_info = '{\"llm\": 5}', logs = '{\"a\": 1}',"
        " annotations = '[1]' WHERE id = %s",
        json.dumps(foreign | {"call_id": "1762000000.12"}),
        run_id,
    )
    runs = ours(db)
    runs.note_media(call, media_id="m1", bridge_id="b1")
    # Read as text: JSON may hold what Python reads and JSONB would not.
    noted = json.loads(one(db, "SELECT gathered_context::text AS it FROM workflow_runs")["it"])
    names = {"call_id": "1762000000.12", "provider": "ari", "channel_name": "PJSIP/trunk-1"}
    assert noted == foreign | names | {"ext_channel_id": "m1", "bridge_id": "b1"}
    runs.end(call, media_id="m1", bridge_id="b1")
    row = one(db, "SELECT gathered_context::text AS it, usage_info, logs, annotations FROM workflow_runs")
    assert json.loads(row["it"]) == noted | {"mapped_call_disposition": "completed"}
    assert row["usage_info"] == {"llm": 5, "call_duration_seconds": 61}
    assert (row["logs"], row["annotations"]) == ({"a": 1}, [1])


@pytest.mark.parametrize("written", ["1e999", "-1e999", "1" * 5000, "[" * 1500 + "]" * 1500, "0.10000000000000000001"])
@pytest.mark.parametrize("connected", [True, False])
def test_a_run_that_holds_what_python_cannot_read_ends_and_holds_it_still(
    db: database.Database, written: str, *, connected: bool
) -> None:
    run_id = created(db)
    theirs = f'{{"theirs": {written}}}'
    execute(db, "UPDATE workflow_runs SET gathered_context = %s, usage_info = %s", theirs, theirs)
    runs, call = ours(db), replace(TALKED if connected else FAILED, workflow_run_id=run_id)
    runs.note_media(call, media_id="m1", bridge_id="b1")
    runs.end(call, media_id="m1", bridge_id="b1")
    columns = "is_completed, gathered_context::text AS gathered, usage_info::text AS usage"
    row = one(db, f"SELECT {columns} FROM workflow_runs WHERE id = %s", run_id)
    assert row["is_completed"]
    assert row["gathered"].startswith(theirs[:-1])
    assert row["usage"].startswith(theirs[:-1])


@pytest.mark.parametrize("text", ["null", "[]", '"x"', "5", "[" * 400 + "]" * 400])
def test_contexts_that_are_no_objects_do_not_break_us(db: database.Database, text: str) -> None:
    run_id = created(db)
    execute(db, "UPDATE workflow_runs SET gathered_context = %s, usage_info = %s", text, text)
    runs, call = ours(db), replace(TALKED, workflow_run_id=run_id)
    runs.note_media(call, media_id="m1", bridge_id="b1")
    runs.end(call, media_id="m1", bridge_id="b1")
    row = run(db, run_id)
    assert (row["is_completed"], row["gathered_context"]["bridge_id"]) == (True, "b1")
    assert row["usage_info"] == {"call_duration_seconds": 61}


@pytest.mark.parametrize("completion", ["ours", "platform"])
@pytest.mark.parametrize(
    ("outcome", "direction", "disposition"),
    [
        (Outcome.FAILED, Direction.INBOUND, "error"),
        (Outcome.REFUSED, Direction.INBOUND, "error"),
        (Outcome.REFUSED, Direction.OUTBOUND, "failed"),
        (Outcome.ABANDONED, Direction.INBOUND, "canceled"),
        (Outcome.CANCELED, Direction.OUTBOUND, "canceled"),
        (Outcome.BUSY, Direction.OUTBOUND, "busy"),
        (Outcome.NO_ANSWER, Direction.OUTBOUND, "no-answer"),
        (Outcome.FAILED, Direction.OUTBOUND, "failed"),
    ],
)
def test_a_run_that_never_connected_is_ended_by_us(
    db: database.Database, completion: Any, outcome: Outcome, direction: Direction, disposition: str
) -> None:
    run_id = created(db)
    call = replace(FAILED, workflow_run_id=run_id, outcome=outcome, direction=direction, reason="why it was")
    dograh.Runs(db, run_completion=completion).end(call, media_id="m", bridge_id="b")
    row = run(db, run_id)
    assert (row["state"], row["is_completed"], row["usage_info"]) == ("completed", True, {"call_duration_seconds": 0})
    gathered = row["gathered_context"]
    assert (gathered["call_disposition"], gathered["mapped_call_disposition"]) == (disposition, disposition)
    assert (gathered["error"], gathered["call_id"]) == ("why it was", "1762000000.12")
    assert "bridge_id" not in gathered


def test_a_connected_run_is_ours_or_the_platform_s(db: database.Database) -> None:
    run_id = created(db)
    call = replace(TALKED, workflow_run_id=run_id)
    dograh.Runs(db, run_completion="platform").end(call, media_id="m", bridge_id="b")
    assert (run(db, run_id)["state"], run(db, run_id)["is_completed"]) == ("initialized", False)
    dograh.Runs(db, run_completion="ours").end(call, media_id="m", bridge_id="b")
    row = run(db, run_id)
    assert (row["state"], row["is_completed"], row["usage_info"]) == ("completed", True, {"call_duration_seconds": 61})
    gathered = row["gathered_context"]
    assert (gathered["ext_channel_id"], gathered["bridge_id"], gathered["call_disposition"]) == ("m", "b", "completed")
    assert "error" not in gathered


def test_a_completed_run_is_left_alone(db: database.Database) -> None:
    run_id = created(db)
    execute(db, "UPDATE workflow_runs SET is_completed = true, state = 'completed', usage_info = '{\"a\": 1}'")
    before = run(db, run_id)
    ours(db).end(replace(FAILED, workflow_run_id=run_id), media_id="m", bridge_id="b")
    assert run(db, run_id) == before


def test_a_call_without_a_run_or_with_one_that_is_gone_ends_none(db: database.Database) -> None:
    runs = ours(db)
    for call in (FAILED, replace(FAILED, workflow_run_id=99)):
        runs.note_media(call, media_id="m", bridge_id="b")
        runs.end(call, media_id="m", bridge_id="b")
    assert one(db, "SELECT count(*) AS runs FROM workflow_runs")["runs"] == 0


# ── runs of calls that are begun ─────────────────────────────────────────────────────────────────────────────────────

OUTBOUND = replace(CALL, direction=Direction.OUTBOUND, state=State.ORIGINATING, channel_id="aip-1-o")


def test_an_attempted_outbound_call_that_failed_is_an_error(db: database.Database) -> None:
    run_id = created(db, OUTBOUND)
    call = replace(FAILED, workflow_run_id=run_id, direction=Direction.OUTBOUND, attempt=1)
    ours(db).end(call, media_id="m", bridge_id="b")
    assert run(db, run_id)["gathered_context"]["call_disposition"] == "error"


def test_an_outbound_run_is_named_as_the_platform_names_its_own(db: database.Database) -> None:
    row = run(db, created(db, OUTBOUND))
    assert (row["name"], row["call_type"]) == ("WR-TEL-OUT-00000001", "outbound")
    assert row["initial_context"]["direction"] == "outbound"


def taken(db: database.Database, args: RunArgs, call: Call = OUTBOUND) -> Route | NoRoute:
    with db.transaction() as connection:
        return dograh.Runs(db).attach(connection, call, args)


def test_a_run_that_waits_is_taken_and_names_the_call(db: database.Database) -> None:
    configure(db, json.dumps(VALUE))
    run_id = created(db, replace(OUTBOUND, channel_id=""))
    execute(db, "UPDATE workflow_runs SET gathered_context = '{\"theirs\": 1}'")
    route = taken(db, RunArgs(workflow_run_id=run_id, workflow_id=1))
    assert isinstance(route, Route)
    assert (route.workflow_id, route.user_id) == (1, 1)
    assert run(db, run_id)["gathered_context"] == {
        "theirs": 1, "call_id": "aip-1-o", "provider": "ari", "channel_name": "PJSIP/trunk-1",
    }  # fmt: skip


def came_too_late(*, run_id: int, workflow_id: int = 1, user_id: int = 1, **changes: Any) -> Call:
    """A leg of the platform's that was gone before its run was taken."""
    said = f"workflow_run_id={run_id},workflow_id={workflow_id},user_id={user_id}"
    over = replace(FAILED, direction=Direction.OUTBOUND, outcome=Outcome.CANCELED, reason="gone", args=(said,))
    return replace(over, **changes)


def test_a_run_that_its_leg_was_gone_too_soon_to_take_is_ended(db: database.Database) -> None:
    run_id = created(db, replace(OUTBOUND, channel_id="theirs"))
    dograh.Runs(db, run_completion="platform").end(came_too_late(run_id=run_id), media_id="m", bridge_id="b")
    row = run(db, run_id)
    assert (row["state"], row["is_completed"], row["usage_info"]) == ("completed", True, {"call_duration_seconds": 0})
    gathered = row["gathered_context"]
    assert (gathered["call_disposition"], gathered["error"], gathered["call_id"]) == ("canceled", "gone", "theirs")


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ({"organization_id": 2}, ""),
        ({"workflow_id": 2}, ""),
        ({"user_id": 99}, ""),
        ({"direction": Direction.INBOUND}, ""),
        ({"args": ()}, ""),
        ({}, "state = 'running'"),
        ({}, "state = 'completed', is_completed = true"),
    ],
)
def test_a_run_that_does_not_wait_for_the_leg_that_names_it_is_left_alone(
    db: database.Database, named: dict[str, Any], change: str
) -> None:
    run_id = created(db, OUTBOUND)
    if change:
        execute(db, f"UPDATE workflow_runs SET {change}")
    before = run(db, run_id)
    ours(db).end(came_too_late(run_id=run_id, **named), media_id="m", bridge_id="b")
    assert run(db, run_id) == before


def test_another_of_the_organization_s_users_may_be_named_and_no_stranger(db: database.Database) -> None:
    configure(db, json.dumps(VALUE))
    execute(
        db,
        "INSERT INTO users (provider_id, selected_organization_id, created_at)"
        " VALUES ('u2', 1, now()), ('u3', 2, now())",
    )
    run_id = created(db)
    stranger = taken(db, RunArgs(workflow_run_id=run_id, workflow_id=1, user_id=3))
    assert stranger == NoRoute(reason="user 3 does not belong to this organization", hangup_cause=Cause.NOT_ALLOWED)
    colleague = taken(db, RunArgs(workflow_run_id=run_id, workflow_id=1, user_id=2))
    assert isinstance(colleague, Route)
    assert colleague.user_id == 2


@pytest.mark.parametrize(
    ("workflow_id", "reason", "cause"),
    [
        (3, "workflow 3 is archived", Cause.UNALLOCATED),
        (4, "workflow 4 has no user", Cause.NOT_ALLOWED),
        (2, "does not belong to this organization", Cause.NOT_ALLOWED),
        (5, "does not belong to this organization", Cause.NOT_ALLOWED),
    ],
)
def test_a_run_whose_workflow_cannot_serve_is_not_taken(
    db: database.Database, workflow_id: int, reason: str, cause: Cause
) -> None:
    configure(db, json.dumps(VALUE))
    run_id = created(db, replace(OUTBOUND, workflow_id=workflow_id))
    before = run(db, run_id)
    route = taken(db, RunArgs(workflow_run_id=run_id, workflow_id=workflow_id))
    assert isinstance(route, NoRoute)
    assert reason in route.reason
    assert route.hangup_cause == cause
    assert run(db, run_id) == before


@pytest.mark.parametrize(
    "change",
    [
        "state = 'running'",
        "state = 'completed', is_completed = true",
        "mode = 'twilio'",
        "call_type = 'inbound'",
        "gathered_context = '{}'",
        "gathered_context = '[]'",
        'gathered_context = \'{"call_id": "another"}\'',
        "workflow_id = 2",
    ],
)
def test_only_a_waiting_run_of_the_organization_is_found_by_its_channel(db: database.Database, change: str) -> None:
    run_id = created(db, OUTBOUND)

    def found() -> int | None:
        with db.transaction() as connection:
            return dograh.Runs(db).waiting(connection, organization_id=1, channel_id=OUTBOUND.channel_id)

    assert found() == run_id
    execute(db, f"UPDATE workflow_runs SET {change}")
    assert found() is None


@pytest.mark.parametrize("text", ['{"said": 1e999}', '{"call_id": 5}', '{"call_id": null}', "[]", "null"])
def test_what_another_tenant_s_run_holds_keeps_no_waiting_run_from_being_found(
    db: database.Database, text: str
) -> None:
    run_id = created(db, OUTBOUND)
    execute(db, "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s", text, created(db, OUTBOUND))
    with db.transaction() as connection:
        assert dograh.Runs(db).waiting(connection, organization_id=1, channel_id=OUTBOUND.channel_id) == run_id


def test_which_runs_are_completed(db: database.Database) -> None:
    runs = [created(db) for _ in range(3)]
    execute(db, "UPDATE workflow_runs SET is_completed = true WHERE id = %s", runs[1])
    assert dograh.Runs(db).completed(runs) == {runs[1]}
    assert dograh.Runs(db).workflow_of(runs[0], 1) == 1
    assert dograh.Runs(db).workflow_of(runs[0], 2) is None


@pytest.mark.parametrize("completion", ["ours", "platform"])
def test_the_state_of_a_transfer_is_moved_on_and_never_back(db: database.Database, completion: str) -> None:
    """The platform begins it and completes the run; its other keys stay."""
    runs = dograh.Runs(db, run_completion="platform" if completion == "platform" else "ours")
    run_id = created(db)
    transferred = replace(TALKED, workflow_run_id=run_id, destination_id="d")
    begun = '{"transfer_state": "in-progress", "theirs": 1e999}'
    execute(
        db,
        "UPDATE workflow_runs SET is_completed = true, state = 'completed', gathered_context = %s WHERE id = %s",
        begun,
        run_id,
    )
    assert runs.completed([run_id]) == set(), "its caller was handed over, and talks on"
    assert runs.has_transfer(transferred)
    for does, state in (("notes", "complete"), ("ends", "terminated"), ("notes", "terminated"), ("ends", "terminated")):
        if does == "notes":
            runs.note_transfer(transferred)
        else:
            runs.end(transferred, media_id="m", bridge_id="b")
        assert run(db, run_id)["gathered_context"] == {"transfer_state": state, "theirs": float("inf")}


def test_a_state_of_a_transfer_that_cannot_be_read_stays(db: database.Database) -> None:
    run_id = created(db)
    transferred = replace(TALKED, workflow_run_id=run_id, destination_id="d")
    execute(db, "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s", '{"transfer_state": ["odd"]}', run_id)
    ours(db).note_transfer(transferred)
    ours(db).end(transferred, media_id="m", bridge_id="b")
    assert run(db, run_id)["gathered_context"]["transfer_state"] == ["odd"]
    assert run(db, run_id)["is_completed"]


def test_a_run_whose_platform_began_no_transfer_gets_no_state_of_one(db: database.Database) -> None:
    run_id = created(db)
    transferred = replace(TALKED, workflow_run_id=run_id, destination_id="d")
    assert not dograh.Runs(db).has_transfer(transferred)
    assert not dograh.Runs(db).has_transfer(replace(transferred, workflow_run_id=None))
    ours(db).note_transfer(transferred)
    ours(db).note_transfer(replace(transferred, workflow_run_id=None))
    ours(db).end(transferred, media_id="m", bridge_id="b")
    assert "transfer_state" not in run(db, run_id)["gathered_context"]
    assert run(db, run_id)["is_completed"]


# ── round trips ──────────────────────────────────────────────────────────────────────────────────────────────────────


FIRST = Attempt(number=1, legs={Role.MEDIA: "m1"}, bridge_id="b1")


def noted(db: database.Database, call: Call, number: int) -> tuple[list[list[str]], dict[str, Any]]:
    """Note an attempt's legs in a run; return the round trips, and what the run has gathered then."""
    with round_trips.recorded() as trips:
        dograh.Runs(db).note_media(call, media_id=f"m{number}", bridge_id=f"b{number}")
    assert call.workflow_run_id is not None
    return trips, run(db, call.workflow_run_id)["gathered_context"]


def test_legs_that_are_named_from_the_start_are_not_written_again(db: database.Database) -> None:
    call = replace(TALKED, workflow_run_id=created(db, first_attempt=FIRST))
    before = run(db, call.workflow_run_id or 0)["gathered_context"]
    assert before == {
        "call_id": "1762000000.12", "provider": "ari", "channel_name": "PJSIP/trunk-1",
        "ext_channel_id": "m1", "bridge_id": "b1",
    }  # fmt: skip
    assert noted(db, call, 1) == ([["SELECT"]], before)


def test_a_second_attempt_s_legs_take_the_first_one_s_place(db: database.Database) -> None:
    call = replace(TALKED, workflow_run_id=created(db, first_attempt=FIRST), attempt=2)
    trips, gathered = noted(db, call, 2)
    assert trips == [["BEGIN", "SELECT"], ["UPDATE workflow_runs", "COMMIT"]]
    assert (gathered["ext_channel_id"], gathered["bridge_id"]) == ("m2", "b2")


@pytest.mark.parametrize("change", ["gathered_context", "'{}'", "'[]'", '\'{"ext_channel_id": "m1"}\''])
def test_legs_that_are_not_named_from_the_start_are_written_at_the_join(db: database.Database, change: str) -> None:
    """By a worker of an earlier release that created the run, or where the platform has written it anew."""
    call = replace(TALKED, workflow_run_id=created(db))
    execute(db, f"UPDATE workflow_runs SET gathered_context = {change}")
    _, gathered = noted(db, call, 1)
    assert gathered == {
        "call_id": "1762000000.12", "provider": "ari", "channel_name": "PJSIP/trunk-1",
        "ext_channel_id": "m1", "bridge_id": "b1",
    }  # fmt: skip


def test_a_run_that_never_connected_names_no_legs_in_the_end(db: database.Database) -> None:
    run_id = created(db, first_attempt=FIRST)
    ours(db).end(replace(FAILED, workflow_run_id=run_id, attempt=1), media_id="m1", bridge_id="b1")
    assert not {"ext_channel_id", "bridge_id"} & run(db, run_id)["gathered_context"].keys()


def test_a_run_ends_by_one_read_and_one_write(db: database.Database) -> None:
    run_id = created(db)
    with round_trips.recorded() as trips:
        ours(db).end(replace(TALKED, workflow_run_id=run_id), media_id="m", bridge_id="b")
    assert trips == [["BEGIN", "SELECT"], ["UPDATE workflow_runs", "COMMIT"]]
