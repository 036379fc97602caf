"""A caller's admission on a real Postgres: two round trips and one commit, and what undoes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from devstack import platform_tables
from shared.asterisk import events
from shared.call import facts
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.limits import Limits
from shared.call.states import State
from shared.call.steps import Step
from shared.inbound_lookup import InboundLookup
from shared.platform import dograh
from shared.platform.ports import NoRoute, Route
from shared.storage import connections, database, quotas
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from tests import dograh_tables
from tests.dograh_tables import NUMBER, VALUE, configure, execute, one, publish
from tests.support import round_trips
from tests.support.flows import CommandQueue, OneAsterisk, WorkStep
from workers.admission import Admission
from workers.asterisks import Asterisks
from workers.awaited_legs import AwaitedLegs
from workers.call_allowance import CallAllowance
from workers.claims import Claim
from workers.flow import Flow
from workers.inbound import Inbound
from workers.transfer_legs import TransferLegs

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True),
]

CONNECTION = ConnectionVersion(1, 1)
LOOK = ["SELECT", "SELECT"]
#: The call's statement writes its attempt and its timeline as well.
WRITE = ["INSERT workflow_runs", "INSERT ari.calls"]


def leg_of(channel_id: str) -> events.Channel:
    return events.Channel(
        id=channel_id, name="PJSIP/trunk-1", state="Ring", created="c", caller_number="1", called_number=NUMBER,
        app_name="Stasis", app_data="voiceai",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The product's admission on one Postgres. Its media step only notes the calls it gets."""

    db: database.Database
    inbound: Inbound
    began: list[Call]

    def receive(self, channel_id: str = "1762.1", connection: ConnectionVersion = CONNECTION) -> None:
        leg = leg_of(channel_id)
        self.inbound.receive(connection=connection, leg=leg, args=(), stamp="2026-05-01T12:00:00.000+0000")

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many calls, attempts and runs there are."""
        row = one(
            self.db,
            "SELECT (SELECT count(*) FROM ari.calls) AS calls, (SELECT count(*) FROM ari.attempts) AS attempts,"
            " (SELECT count(*) FROM workflow_runs) AS runs",
        )
        return row["calls"], row["attempts"], row["runs"]

    @property
    def states(self) -> list[str]:
        """The states of the first call, from its timeline."""
        row = one(
            self.db,
            "SELECT array_agg(state_to ORDER BY id) AS states FROM ari.timeline"
            " WHERE state_to IS NOT NULL AND call_id = (SELECT call_id FROM ari.calls ORDER BY received_at LIMIT 1)",
        )
        return list(row["states"] or [])


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made)
        yield made


@pytest.fixture
def worker(db: database.Database) -> Worker:
    source_id = configure(db, json.dumps(VALUE))
    execute(
        db,
        "INSERT INTO ari.connections (source_id, organization_id, state, version) VALUES (%s, 1, 'active', 1)",
        source_id,
    )
    execute(
        db,
        "INSERT INTO ari.connection_versions (connection_id, version, endpoint, app, ari_user, sealed_password)"
        " VALUES (1, 1, 'http://a', 'a', 'a', 'x')",
    )
    worker = make(db)
    # The clock, and the statements that every connection prepares.
    worker.inbound.writer.store.now()
    return worker


def make(db: database.Database) -> Worker:
    store, limits = PostgresCalls(db, who="test", prefix="aip-"), Limits()
    writer = CallWriter(store, CommandQueue(), limits, who="test")
    watch = dograh.Watch(db)
    watch.look()
    # The platform's own limit of calls takes a lock: without one there is none.
    routes = dograh.Routes(db, watch=watch, limits=dograh.CallLimits(setting="off", default=10))
    known, runs = connections.Connections(db), dograh.Runs(db, watch=watch)
    own = quotas.Quotas(db, now=store.now)
    asterisks = cast(Asterisks, OneAsterisk())
    admission = Admission(
        connections=known,
        routes=routes,
        quota=own,
        slots=quotas.Slots(own, dograh.Accounts(db), default=None),
        slot_count=store,
        runs=runs,
        asterisks=asterisks,
        naming=Naming("aip-"),
        limits=limits,
    )
    began: list[Call] = []

    def media(claim: Claim) -> list[facts.Fact]:
        began.append(claim.call)
        claim.give_up("the test ends here")
        return []

    steps = {Step.ADMISSION: admission, Step.MEDIA: WorkStep(media)}
    flow = Flow(
        writer, asterisks, steps, serves={Step.ADMISSION, Step.RUNS, Step.MEDIA}, awaited=AwaitedLegs(capacity=0)
    )
    inbound = Inbound(
        flow=flow,
        writer=writer,
        connections=known,
        lookup=InboundLookup(db, known, routes),
        asterisks=asterisks,
        runs=runs,
        naming=Naming("aip-"),
        allowance=CallAllowance(1000),
        age_ms=lambda _at_ms: 0.0,
        transfer_legs=cast(TransferLegs, None),
    )
    return Worker(db=db, inbound=inbound, began=began)


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
    make(db).receive()
    assert worker.counts == (1, 1, 1)
    worker.receive("1762.2")
    assert worker.counts == (2, 2, 2)


def test_a_run_that_has_the_reserved_id_already_costs_a_second_try(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.receive()
    taken = worker.began[0].workflow_run_id
    send_inbound = dograh.Routes.send_inbound

    def send_for_a_taken_id(routes: dograh.Routes, *given: Any) -> Any:
        answer = send_inbound(routes, *given)

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
