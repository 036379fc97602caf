"""A caller's admission on a real Postgres: two round trips and one commit, and what undoes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from devstack import platform_tables
from shared.call.ids import ConnectionVersion
from shared.call.states import State
from shared.platform import dograh
from shared.platform.ports import NoRoute, Route
from shared.storage import database
from shared.storage.call_writer import CallWriter
from tests import dograh_tables
from tests.dograh_tables import VALUE, execute, one, publish
from tests.support import admissions, round_trips
from tests.support.admissions import LOOK, WRITE, Worker

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True),
]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made)
        yield made


@pytest.fixture
def worker(db: database.Database) -> Worker:
    return admissions.connected(db)


def test_an_admission_is_one_look_and_one_write(worker: Worker) -> None:
    with round_trips.recorded() as trips:
        worker.receive()
    assert trips[:2] == [LOOK, WRITE]
    (call,) = worker.began
    assert (call.state, call.attempt, worker.counts) == (State.PREPARED, 1, (1, 1, 1))
    assert worker.states == ["received", "admitted", "prepared"]
    assert one(worker.db, "SELECT id FROM workflow_runs")["id"] == call.workflow_run_id


def test_the_platform_goes_on_with_ids_that_no_call_has(worker: Worker) -> None:
    worker.receive()
    theirs = one(
        worker.db,
        "INSERT INTO workflow_runs (name, workflow_id, mode, usage_info, cost_info, initial_context, gathered_context,"
        " annotations) VALUES ('x', 1, 'ari', '{}', '{}', '{}', '{}', '{}') RETURNING id",
    )
    worker.receive("1762.2")
    runs = [theirs["id"], *(call.workflow_run_id for call in worker.began)]
    assert len(set(runs)) == 3


def test_with_a_limit_of_calls_the_lock_and_the_count_take_one_round_trip_more(worker: Worker) -> None:
    execute(worker.db, "INSERT INTO ari.quotas (organization_id, concurrent_calls) VALUES (1, 1)")
    with round_trips.recorded() as trips:
        worker.receive()
    assert trips[:3] == [LOOK, ["BEGIN", "SELECT", "SELECT"], [*WRITE, "COMMIT"]]
    with round_trips.recorded() as trips:
        worker.receive("1762.2")
    assert trips == [LOOK, ["BEGIN", "SELECT", "SELECT"], ["INSERT ari.calls", "COMMIT"]]
    assert worker.counts == (2, 1, 1)


def test_a_refusal_needs_no_transaction(worker: Worker) -> None:
    execute(worker.db, "UPDATE workflows SET status = 'archived'")
    with round_trips.recorded() as trips:
        worker.receive()
    assert trips == [LOOK, ["INSERT ari.calls"]]
    assert worker.states == ["received", "ending"]


@pytest.mark.parametrize(
    ("change", "write"),
    [
        pytest.param(
            "ALTER SEQUENCE workflow_runs_id_seq OWNED BY NONE",
            [["BEGIN", WRITE[0]], [WRITE[1], "COMMIT"]],
            id="the id's sequence cannot be found",
        ),
        pytest.param(
            "ALTER TABLE workflow_runs ALTER id DROP DEFAULT, ALTER id ADD GENERATED ALWAYS AS IDENTITY",
            [WRITE],
            id="the id is always generated",
        ),
    ],
)
def test_ids_that_come_in_another_way_are_good_as_well(worker: Worker, change: str, write: list[list[str]]) -> None:
    if "IDENTITY" in change:
        execute(worker.db, "ALTER TABLE workflow_runs ALTER id DROP DEFAULT")
        execute(worker.db, "DROP SEQUENCE workflow_runs_id_seq")
        change = "ALTER TABLE workflow_runs ALTER id ADD GENERATED ALWAYS AS IDENTITY"
    execute(worker.db, change)
    with round_trips.recorded() as trips:
        worker.receive()
    assert trips[: 1 + len(write)] == [LOOK, *write]
    # And not once more, after a first try that failed.
    assert [trip for trip in trips if "INSERT ari.calls" in trip] == [write[-1]]
    assert worker.counts == (1, 1, 1)
    assert one(worker.db, "SELECT id FROM workflow_runs")["id"] == worker.began[0].workflow_run_id


def test_a_caller_who_is_known_gets_no_second_run(worker: Worker, db: database.Database) -> None:
    worker.receive()
    # Another worker, which has not seen the first report.
    admissions.make(db).receive()
    assert worker.counts == (1, 1, 1)
    worker.receive("1762.2")
    assert worker.counts == (2, 2, 2)


def test_a_run_that_has_the_reserved_id_already_costs_a_second_try(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.receive()
    taken = worker.began[0].workflow_run_id
    send_inbound = dograh.Routes.send_inbound

    def send_for_a_taken_id(routes: dograh.Routes, *given: Any, **named: Any) -> Any:
        answer = send_inbound(routes, *given, **named)

        def route() -> Route | NoRoute | None:
            found = answer()
            return replace(found, reserved_run_id=taken) if isinstance(found, Route) else found

        return route

    monkeypatch.setattr(dograh.Routes, "send_inbound", send_for_a_taken_id)
    worker.receive("1762.2")
    assert worker.counts == (2, 2, 2)
    assert worker.began[1].workflow_run_id != taken


@pytest.mark.parametrize("moment", ["before the write", "after the commit"])
def test_a_connection_that_is_lost_over_it_leaves_one_call_with_one_run(
    worker: Worker, database_url: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    create = dograh.Runs.create

    def end_connections() -> None:
        execute(
            worker.db,
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )

    def lose_before(runs: dograh.Runs, *given: Any, **more: Any) -> int:
        monkeypatch.undo()
        end_connections()
        return create(runs, *given, **more)

    def lose_after(writer: CallWriter, *given: Any) -> Any:
        monkeypatch.undo()
        raise OSError("the answer to the commit is lost") from None

    if moment == "before the write":
        monkeypatch.setattr(dograh.Runs, "create", lose_before)
    else:
        monkeypatch.setattr(CallWriter, "stored", lose_after)
    worker.receive()
    assert worker.counts == (1, 1, 1)
    assert worker.states[:3] == ["received", "admitted", "prepared"]


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(json.dumps(VALUE | {"note": "\x00", "inbound_workflow_id": 1}), id="Postgres cannot look into it"),
        pytest.param(
            json.dumps(VALUE | {"inbound_workflow_id": "0000000001"}), id="the workflow's id is spelled oddly"
        ),
    ],
)
def test_one_tenant_s_odd_configuration_is_read_the_long_way(worker: Worker, configuration: str) -> None:
    execute(worker.db, "UPDATE organization_configurations SET value = %s", configuration)
    worker.receive()
    assert worker.counts == (1, 1, 1)
    assert worker.began[0].state is State.PREPARED
    assert worker.states == ["received", "admitted", "prepared"]


def test_a_leg_of_an_unknown_connection_is_left_alone(worker: Worker) -> None:
    worker.receive(connection=ConnectionVersion(9, 1))
    assert worker.counts == (0, 0, 0)


def test_a_removed_configuration_refuses_the_caller(worker: Worker) -> None:
    dograh.Configurations(worker.db).remove(1)
    worker.receive()
    assert one(worker.db, "SELECT reason FROM ari.calls") == {"reason": "configuration removed"}
