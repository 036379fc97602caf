"""The flow: which step follows at once, what becomes a command instead, conflicts, and steps that break off."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from shared import errors
from shared.asterisk import rest
from shared.call import commands, facts
from shared.call.calls import Call
from shared.call.states import State
from shared.call.steps import Step
from shared.storage import database
from shared.storage.call_writer import CallWriter
from shared.storage.connections import InboundTarget
from shared.storage.timeline import TimelineEntry
from tests.simulation.commits import Transaction
from tests.simulation.stores import MemoryStore
from tests.support.calls import ADMITTED, CALL_ID, ENDING, JOINING, LIMITS, PREPARED, RECEIVED
from tests.support.flows import CommandQueue, InstantDatabase, OneAsterisk, Work, claimed, flow
from workers.claims import Arrival, Claim
from workers.flow import Flow
from workers.pools import POOLS, served_steps

SET_UP = served_steps(POOLS["set-up"])
ADMISSION = facts.Admitted(workflow_id=1, user_id=2, media_client="media")
RUN = facts.RunCreated(workflow_run_id=9)
ARRIVAL = Arrival(target=cast(InboundTarget, None), waited_seconds=1.0)


class TimelineStore(MemoryStore):
    """Keeps the requests of the timeline that are stored."""

    def __init__(self) -> None:
        super().__init__(InstantDatabase(), lambda *_: None)
        self.requests: list[str] = []

    def save_with_commit(
        self, connection: database.Connection, *args: Any, timeline: Any, **kwargs: Any
    ) -> Callable[[], Call]:
        saved = super().save_with_commit(connection, *args, timeline=timeline, **kwargs)
        cast(Transaction, connection).writes.append(lambda: self.append_timeline(timeline))
        return saved

    def append_timeline(self, timeline: Sequence[TimelineEntry], **_: Any) -> None:
        self.requests += [entry.name for entry in timeline if entry.kind == "request"]


class Scene:
    """A store in memory, and steps that note that they ran and come to what they always come to."""

    def __init__(self) -> None:
        self.store = TimelineStore()
        self.queue = CommandQueue()
        self.writer = CallWriter(self.store, self.queue, LIMITS, who="test")
        self.ran: list[tuple[Step, int]] = []
        self.steps: dict[Step, Work] = {
            Step.ADMISSION: self._step((ADMISSION,)),
            Step.RUNS: self._step((RUN,)),
            Step.MEDIA: self._step((facts.LegsCreated(attempt=1),)),
            Step.BRIDGE: self._step((facts.Joined(attempt=1),)),
        }

    def _step(self, learned: Sequence[facts.Fact]) -> Work:
        def work(claim: Claim) -> Sequence[facts.Fact]:
            self.ran.append((claim.step, claim.call.attempt))
            return learned

        return work

    def insert(self, call: Call) -> Call:
        assert self.store.insert(call, [], None)
        return call

    @property
    def call(self) -> Call:
        (row,) = self.store.rows.values()
        return row.call

    @property
    def claim_owner(self) -> str | None:
        (row,) = self.store.rows.values()
        return row.claim_owner


@pytest.fixture
def scene() -> Scene:
    return Scene()


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("serves", "ran", "ordered"),
    [
        (SET_UP, [Step.ADMISSION, Step.RUNS, Step.MEDIA], []),
        ({Step.ADMISSION, Step.RUNS}, [Step.ADMISSION, Step.RUNS], ["StartMedia"]),
        ({Step.ADMISSION, Step.MEDIA}, [Step.ADMISSION], ["CreateRun"]),
        ({Step.ADMISSION}, [Step.ADMISSION], ["CreateRun"]),
        # As the resync pool does, after it has adopted a caller.
        (frozenset(), [Step.ADMISSION], ["CreateRun"]),
    ],
)
def test_the_flow_goes_on_to_the_steps_that_its_pool_serves_and_orders_any_other(
    scene: Scene, serves: frozenset[Step], ran: list[Step], ordered: list[str]
) -> None:
    going = flow(scene.writer, scene.steps, serves=serves)
    assert going.admit(RECEIVED, ARRIVAL)
    assert [step for step, _ in scene.ran] == ran
    assert scene.queue.names == ordered
    assert scene.claim_owner is None


def test_media_waits_for_its_event_and_the_join_follows_that_at_once(scene: Scene) -> None:
    """Legs created end the first passage; the media leg's StasisStart begins the second."""
    going = flow(scene.writer, scene.steps, serves=SET_UP)
    assert going.admit(RECEIVED, ARRIVAL)
    assert (scene.call.state, scene.call.attempt, scene.call.legs_created) == (State.PREPARED, 1, True)
    going.report(scene.call, facts.MediaReady(attempt=1))
    assert scene.ran[-1] == (Step.BRIDGE, 1)
    assert scene.call.state is State.CONNECTED
    assert scene.queue.enqueued == []


def test_the_attempt_is_stored_before_the_media_step_runs(scene: Scene) -> None:
    scene.insert(ADMITTED)
    stored: list[int] = []

    def media(claim: Claim) -> Sequence[facts.Fact]:
        stored.append(scene.call.attempt)
        return (facts.LegsCreated(attempt=1),)

    going = flow(scene.writer, {**scene.steps, Step.MEDIA: media}, serves=SET_UP)
    going.resume(CALL_ID, Step.RUNS)
    assert stored == [1]


@pytest.mark.parametrize(
    "asterisk",
    [
        OneAsterisk(must_probe=True),
        OneAsterisk(errors.AsteriskUnreachable("circuit breaker open", may_have_acted=False)),
        OneAsterisk(errors.PermanentError("there is no connection 7:1")),
    ],
    ids=["half-open", "open", "unknown"],
)
def test_an_asterisk_that_must_be_probed_gets_no_attempt_at_once(scene: Scene, asterisk: OneAsterisk) -> None:
    going = flow(scene.writer, scene.steps, serves=SET_UP, asterisk=asterisk)
    assert going.admit(RECEIVED, ARRIVAL)
    assert [step for step, _ in scene.ran] == [Step.ADMISSION, Step.RUNS]
    assert scene.queue.enqueued == [commands.StartMedia(call_id=CALL_ID, attempt=1)]
    assert scene.call.attempt == 0


def test_an_ordered_step_is_carried_out_by_a_pool_that_serves_nothing(scene: Scene) -> None:
    call = scene.insert(PREPARED)
    begun = facts.AttemptBegun(attempt=1, in_doubt_until=scene.store.now())
    flow(scene.writer, scene.steps).report(call, begun, ordered=Step.MEDIA)
    assert scene.ran == [(Step.MEDIA, 1)]
    assert scene.call.legs_created


def test_a_call_is_written_once_and_admitted_once(scene: Scene) -> None:
    going = flow(scene.writer, scene.steps)
    assert going.admit(RECEIVED, ARRIVAL)
    assert not going.admit(RECEIVED, ARRIVAL)


# ── the quick admission ──────────────────────────────────────────────────────────────────────────────────────────────


def quick(scene: Scene, admit: Work, *, serves: Collection[Step] = SET_UP) -> Flow:
    """Return a flow whose admission is quick, and is this one."""
    return flow(scene.writer, {**scene.steps, Step.ADMISSION: admit}, serves=serves, quick=True)


def admitted_with_run(claim: Claim) -> Sequence[facts.Fact]:
    claim.begin()
    return (ADMISSION, RUN)


def test_a_quick_admission_writes_the_call_once_with_its_attempt_begun(scene: Scene) -> None:
    written: list[tuple[State, int]] = []

    def media(claim: Claim) -> Sequence[facts.Fact]:
        written.append((scene.call.state, scene.call.attempt))
        return (facts.LegsCreated(attempt=1),)

    steps = {**scene.steps, Step.ADMISSION: admitted_with_run, Step.MEDIA: media}
    going = flow(scene.writer, steps, serves=SET_UP, quick=True)
    assert going.admit(RECEIVED, ARRIVAL)
    assert written == [(State.PREPARED, 1)]
    assert (scene.call.workflow_run_id, scene.queue.enqueued) == (9, [])


@pytest.mark.parametrize("begins", [False, True], ids=["before-its-transaction", "in-its-transaction"])
def test_a_quick_admission_that_fails_stores_the_call_as_received_and_tries_again(
    scene: Scene, *, begins: bool
) -> None:
    """Whatever happens then, the sweep brings it to an end: the second failure is the message's."""
    seen: list[list[State]] = []

    def admit(claim: Claim) -> Sequence[facts.Fact]:
        seen.append([row.call.state for row in scene.store.rows.values()])
        if begins:
            claim.begin()
        raise KeyError("a mistake")

    with pytest.raises(KeyError):
        quick(scene, admit).admit(RECEIVED, ARRIVAL)
    assert seen == [[], [State.RECEIVED]]
    assert (scene.call.state, scene.claim_owner) == (State.RECEIVED, None)
    assert scene.call.deadline_at is not None


def test_a_quick_admission_of_a_known_call_changes_nothing(scene: Scene) -> None:
    scene.insert(PREPARED)
    before = scene.call
    assert not quick(scene, admitted_with_run).admit(RECEIVED, ARRIVAL)
    assert scene.call == before
    assert scene.ran == []


def test_a_quick_admission_that_conflicts_with_another_row_stores_its_call(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's id that an old call has, in a database restored in part, say: that is no call of this identity."""

    def conflict(connection: database.Connection, *_: object, **__: object) -> None:
        cast(Transaction, connection).unsent.append(refuse)

    def refuse() -> None:
        raise errors.DuplicateKey('duplicate key value violates unique constraint "calls_run"')

    monkeypatch.setattr(scene.store, "insert_with_commit", conflict)
    assert quick(scene, admitted_with_run).admit(RECEIVED, ARRIVAL)
    assert scene.call.state is State.PREPARED


def test_the_time_of_a_failed_quick_admission_counts_as_waiting(scene: Scene) -> None:
    waited: list[float] = []

    def admit(claim: Claim) -> Sequence[facts.Fact]:
        assert claim.arrival is not None
        waited.append(claim.arrival.waited_seconds)
        scene.writer.clock.sleep(0.01)
        raise errors.DatabaseUnavailable("away")

    with pytest.raises(errors.DatabaseUnavailable):
        quick(scene, admit).admit(RECEIVED, ARRIVAL)
    first, second = waited
    assert first == ARRIVAL.waited_seconds
    assert second >= first + 0.01


def test_a_quick_refusal_is_written_with_its_teardown_ordered(scene: Scene) -> None:
    refused = facts.Refused(reason="no route", hangup_cause=1)
    assert quick(scene, lambda _claim: (refused,)).admit(RECEIVED, ARRIVAL)
    assert (scene.call.state, scene.call.reason) == (State.ENDING, "no route")
    assert scene.queue.names == ["TearDown"]


# ── orders by message ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_ordered_in_another_state_or_under_a_claim_does_nothing(scene: Scene) -> None:
    scene.insert(ADMITTED)
    going = flow(scene.writer, scene.steps)
    going.resume(CALL_ID, Step.BRIDGE, attempt=1)
    assert scene.store.claim(CALL_ID, scene.writer.claim_request(Step.RUNS, "another")) is not None
    going.resume(CALL_ID, Step.RUNS)
    assert scene.ran == []
    assert scene.claim_owner == "another"


def test_a_join_ordered_for_an_attempt_before_gives_the_call_back(scene: Scene) -> None:
    scene.insert(replace(JOINING, attempt=2))
    flow(scene.writer, scene.steps).resume(CALL_ID, Step.BRIDGE, attempt=1)
    assert scene.ran == []
    assert (scene.call.state, scene.claim_owner) == (State.JOINING, None)


# ── conflicts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_version_conflict_runs_the_step_once_more_with_the_row_locked(scene: Scene) -> None:
    call, locked = scene.insert(ADMITTED), []

    def create(claim: Claim) -> Sequence[facts.Fact]:
        transaction = cast(Transaction, claim.begin())
        locked.append(transaction.holds(CALL_ID))
        if len(locked) == 1:
            # The sweep, say, writes the call meanwhile.
            assert scene.writer.record(call, facts.DeadlinePassed()).applied
        return (RUN,)

    flow(scene.writer, {Step.RUNS: create}).run(claimed(scene.writer, call, Step.RUNS))
    assert locked == [False, True]
    assert (scene.call.state, scene.call.workflow_run_id) == (State.PREPARED, 9)
    assert scene.queue.names == ["CreateRun", "StartMedia"]


def test_a_step_does_not_run_again_for_a_call_in_another_state(scene: Scene) -> None:
    call, ran = scene.insert(ADMITTED), []

    def create(claim: Claim) -> Sequence[facts.Fact]:
        ran.append(claim.call)
        claim.begin()
        scene.writer.record(call, facts.CallerLeft())
        return (RUN,)

    flow(scene.writer, {Step.RUNS: create}).run(claimed(scene.writer, call, Step.RUNS))
    assert len(ran) == 1
    assert (scene.call.state, scene.call.workflow_run_id) == (State.ENDING, None)


def test_a_teardown_whose_call_is_handed_on_again_and_again_is_ordered_again(scene: Scene) -> None:
    """The order that came with the last channel found this claim, and has done nothing."""
    call, left = scene.insert(ENDING), []

    def tear_down(claim: Claim) -> Sequence[facts.Fact]:
        left.append(claim.call.leg_id)
        replaced = facts.LegReplaced(replaced_id=left[-1], channel_id=f"channel {len(left)}", channel_name="PJSIP/1")
        scene.writer.record(claim.call, replaced, orders=False)
        claim.begin()
        return (facts.LegsRemoved(leg_id=left[-1]),)

    flow(scene.writer, {Step.TEARDOWN: tear_down}).run(claimed(scene.writer, call, Step.TEARDOWN))
    assert left == [ENDING.leg_id, "channel 1"]
    assert (scene.call.state, scene.call.leg_id, scene.claim_owner) == (State.ENDING, "channel 2", None)
    assert scene.queue.names == ["TearDown"]


def test_a_second_conflict_ends_quietly(scene: Scene) -> None:
    call = scene.insert(ADMITTED)
    began: list[Call] = []
    locked: list[Call] = []

    def create(claim: Claim) -> Sequence[facts.Fact]:
        # The first time another process writes the call, the second time, before the row is locked, it ends it.
        scene.writer.record(call, facts.CallerLeft() if began else facts.DeadlinePassed())
        began.append(claim.call)
        claim.begin()
        locked.append(claim.call)
        if len(began) == 1:
            scene.writer.record(call, facts.DeadlinePassed())
        return (RUN,)

    flow(scene.writer, {Step.RUNS: create}).run(claimed(scene.writer, call, Step.RUNS))
    # The second time the step gets no transaction: nothing is created for a call that has moved on.
    assert (len(began), len(locked)) == (2, 1)
    assert (scene.call.state, scene.call.workflow_run_id) == (State.ENDING, None)


@pytest.mark.parametrize("other", [facts.DeadlinePassed(), facts.CallerLeft()], ids=["retried", "dropped"])
def test_a_conflict_repeats_no_request_and_loses_none(scene: Scene, other: facts.Fact) -> None:
    """The quota service is asked once, and the timeline has that request whatever becomes of the step."""
    call, asked = scene.insert(ADMITTED), []

    def create(claim: Claim) -> Sequence[facts.Fact]:
        def ask() -> bool:
            asked.append(claim.call.state)
            claim.record_request(rest.RequestRecord(what="POST quota", answer="200", took_ms=3))
            scene.writer.record(call, other)
            return True

        assert claim.ask_once("quota", ask)
        claim.begin()
        return (RUN,)

    flow(scene.writer, {Step.RUNS: create}).run(claimed(scene.writer, call, Step.RUNS))
    assert len(asked) == 1
    assert scene.store.requests == ["POST quota"]


def test_the_first_try_leaves_nothing_after_a_conflict(scene: Scene) -> None:
    call = scene.insert(ADMITTED)
    written: list[str] = []

    def create(claim: Claim) -> Sequence[facts.Fact]:
        number = len(written) + 1
        cast(Transaction, claim.begin()).writes.append(lambda: written.append(f"committed {number}"))
        if not written:
            written.append("tried")
            scene.writer.record(call, facts.DeadlinePassed())
        return (RUN,)

    flow(scene.writer, {Step.RUNS: create}).run(claimed(scene.writer, call, Step.RUNS))
    assert written == ["tried", "committed 2"]


# ── steps that come to nothing ───────────────────────────────────────────────────────────────────────────────────────


def test_a_step_that_gives_up_records_nothing_and_ends_its_claim(scene: Scene) -> None:
    scene.insert(JOINING)

    def give_up(claim: Claim) -> Sequence[facts.Fact]:
        assert scene.claim_owner is not None
        claim.give_up("no answer in time")
        return ()

    flow(scene.writer, {Step.BRIDGE: give_up}, serves=SET_UP).resume(CALL_ID, Step.BRIDGE, attempt=1)
    assert replace(scene.call, lock_version=0) == JOINING
    assert scene.claim_owner is None
    assert scene.queue.enqueued == []


@pytest.mark.parametrize("error", [errors.DatabaseUnavailable("away"), errors.PermanentError("no"), KeyError("bug")])
def test_a_step_that_raises_ends_its_claim_and_rolls_back(scene: Scene, error: Exception) -> None:
    scene.insert(ADMITTED)
    written: list[str] = []
    claims: list[Claim] = []

    def create(claim: Claim) -> Sequence[facts.Fact]:
        claims.append(claim)
        connection = claim.begin()
        scene.store.lock(connection, CALL_ID)
        cast(Transaction, connection).writes.append(lambda: written.append("run"))
        raise error

    with pytest.raises(type(error)):
        flow(scene.writer, {Step.RUNS: create}).resume(CALL_ID, Step.RUNS)
    # The lock of the row is released, too: the claim was.
    assert written == []
    assert replace(scene.call, lock_version=0) == ADMITTED
    assert scene.claim_owner is None
    assert scene.queue.enqueued == []


def test_a_step_hears_of_its_call_once_it_is_stored_and_of_none_that_is_not(scene: Scene) -> None:
    scene.insert(ADMITTED)
    going = flow(scene.writer, scene.steps)
    going.resume(CALL_ID, Step.RUNS)
    (stored,) = cast("list[Call]", going._steps[Step.RUNS].stored)  # type: ignore[attr-defined]
    assert stored == scene.call


def test_what_follows_a_join_is_tried_again_by_its_command_until_it_succeeds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message at hand would find nothing to do: the call is connected."""
    failures = [errors.DatabaseUnavailable("canceling statement due to lock timeout")] * 2
    told: list[State] = []

    def tell(call: Call, _named: object) -> None:
        if failures:
            raise failures.pop()
        told.append(call.state)

    scene.insert(JOINING)
    going = flow(scene.writer, scene.steps, serves={Step.BRIDGE})
    monkeypatch.setattr(going._steps[Step.BRIDGE], "recorded", tell)
    going.resume(CALL_ID, Step.BRIDGE, attempt=1)
    going.resume(CALL_ID, Step.BRIDGE, attempt=1)
    assert (scene.queue.names, told) == (["JoinLegs", "JoinLegs"], [])
    assert all(command.pause for command in scene.queue.enqueued)
    going.resume(CALL_ID, Step.BRIDGE, attempt=2)
    assert told == []
    going.resume(CALL_ID, Step.BRIDGE, attempt=1)
    assert (scene.queue.names, told) == (["JoinLegs", "JoinLegs"], [State.CONNECTED])
