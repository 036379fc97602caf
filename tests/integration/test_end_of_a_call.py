"""The end of a call on a real Postgres: the run and the call end in one transaction, or the teardown goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from devstack import platform_tables
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import State
from shared.call.steps import Step
from shared.platform import dograh
from shared.storage import database
from tests import dograh_tables
from tests.dograh_tables import execute, one, publish
from tests.support import admissions, round_trips
from tests.support.rounds import GONE, Rounds
from workers.awaited_legs import AwaitedLegs
from workers.flow import Flow
from workers.teardown import Teardown

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("layout", platform_tables.EVERY, indirect=True),
]

NAMING = Naming("aip-")
LOCK, END = ["BEGIN", "SELECT"], ["UPDATE workflow_runs", "UPDATE ari.calls", "COMMIT"]


@pytest.fixture
def db(database_url: str) -> Iterator[database.Database]:
    with dograh_tables.filled(database_url) as made:
        publish(made)
        yield made


class Ending:
    """A call that is ending, and what tears it down."""

    def __init__(self, db: database.Database) -> None:
        self.db = db
        worker = admissions.connected(db)
        worker.receive()
        self.writer = worker.inbound.writer
        (admitted,) = worker.began
        # Else its media leg might come up late.
        created = facts.LegsCreated(attempt=1, nonce=admitted.nonce)
        prepared = self.writer.record(self.writer.store.load(admitted.call_id) or admitted, created).call
        self.call: Call = self.writer.record(prepared, facts.CallerGone(leg_id=admitted.leg_id)).call
        assert self.call.state is State.ENDING
        # The caller never connected: the run ends here, whoever completes the others.
        media, caller = f"/channels/{NAMING.media_id(self.call)}", f"/channels/{self.call.leg_id}"
        self.asterisk = Rounds({f"DELETE {media}": [GONE], f"GET {media}": [GONE], f"GET {caller}": [GONE]})
        self.runs = dograh.Runs(db)

    def tear_down(self) -> None:
        step = Teardown(asterisks=self.asterisk.asterisks, naming=NAMING, runs=self.runs, store=self.writer.store)
        flow = Flow(
            self.writer, self.asterisk.asterisks, {Step.TEARDOWN: step}, serves={Step.TEARDOWN},
            awaited=AwaitedLegs(capacity=0),
        )  # fmt: skip
        flow.resume(self.call.call_id, Step.TEARDOWN)

    @property
    def now(self) -> Call:
        call = self.writer.store.load(self.call.call_id)
        assert call is not None
        return call

    @property
    def run_is_over(self) -> bool:
        return bool(one(self.db, "SELECT is_completed FROM workflow_runs")["is_completed"])

    @property
    def pending(self) -> list[str]:
        """What the timeline says is left."""
        rows = "SELECT array_agg(detail) AS details FROM ari.timeline WHERE name = 'RemovalPending'"
        return list(one(self.db, rows)["details"] or [])


@pytest.fixture
def ending(db: database.Database) -> Ending:
    return Ending(db)


def test_run_and_call_end_in_one_transaction(ending: Ending) -> None:
    with round_trips.recorded() as trips:
        ending.tear_down()
    assert (ending.now.state, ending.run_is_over) == (State.ENDED, True)
    # Where the platform is told of the run, that is written along.
    assert [[name for name in trip if "outbox" not in name] for trip in trips[-2:]] == [LOCK, END]


@pytest.mark.parametrize("refusal", ["RAISE EXCEPTION 'not now'", "PERFORM 1 / 0"])
def test_a_run_that_cannot_be_written_is_told_and_tried_again(ending: Ending, refusal: str) -> None:
    """Its row is written with the commit: the platform may have a trigger, or a constraint that we do not know."""
    execute(
        ending.db,
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refusal}; RETURN NEW; END $$",
    )
    execute(ending.db, "CREATE TRIGGER refuse BEFORE UPDATE ON workflow_runs FOR EACH ROW EXECUTE FUNCTION refuse()")
    ending.tear_down()
    assert (ending.now.state, ending.run_is_over) == (State.ENDING, False)
    assert ending.now.step_retries == 1
    assert ["the run is not ended" in detail for detail in ending.pending] == [True]
    execute(ending.db, "DROP TRIGGER refuse ON workflow_runs")
    ending.tear_down()
    assert (ending.now.state, ending.run_is_over) == (State.ENDED, True)


def test_what_is_written_of_the_call_meanwhile_repeats_no_request(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = ending.runs.end

    def end_while_the_caller_leaves(call: Call, **named: Any) -> None:
        end(call, **named)
        if not ending.now.caller_left:
            left = facts.CallerLeft(leg_id=call.leg_id, stamp="2026-05-01T12:00:09.000+0000")
            assert ending.writer.record(ending.now, left).applied

    # As if the agent had hung up, and the caller's leg were hung up by the teardown.
    execute(ending.db, "UPDATE ari.calls SET caller_left = false, left_stamp = NULL")
    monkeypatch.setattr(ending.runs, "end", end_while_the_caller_leaves)
    ending.tear_down()
    assert (ending.now.state, ending.run_is_over) == (State.ENDED, True)
    removals = [request.what for request in ending.asterisk.requests if request.what.startswith("DELETE /bridges")]
    assert len(removals) == 1


def test_an_end_takes_one_connection(database_url: str, db: database.Database) -> None:
    """The layout is looked at by it, too: with the pool's last one in hand, another one would never come."""
    call = Ending(db).call
    talked = replace(call, connected_at=call.received_at)
    small = database.Database(database_url, size=1)
    small.open()
    try:
        with small.transaction() as connection:
            dograh.Runs(small).end(talked, media_id="m", bridge_id="b", within=connection)
    finally:
        small.close()
