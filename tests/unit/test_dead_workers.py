"""The claims of dead workers are broken, and no others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta

import pytest

from scheduler.dead_workers import DeadWorkers
from shared import errors
from shared.call.calls import Call
from shared.call.states import State
from shared.call.steps import STEPS, Step
from shared.storage.call_store import ClaimedCall, ClaimRequest
from shared.storage.call_writer import CallWriter
from shared.storage.leases import Lease
from tests.simulation.stores import MemoryStore
from tests.support.calls import ATTEMPTING, CALL_ID, CALLS, LIMITS, seconds
from tests.support.flows import CommandQueue, InstantDatabase

DEAD, ALIVE = "worker.1/0a0a", "worker.2/1b1b"


class Leases:
    """Leases that stand, and those that were ended."""

    def __init__(self, *held: Lease) -> None:
        self.held = list(held)

    def of_others(self, workers: Collection[str], *, besides: str) -> list[Lease]:
        return [lease for lease in self.held if lease.worker not in workers and lease.name != besides]

    def release(self, name: str, holder: str) -> None:
        self.held.remove(Lease(name=name, holder=holder))


class Scene:
    """One call that a worker has claimed, and the scheduler's look at it.

    Args:
        live: The workers that live, at each look; the last ones at all that follow.
    """

    def __init__(self, call: Call, step: Step, *live: Collection[str] | None, owner: str = f"{DEAD}/77") -> None:
        database = InstantDatabase()
        self.store = MemoryStore(database, lambda *_: None)
        self.queue = CommandQueue()
        self.leases = Leases(Lease(name="resync of connection 1", holder=f"{DEAD}/78"))
        self.writer = CallWriter(self.store, self.queue, LIMITS, who="scheduler")
        self.looks = list(live)
        call = replace(call, deadline_at=database.moment() + timedelta(seconds=9))
        assert self.store.insert(call, [], ClaimRequest(owner=owner, step=step, duration=seconds(14)))
        self.dead_workers = DeadWorkers(
            self.writer, self.store, self.leases, self._live, besides="scheduler", batch=10
        )  # fmt: skip

    def _live(self) -> Collection[str] | None:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    @property
    def owner(self) -> str | None:
        return self.store.rows[CALL_ID].claim_owner


@pytest.mark.parametrize("step", Step)
def test_the_step_of_a_dead_worker_is_ordered_again_at_once(step: Step) -> None:
    scene = Scene(CALLS[STEPS[step].state], step, {ALIVE})
    scene.dead_workers.clean_up()
    assert scene.owner is None
    assert scene.queue.names == [STEPS[step].command.__name__]
    assert scene.leases.held == []
    scene.dead_workers.clean_up()
    assert len(scene.queue.names) == 1


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([{DEAD, ALIVE}], id="it lives"),
        pytest.param([{ALIVE}, {DEAD, ALIVE}], id="it has begun since the first look"),
        pytest.param([None], id="it is not known"),
        pytest.param([{ALIVE}, None], id="it is not known any more"),
    ],
)
def test_a_worker_that_may_live_keeps_its_claims(looks: list[Collection[str] | None]) -> None:
    scene = Scene(ATTEMPTING, Step.MEDIA, *looks)
    scene.dead_workers.clean_up()
    assert scene.owner == f"{DEAD}/77"
    assert scene.queue.names == []
    assert len(scene.leases.held) == 1


def test_the_leader_s_lease_is_no_worker_s() -> None:
    scene = Scene(ATTEMPTING, Step.MEDIA, {ALIVE})
    leader = Lease(name="scheduler", holder="scheduler.1/2c2c")
    scene.leases.held.append(leader)
    scene.dead_workers.clean_up()
    assert scene.leases.held == [leader]


def test_what_was_written_since_the_look_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker was only late: it has stored its result; or another one has the call by now."""
    scene = Scene(ATTEMPTING, Step.MEDIA, {ALIVE})
    seen = scene.store.claims_of_others({ALIVE})
    row = scene.store.rows[CALL_ID]
    row.call, row.claim_owner = replace(row.call, lock_version=7), f"{ALIVE}/79"
    monkeypatch.setattr(scene.store, "claimed_by_others", lambda _workers, _limit: seen)
    scene.dead_workers.clean_up()
    assert scene.owner == f"{ALIVE}/79"
    assert scene.queue.names == []


def test_a_call_that_cannot_be_written_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(ATTEMPTING, Step.MEDIA, {ALIVE})
    (seen,) = scene.store.claims_of_others({ALIVE})
    gone = ClaimedCall(call=replace(seen.call, state=State.ENDING), owner=seen.owner)
    monkeypatch.setattr(scene.store, "claimed_by_others", lambda _workers, _limit: [gone, seen])
    record, failures = scene.writer.record, [errors.PermanentError("odd")]

    def fail_once(*args: object, **given: object) -> object:
        if failures:
            raise failures.pop()
        return record(*args, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(scene.writer, "record", fail_once)
    scene.dead_workers.clean_up()
    assert scene.queue.names == ["StartMedia"]
    failures.append(errors.DatabaseUnavailable("away"))  # type: ignore[arg-type]
    with pytest.raises(errors.DatabaseUnavailable):
        scene.dead_workers.clean_up()


def test_a_scheduler_that_leads_no_more_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(ATTEMPTING, Step.MEDIA, {ALIVE})

    def fail(*_: object, **__: object) -> None:
        raise errors.LeadershipLost("another one leads")

    monkeypatch.setattr(scene.writer, "record", fail)
    with pytest.raises(errors.LeadershipLost):
        scene.dead_workers.clean_up()
    assert scene.owner == f"{DEAD}/77"
