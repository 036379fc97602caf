"""How facts are written: what is asked of the store, what is ordered, and what a conflict comes to."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from shared import errors
from shared.call import facts
from shared.call.calls import Call
from shared.call.states import State
from shared.call.steps import Step
from shared.storage import call_writer
from shared.storage.call_store import ClaimRequest
from shared.storage.call_writer import CallExists, CallWriter, VersionConflict
from shared.storage.timeline import TimelineEntry
from tests.simulation.stores import MemoryStore
from tests.support.calls import (
    ADMITTED,
    CALL_ID,
    JOINING,
    LIMITS,
    NOW,
    ORIGINATING,
    PREPARED,
    RECEIVED,
    WAITING,
    seconds,
)
from tests.support.flows import CommandQueue, InstantDatabase

NOTE = TimelineEntry(kind="note", name="a note")
RUN = facts.RunCreated(workflow_run_id=9)
READY = facts.MediaReady(attempt=1)


class Store(MemoryStore):
    """Calls in memory. So many saves find that another process wrote the call meanwhile."""

    def __init__(self, call: Call | None, conflicts: int = 0) -> None:
        super().__init__(InstantDatabase(), lambda *_: None)
        self.conflicts = conflicts
        self.loads = 0
        self.saved: list[tuple[list[str], list[str], str]] = []
        self.noted: list[str] = []
        if call is not None:
            assert self.insert(call, [], None)

    def load(self, call_id: UUID) -> Call | None:
        self.loads += 1
        return super().load(call_id)

    def save(
        self, changes: Any, *, timeline: Sequence[TimelineEntry], owner: str, claim: Any, keeps_claim: bool = False
    ) -> Call | None:
        if self.conflicts:
            self.conflicts -= 1
            row = self.rows[changes[0].before.call_id]
            row.call = replace(row.call, lock_version=-1 - self.conflicts)
        names = [type(change.fact).__name__ for change in changes]
        self.saved.append((names, [entry.name for entry in timeline], owner))
        return super().save(changes, timeline=timeline, owner=owner, claim=claim, keeps_claim=keeps_claim)

    def append_timeline(self, timeline: Sequence[TimelineEntry], **where: Any) -> None:
        assert where["call"].call_id == CALL_ID
        self.noted += [entry.name for entry in timeline]


class Scene:
    """A writer around one stored call."""

    def __init__(self, call: Call | None, conflicts: int = 0) -> None:
        self.store, self.queue = Store(call, conflicts), CommandQueue()
        self.writer = CallWriter(
            self.store, self.queue, LIMITS, who="worker/1", new_id=lambda: UUID(int=0xABCDEF01 << 96)
        )

    @property
    def row(self) -> Any:
        (row,) = self.store.rows.values()
        return row


# ── one write ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_facts_are_stored_and_what_they_lead_to_is_ordered() -> None:
    scene = Scene(ADMITTED)
    recorded = scene.writer.record(ADMITTED, RUN, timeline=[NOTE], owner="me")
    assert (recorded.applied, recorded.claim, recorded.call) == (True, None, scene.row.call)
    assert recorded.call.state is State.PREPARED
    assert scene.store.saved == [(["RunCreated"], ["a note"], "me")]
    assert (scene.queue.names, scene.store.noted) == (["StartMedia"], [])


def test_facts_that_change_nothing_are_not_written_but_their_requests_are() -> None:
    scene = Scene(PREPARED)
    recorded = scene.writer.record(PREPARED, RUN, timeline=[NOTE])
    assert (recorded.call, recorded.applied, recorded.claim) == (PREPARED, False, None)
    assert (scene.store.saved, scene.store.noted) == ([], ["a note"])
    scene.writer.record(PREPARED, RUN)
    assert scene.store.noted == ["a note"]


@pytest.mark.parametrize("orders", [True, False])
def test_what_is_to_be_done_without_a_change_is_ordered_as_well(*, orders: bool) -> None:
    """A leg of an attempt that counts no more goes on sight."""
    call = replace(WAITING, attempt=2)
    scene = Scene(call)
    assert not scene.writer.record(call, READY, orders=orders).applied
    assert scene.queue.names == (["RemoveAttempt"] if orders else [])


def test_nothing_is_ordered_that_a_later_fact_has_made_obsolete() -> None:
    scene = Scene(WAITING)
    scene.writer.record(WAITING, READY, facts.Joined(attempt=1))
    assert scene.store.saved[0][0] == ["MediaReady", "Joined"]
    assert scene.queue.names == []


def test_facts_may_be_stored_without_an_order() -> None:
    scene = Scene(WAITING)
    assert scene.writer.record(WAITING, READY, orders=False).applied
    assert scene.queue.names == []


def test_a_call_is_over_once_its_end_is_stored_here(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=5.0)
    monkeypatch.setattr(call_writer, "_OVER", 1)
    scene = Scene(JOINING)
    scene.writer.clock = cast(Any, SimpleNamespace(monotonic=lambda: clock.now))
    other = replace(JOINING, call_id=UUID(int=5), channel_id="5.5", workflow_run_id=None)
    assert scene.store.insert(other, [], None)
    recorded = scene.writer.record(JOINING, facts.Joined(attempt=1))
    assert recorded.applied
    assert not scene.writer.is_over(JOINING.call_id, connection_id=JOINING.connection_id)
    scene.writer.record(recorded.call, facts.CallerGone(leg_id=JOINING.leg_id))
    assert scene.writer.is_over(JOINING.call_id, connection_id=JOINING.connection_id)
    assert not scene.writer.is_over(JOINING.call_id, connection_id=JOINING.connection_id + 1)
    clock.now += call_writer._OVER_SECONDS
    assert not scene.writer.is_over(JOINING.call_id, connection_id=JOINING.connection_id), "a fail-over may forget it"
    clock.now -= call_writer._OVER_SECONDS
    scene.writer.record(other, facts.CallerGone(leg_id="5.5"))
    assert not scene.writer.is_over(JOINING.call_id, connection_id=JOINING.connection_id), "the oldest is forgotten"


def test_a_queue_that_is_away_undoes_nothing() -> None:
    scene = Scene(ADMITTED)
    scene.queue.is_away = True
    assert scene.writer.record(ADMITTED, RUN).applied
    assert scene.row.call.state is State.PREPARED


def test_a_queue_is_not_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(JOINING)
    asked: list[object] = []
    monkeypatch.setattr(scene.queue, "enqueue", lambda *given, **_: asked.append(given))
    scene.writer.record(JOINING, facts.Joined(attempt=1))
    assert asked == []


# ── the claim for the next step ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("call", "fact", "then", "step"),
    [
        pytest.param(WAITING, READY, {Step.BRIDGE}, Step.BRIDGE, id="a state is entered"),
        pytest.param(WAITING, READY, {Step.MEDIA}, None, id="not served"),
        pytest.param(WAITING, READY, set(), None, id="nothing is served"),
        pytest.param(ADMITTED, RUN, {Step.MEDIA}, Step.MEDIA, id="an attempt begins along"),
        pytest.param(
            PREPARED, facts.AttemptBegun(attempt=1, in_doubt_until=NOW), {Step.MEDIA}, Step.MEDIA,
            id="an attempt begins",
        ),
        pytest.param(JOINING, facts.DeadlinePassed(), {Step.BRIDGE}, None, id="the state is the same"),
        pytest.param(JOINING, facts.Joined(attempt=1), set(Step), None, id="no step works there"),
        pytest.param(JOINING, facts.LegsCreated(attempt=1), {Step.BRIDGE}, None, id="nothing changes"),
    ],
)  # fmt: skip
def test_the_claim_of_the_next_step_is_taken_in_the_same_write(
    call: Call, fact: facts.Fact, then: Collection[Step], step: Step | None
) -> None:
    scene = Scene(call)
    recorded = scene.writer.record(call, fact, then=then)
    assert (recorded.claim.step if recorded.claim is not None else None) is step
    if recorded.claim is not None:
        assert recorded.claim == scene.writer.claim_request(recorded.claim.step, "worker/1/abcdef01")
        assert (scene.row.claim_owner, scene.queue.names) == (recorded.claim.owner, [])
        assert scene.row.claim_until == NOW + LIMITS.claim(recorded.claim.step)
    if step is Step.MEDIA:
        assert recorded.call.attempt == 1


def test_an_owner_keeps_its_name_from_step_to_step() -> None:
    recorded = Scene(WAITING).writer.record(WAITING, READY, owner="me", then={Step.BRIDGE})
    assert recorded.claim is not None
    assert recorded.claim.owner == "me"


# ── conflicts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_a_conflict_the_core_is_asked_again_and_requests_are_written_once() -> None:
    scene = Scene(ADMITTED, conflicts=2)
    assert scene.writer.record(ADMITTED, RUN, timeline=[NOTE]).applied
    assert [timeline for _, timeline, _ in scene.store.saved] == [["a note"], [], []]
    assert (scene.store.loads, scene.row.call.state) == (2, State.PREPARED)


@pytest.mark.parametrize(("conflicts", "is_stored"), [(9, True), (10, False)])
def test_conflicts_without_end_are_for_the_message_s_next_try(conflicts: int, *, is_stored: bool) -> None:
    scene = Scene(ADMITTED, conflicts=conflicts)
    if is_stored:
        assert scene.writer.record(ADMITTED, RUN).applied
    else:
        with pytest.raises(errors.TransientError, match="10 version conflicts in a row"):
            scene.writer.record(ADMITTED, RUN)


def test_facts_that_hold_for_one_version_only_are_dropped_after_a_conflict() -> None:
    scene = Scene(ADMITTED, conflicts=1)
    recorded = scene.writer.record(ADMITTED, RUN, retry_on_conflict=False)
    assert (recorded.call, recorded.applied, recorded.claim) == (ADMITTED, False, None)
    assert (scene.store.loads, scene.queue.names, scene.row.call.state) == (0, [], State.ADMITTED)


def test_a_call_that_is_gone_from_the_database_is_not_written_again() -> None:
    with pytest.raises(errors.TransientError, match="is gone from the database"):
        Scene(None).writer.record(ADMITTED, RUN)


# ── new calls ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_call_is_written_as_facts_leave_it() -> None:
    scene = Scene(None)
    recorded = scene.writer.record_new(RECEIVED, facts.CallerLeft(), owner="me", then={Step.TEARDOWN}, timeline=[NOTE])
    assert recorded.claim is not None
    assert (recorded.applied, recorded.claim.step, recorded.claim.owner) == (True, Step.TEARDOWN, "me")
    assert (scene.row.call.state, scene.row.claim_owner, scene.queue.names) == (State.ENDING, "me", [])
    with pytest.raises(CallExists):
        scene.writer.record_new(RECEIVED, facts.CallerLeft())
    assert scene.queue.names == []


@pytest.mark.parametrize(("prefix", "nonce"), [("aip-k3x9q2-", "abcdef01"), ("aip-", ""), ("", "")])
def test_each_attempt_begins_with_a_nonce_of_its_own(prefix: str, nonce: str) -> None:
    """But where processes of v0.1.0-rc1 may go on with the call."""
    call = replace(ADMITTED, id_prefix=prefix)
    begun = Scene(call).writer.record(call, RUN, then={Step.MEDIA}).call
    assert (begun.attempt, begun.nonce) == (1, nonce)
    given = Scene(call).writer.record(call, RUN, then={Step.MEDIA}, nonce="4f2a9c01").call
    assert given.nonce == "4f2a9c01"


def test_what_is_noted_in_a_claim_leaves_the_claim_as_it_is() -> None:
    scene = Scene(None)
    owner = ClaimRequest(owner="me", step=Step.ORIGINATE, duration=seconds(9))
    assert scene.store.insert(ORIGINATING, [], owner)
    begun = facts.DialBegun(in_doubt_until=NOW)
    noted = scene.writer.note(ORIGINATING, begun, timeline=(), owner="me")
    assert noted is not None
    assert (noted.is_dial_begun, scene.row.call, scene.row.claim_owner) == (True, noted, "me")
    # It is begun; the claim is another worker's; the call was written since.
    assert scene.writer.note(noted, begun, timeline=(), owner="me") is None
    unsent = facts.DialUnsent(in_doubt_until=NOW, reason="connection refused")
    assert scene.writer.note(noted, unsent, timeline=(), owner="other") is None
    assert scene.writer.note(replace(noted, lock_version=-9), unsent, timeline=(), owner="me") is None
    assert scene.row.call == noted


def test_what_facts_would_make_of_a_call_is_not_stored() -> None:
    scene = Scene(ADMITTED)
    assert scene.writer.after(ADMITTED, RUN, facts.CallerLeft()).state is State.ENDING
    assert (scene.row.call, scene.store.saved) == (ADMITTED, [])


# ── in a transaction ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_new", [True, False])
def test_facts_in_a_transaction_are_stored_with_what_it_wrote(*, is_new: bool) -> None:
    scene = Scene(None if is_new else ADMITTED)
    written: list[str] = []
    work = scene.writer.begin(ADMITTED, lock=False, is_new=is_new)
    cast(Any, work.connection).writes.append(lambda: written.append("by the step"))
    recorded = work.record(RUN, timeline=[NOTE], owner="me", then={Step.MEDIA})
    assert recorded.claim is not None
    assert (recorded.applied, recorded.claim.step, recorded.call.state) == (True, Step.MEDIA, State.PREPARED)
    assert (scene.row.call.attempt, scene.row.claim_owner, written) == (1, "me", ["by the step"])
    # It has ended: there is nothing to roll back.
    work.roll_back()
    assert scene.row.call.state is State.PREPARED


@pytest.mark.parametrize("lock", [True, False])
def test_a_call_that_was_written_meanwhile_is_not_written_over(*, lock: bool) -> None:
    scene = Scene(ADMITTED)
    scene.row.call = replace(ADMITTED, lock_version=5)
    work = scene.writer.begin(ADMITTED, lock=lock)
    if lock:
        assert work.call.lock_version == 5
        assert work.record(RUN, timeline=[], owner="", then=()).applied
        return
    with pytest.raises(VersionConflict):
        work.record(RUN, timeline=[], owner="", then=())
    work.roll_back()
    assert scene.row.call.state is State.ADMITTED
    assert scene.queue.names == []


def test_facts_that_do_not_apply_leave_nothing_of_a_transaction() -> None:
    scene = Scene(PREPARED)
    work = scene.writer.begin(PREPARED, lock=False)
    with pytest.raises(VersionConflict):
        work.record(RUN, timeline=[], owner="", then=())


@pytest.mark.parametrize("now", [None, PREPARED])
def test_a_locked_call_in_another_state_is_let_go(now: Call | None) -> None:
    scene = Scene(now)
    with pytest.raises(VersionConflict):
        scene.writer.begin(ADMITTED, lock=True)
    # The transaction has ended: another one gets the lock.
    if now is not None:
        assert scene.writer.begin(PREPARED, lock=True).call == PREPARED


def test_a_new_call_of_a_known_identity_exists() -> None:
    scene = Scene(ADMITTED)
    work = scene.writer.begin(ADMITTED, lock=False, is_new=True)
    with pytest.raises(CallExists):
        work.record(RUN, timeline=[], owner="", then=())
    assert scene.row.call == ADMITTED


def test_a_duplicate_of_another_key_is_no_known_call(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(ADMITTED)
    work = scene.writer.begin(ADMITTED, lock=False)

    def refuse(*_: object) -> None:
        raise errors.DuplicateKey('duplicate key value violates unique constraint "calls_run"')

    monkeypatch.setattr(scene.store, "_commit", refuse)
    with pytest.raises(errors.DuplicateKey):
        work.record(RUN, timeline=[], owner="", then=())


def test_a_driver_s_error_is_raised_in_the_store_s_words() -> None:
    """As at the end of any transaction: the writer passes it to the store's own."""
    ended: list[BaseException | None] = []

    class Connection:
        def __enter__(self) -> str:
            return "transaction"

        def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
            ended.append(exc)

    store = SimpleNamespace(transaction=Connection, now=lambda: NOW)
    writer = CallWriter(cast(Any, store), CommandQueue(), LIMITS, who="worker/1", clock=time)
    broken = KeyError("of the driver")
    writer.begin(ADMITTED, lock=False).roll_back(broken)
    writer.begin(ADMITTED, lock=False).roll_back()
    assert ended[0] is broken
    assert isinstance(ended[1], VersionConflict)
