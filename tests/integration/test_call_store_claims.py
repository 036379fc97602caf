"""Claims on calls in a real Postgres."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from shared import errors
from shared.call import facts
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import State
from shared.call.steps import Step
from shared.storage import database
from shared.storage.call_writer import CallWriter
from shared.storage.postgres_calls import PostgresCalls
from tests.support.call_rows import (
    admitted,
    claim_of,
    claim_request,
    save,
)
from tests.support.flows import CommandQueue

pytestmark = pytest.mark.services

LIMITS = Limits()


def test_one_of_two_threads_gets_the_claim(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: store.claim(call.call_id, claim_request(owner=f"w{number}")), range(8)))
    (winner,) = [number for number, one in enumerate(results) if one is not None]
    assert claim_of(db, call) == (f"w{winner}", "admission")
    claimed = results[winner]
    assert claimed is not None
    assert claimed.lock_version != call.lock_version


def test_a_claim_makes_what_was_read_before_stale(store: PostgresCalls, make: Callable[..., Call]) -> None:
    call = make()
    assert store.claim(call.call_id, claim_request()) is not None
    assert save(store, call, admitted(call, store)) is None


def test_a_call_in_another_state_is_not_claimed(store: PostgresCalls, make: Callable[..., Call]) -> None:
    call = make()
    for step in set(Step) - {Step.ADMISSION}:
        assert store.claim(call.call_id, claim_request(step)) is None


def test_a_claim_that_ran_out_can_be_taken(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make()
    assert store.claim(call.call_id, claim_request(seconds=0)) is not None
    assert store.claim(call.call_id, claim_request(owner="w2")) is not None
    assert claim_of(db, call) == ("w2", "admission")


def test_a_claim_stays_when_another_fact_is_stored(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED, attempt=1, attempt_in_doubt_until=store.now() + timedelta(seconds=14))
    assert store.claim(call.call_id, claim_request(Step.MEDIA)) is not None
    assert writer.record(call, facts.MediaReady(attempt=1)).applied
    assert claim_of(db, call) == ("w1", "media")


def test_a_claim_goes_when_the_state_changes(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make()
    assert store.claim(call.call_id, claim_request()) is not None
    writer.record(call, facts.CallerLeft())
    assert claim_of(db, call) == (None, None)


def test_a_claim_goes_when_its_owner_reports(
    store: PostgresCalls, db: database.Database, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.ENDING)
    claimed = store.claim(call.call_id, claim_request(Step.TEARDOWN))
    assert claimed is not None
    writer.record(claimed, facts.RemovalPending(reason="unreachable"), owner="another worker")
    assert claim_of(db, call) == ("w1", "teardown")
    writer.record(claimed, facts.RemovalPending(reason="unreachable"), owner="w1")
    assert claim_of(db, call) == (None, None)


def test_a_claim_is_released_by_its_owner_only(
    store: PostgresCalls, db: database.Database, make: Callable[..., Call]
) -> None:
    call = make()
    assert store.claim(call.call_id, claim_request()) is not None
    store.release(call.call_id, "w2")
    assert claim_of(db, call) == ("w1", "admission")
    store.release(call.call_id, "w1")
    assert claim_of(db, call) == (None, None)
    assert store.claim(call.call_id, claim_request(owner="w2")) is not None


def test_a_change_may_claim_the_call_for_the_next_step(
    store: PostgresCalls, db: database.Database, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED, attempt=1, legs_created=True)
    recorded = writer.record(call, facts.MediaReady(attempt=1), owner="w1", then={Step.BRIDGE})
    assert (recorded.claim is not None, recorded.applied, queue.enqueued) == (True, True, [])
    assert claim_of(db, call) == ("w1", "bridge")
    again = writer.record(recorded.call, facts.MediaReady(attempt=1), owner="w2", then={Step.BRIDGE})
    assert (again.claim, again.applied, queue.enqueued) == (None, False, [])
    assert claim_of(db, call) == ("w1", "bridge")


def test_an_attempt_is_begun_by_one_worker_only(
    store: PostgresCalls, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED)
    begun = facts.AttemptBegun(attempt=1, in_doubt_until=store.now() + timedelta(seconds=14))
    with ThreadPoolExecutor(8) as pool:
        recorded = list(
            pool.map(lambda number: writer.record(call, begun, owner=f"w{number}", then={Step.MEDIA}), range(8))
        )
    assert sum(one.claim is not None for one in recorded) == 1
    assert sum(one.applied for one in recorded) == 1


def test_an_attempt_under_a_live_claim_does_not_begin(
    store: PostgresCalls, writer: CallWriter, make: Callable[..., Call]
) -> None:
    call = make(state=State.PREPARED)
    assert store.claim(call.call_id, claim_request(Step.MEDIA)) is not None
    begun = facts.AttemptBegun(attempt=1, in_doubt_until=store.now())
    with pytest.raises(errors.TransientError):
        writer.record(call, begun, owner="w2", then={Step.MEDIA})
    loaded = store.load(call.call_id)
    assert loaded is not None
    assert loaded.attempt == 0


def test_the_claims_of_others_that_stand_are_found(store: PostgresCalls, make: Callable[..., Call]) -> None:
    """An owner is named by its worker and the claim; a worker of v0.1.0-rc1 has the same name at each start."""
    made = {name: make(name) for name in ("dead", "alive", "early", "lapsed", "unclaimed")}
    for name, owner in (("dead", "w.1/0a/7"), ("alive", "w.2/1b/7"), ("early", "w.3/7")):
        assert store.claim(made[name].call_id, claim_request(owner=owner)) is not None
    assert store.claim(made["lapsed"].call_id, claim_request(owner="w.1/0a/8", seconds=0)) is not None

    def found(*workers: str) -> set[tuple[str, str]]:
        return {(each.call.channel_id, each.worker) for each in store.claimed_by_others(workers, 10)}

    assert found("w.2/1b") == {("dead", "w.1/0a"), ("early", "w.3")}
    assert found("w.1/0a", "w.2/1b", "w.3") == set()
    assert len(store.claimed_by_others([], 2)) == 2


def test_the_claim_of_a_dead_worker_goes_with_its_fact(
    store: PostgresCalls, db: database.Database, writer: CallWriter, queue: CommandQueue, make: Callable[..., Call]
) -> None:
    call = make(state=State.ENDING, deadline_at=store.now() + timedelta(seconds=60))
    assert store.claim(call.call_id, claim_request(Step.TEARDOWN, owner="w.1/0a/7")) is not None
    (claimed,) = store.claimed_by_others([], 10)
    died: list[facts.Fact] = [facts.WorkerDied(), facts.DeadlinePassed()]
    assert writer.record(claimed.call, *died, owner=claimed.owner, retry_on_conflict=False).applied
    assert claim_of(db, call) == (None, None)
    assert queue.names == ["TearDown"]
    assert not writer.record(claimed.call, *died, owner=claimed.owner, retry_on_conflict=False).applied
    assert queue.names == ["TearDown"]
