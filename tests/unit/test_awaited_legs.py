"""Awaited media legs: one write from the media request to the join, and each thing that can end the wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from shared import errors
from shared.call import facts
from shared.call.calls import Call
from shared.call.states import State
from shared.call.steps import Step
from shared.storage.call_writer import CallWriter
from tests.simulation.stores import MemoryStore
from tests.support.calls import ADMITTED, CALL_ID, LIMITS
from tests.support.flows import CommandQueue, InstantDatabase, Work, flow
from workers import awaited_legs
from workers.awaited_legs import AwaitedLegs
from workers.claims import Claim
from workers.flow import Flow
from workers.pools import POOLS, served_steps

SET_UP, TEARDOWN = served_steps(POOLS["set-up"]), served_steps(POOLS["teardown"])
CONNECTION = ADMITTED.connection_id
#: A wait that the tests of the thread wait for as well.
SHORT_SECONDS = 0.02


class Clock:
    """Stands still unless it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


class Scene:
    """A call that was just prepared, and workers whose media step creates its legs."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.saves: list[Call] = []
        self.store = MemoryStore(InstantDatabase(), lambda _before, after, _fact: None)
        self.queue = CommandQueue()
        self.writer = CallWriter(self.store, self.queue, LIMITS, who="test", clock=self.clock)
        self.joins: list[Claim] = []
        self.join: facts.Fact | errors.PipelineError = facts.Joined(attempt=1)
        self.legs: AwaitedLegs[Claim] = AwaitedLegs(monotonic=self.clock.monotonic)
        self.store.insert(ADMITTED, [], None)

    def worker(self, legs: AwaitedLegs[Claim] | None = None, *, serves: frozenset[Step] = SET_UP) -> Flow:
        def bridge(claim: Claim) -> Sequence[facts.Fact]:
            self.joins.append(claim)
            if isinstance(self.join, errors.PipelineError):
                claim.give_up(str(self.join))
                return ()
            return (self.join,)

        steps: dict[Step, Work] = {
            Step.RUNS: lambda _claim: (facts.RunCreated(workflow_run_id=9),),
            Step.MEDIA: lambda _claim: (facts.LegsCreated(attempt=1),),
            Step.BRIDGE: bridge,
        }
        return flow(self.writer, steps, serves=serves, awaited=legs or self.legs)

    def begin(self) -> Flow:
        """Create the legs, and wait for the media leg."""
        going = self.worker()
        going.resume(CALL_ID, Step.RUNS)
        return going

    @property
    def call(self) -> Call:
        return self.store.rows[CALL_ID].call

    @property
    def claim_owner(self) -> str | None:
        return self.store.rows[CALL_ID].claim_owner


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_nothing_is_stored_between_the_attempt_and_the_join(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    going = scene.begin()
    waiting = scene.call
    assert (waiting.state, waiting.attempt, waiting.legs_created) == (State.PREPARED, 1, False)
    assert scene.claim_owner is not None
    monkeypatch.setattr(scene.store, "load", lambda _call_id: pytest.fail("the call is in memory"))
    assert going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    assert scene.call.state is State.CONNECTED
    assert scene.call.lock_version == waiting.lock_version + 1
    assert scene.call.attempt_in_doubt_until is None
    assert scene.claim_owner is None
    assert scene.queue.names == []
    (join,) = scene.joins
    assert join.is_continued


def test_the_news_joins_once(scene: Scene) -> None:
    going = scene.begin()
    assert going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    assert not going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    assert len(scene.joins) == 1


@pytest.mark.parametrize(("attempt", "connection_id"), [(2, CONNECTION), (1, CONNECTION + 1)])
def test_news_of_another_attempt_or_from_another_connection_leaves_the_leg_awaited(
    scene: Scene, attempt: int, connection_id: int
) -> None:
    going = scene.begin()
    assert not going.media_ready(CALL_ID, attempt, connection_id=connection_id)
    assert going.media_ready(CALL_ID, 1, connection_id=CONNECTION)


def test_another_worker_that_gets_the_news_joins_nothing_while_the_claim_stands(scene: Scene) -> None:
    """It stores that the media leg is ready; the end of the wait orders the join, which looks first."""
    scene.begin()
    other = scene.worker(AwaitedLegs())
    assert not other.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    other.report(scene.call, facts.MediaReady(attempt=1))
    assert (scene.call.state, scene.joins) == (State.PREPARED, [])
    scene.clock.now += awaited_legs.WAIT_SECONDS
    awaited_legs.store(scene.legs.expired())
    assert (scene.call.state, scene.queue.names) == (State.JOINING, ["JoinLegs"])
    other.resume(CALL_ID, Step.BRIDGE, attempt=1)
    (join,) = scene.joins
    assert not join.is_continued
    assert scene.call.state is State.CONNECTED


def test_a_leg_that_is_not_ready_in_time_is_stored_as_created(scene: Scene) -> None:
    going = scene.begin()
    scene.clock.now += awaited_legs.WAIT_SECONDS - 0.01
    assert scene.legs.expired() == []
    scene.clock.now += 0.01
    awaited_legs.store(scene.legs.expired())
    assert (scene.call.state, scene.call.legs_created, scene.claim_owner) == (State.PREPARED, True, None)
    assert not going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    going.report(scene.call, facts.MediaReady(attempt=1))
    (join,) = scene.joins
    assert not join.is_continued


@pytest.mark.parametrize(
    ("happened", "state"),
    [(facts.CallerLeft(), State.ENDING), (facts.MediaGone(attempt=1, reason="no agent"), State.PREPARED)],
    ids=["caller", "agent"],
)
def test_a_leg_that_ends_meanwhile_ends_the_wait_and_leaves_nothing_in_doubt(
    scene: Scene, happened: facts.Fact, state: State
) -> None:
    """The end is handled by another pool of the same process."""
    scene.begin()
    scene.worker(serves=TEARDOWN - {Step.TEARDOWN}).report(scene.call, happened)
    assert scene.call.state is state
    assert scene.call.in_doubt_until is None
    assert scene.claim_owner is None
    assert scene.legs.is_empty()
    assert scene.joins == []


def test_a_hang_up_that_another_worker_handles_is_found_by_the_join(scene: Scene) -> None:
    going = scene.begin()
    scene.worker(AwaitedLegs(), serves=frozenset()).report(scene.call, facts.CallerLeft())
    assert scene.call.in_doubt_until is not None
    scene.join = facts.CallerGone()
    assert going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    assert scene.call.state is State.ENDING
    assert scene.call.in_doubt_until is None
    # The first teardown could not be complete; this one is.
    assert scene.queue.names[-2:] == ["TearDown", "RemoveAttempt"]


def test_news_that_comes_before_the_answer_is_stored_and_the_answer_joins(scene: Scene) -> None:
    going = scene.worker()

    def create(_claim: Claim) -> Sequence[facts.Fact]:
        assert not going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
        going.report(scene.call, facts.MediaReady(attempt=1))
        return (facts.LegsCreated(attempt=1),)

    going._steps[Step.MEDIA]._work = create  # type: ignore[attr-defined]
    going.resume(CALL_ID, Step.RUNS)
    assert scene.call.state is State.CONNECTED
    assert scene.legs.is_empty()
    assert len(scene.joins) == 1


def test_a_join_of_unknown_outcome_stores_what_is_known_and_is_ordered_again(scene: Scene) -> None:
    going = scene.begin()
    scene.join = errors.AsteriskUnreachable("no answer in time")
    assert going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    # Ordered by the deadline: at once, the first request might still be under way.
    assert (scene.call.state, scene.claim_owner, scene.queue.names) == (State.JOINING, None, [])


def failing_saves(scene: Scene, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the next saves fail, as without Postgres."""
    save, left = scene.store.save, [errors.DatabaseUnavailable("away")] * count

    def fail_first(*args: Any, **given: Any) -> Call | None:
        if left:
            raise left.pop()
        return save(*args, **given)

    monkeypatch.setattr(scene.store, "save", fail_first)


@pytest.mark.parametrize("stored_by", ["the message's retry", "the end of the wait", "a hang-up"])
def test_a_join_that_could_not_be_stored_is_stored_later_and_not_repeated(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, stored_by: str
) -> None:
    going = scene.begin()
    failing_saves(scene, monkeypatch, 2)
    for _ in range(2):
        with pytest.raises(errors.DatabaseUnavailable):
            going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    assert (scene.call.state, len(scene.joins)) == (State.PREPARED, 1)
    assert scene.claim_owner is not None
    if stored_by == "the message's retry":
        assert going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    elif stored_by == "the end of the wait":
        scene.clock.now += awaited_legs.WAIT_SECONDS
        assert awaited_legs.store(scene.legs.expired()) == ()
    else:
        scene.worker(serves=frozenset()).report(scene.call, facts.CallerLeft())
    assert scene.call.connected_at is not None
    assert scene.call.state is (State.ENDING if stored_by == "a hang-up" else State.CONNECTED)
    assert len(scene.joins) == 1
    assert scene.legs.is_empty()


def test_a_claim_that_has_ended_is_not_kept_for_facts_that_could_not_be_stored(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = scene.begin()
    failing_saves(scene, monkeypatch, 1)
    scene.clock.now += LIMITS.claim(Step.MEDIA).total_seconds() + 0.1
    with pytest.raises(errors.DatabaseUnavailable):
        going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    assert scene.legs.is_empty()


def test_what_is_known_of_the_legs_is_stored_though_the_join_raises(scene: Scene) -> None:
    going = scene.begin()

    def join(_claim: Claim) -> Sequence[facts.Fact]:
        raise KeyError("a mistake")

    going._steps[Step.BRIDGE]._work = join  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    assert (scene.call.state, scene.claim_owner, scene.queue.names) == (State.JOINING, None, [])


def test_a_claim_too_old_for_a_join_is_stored_first(scene: Scene) -> None:
    """The join would not end within the claim, and another worker could begin it."""
    going = scene.begin()
    scene.clock.now += 1.5
    assert going.media_ready(CALL_ID, 1, connection_id=CONNECTION)
    assert (scene.call.state, scene.joins, scene.queue.names) == (State.JOINING, [], ["JoinLegs"])


def test_a_pool_that_joins_nothing_waits_for_no_leg(scene: Scene) -> None:
    scene.worker(serves=SET_UP - {Step.BRIDGE}).resume(CALL_ID, Step.RUNS)
    assert scene.call.legs_created
    assert scene.legs.is_empty()


def test_the_number_of_awaited_legs_is_bounded(scene: Scene) -> None:
    legs: AwaitedLegs[Claim] = AwaitedLegs(capacity=1)
    claims = [cast(Claim, _AClaim(replace(ADMITTED, attempt=number))) for number in (1, 2)]
    for claim in claims:
        legs.expect(claim)
    assert [legs.keep(claim) for claim in claims] == [True, False]
    legs.expect(claims[1])
    assert not legs.keep(claims[1])
    legs.take(CALL_ID, 1, connection_id=CONNECTION)
    legs.expect(claims[1])
    assert legs.keep(claims[1])


def test_a_step_that_raises_leaves_no_expectation(scene: Scene) -> None:
    def create(_claim: Claim) -> Sequence[facts.Fact]:
        raise KeyError("a mistake")

    going = scene.worker()
    going._steps[Step.MEDIA]._work = create  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        going.resume(CALL_ID, Step.RUNS)
    assert scene.legs._expected == set()


# ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _AClaim:
    """A claim that notes that it was settled."""

    def __init__(self, call: Call = ADMITTED, error: Exception | None = None, *, has_time: bool = False) -> None:
        self.call = call
        self._has_time = has_time
        self.settled = threading.Event()
        self._error = error

    def has_time(self, _seconds: float) -> bool:
        return self._has_time

    def settle(self) -> None:
        self.settled.set()
        if self._error is not None:
            raise self._error


def _kept(waiting: awaited_legs.Waiting[Claim], claim: _AClaim) -> bool:
    waiting.legs.expect(cast(Claim, claim))
    return waiting.legs.keep(cast(Claim, claim))


def test_the_thread_ends_each_wait_and_survives_what_fails() -> None:
    waiting: awaited_legs.Waiting[Claim] = awaited_legs.Waiting(wait_seconds=SHORT_SECONDS)
    for error in (errors.DatabaseUnavailable("away"), KeyError("a mistake"), None):
        claim = _AClaim(error=error)
        assert _kept(waiting, claim)
        assert claim.settled.wait(60)
    waiting.close()


def test_the_thread_tries_again_what_could_not_be_stored() -> None:
    waiting: awaited_legs.Waiting[Claim] = awaited_legs.Waiting(wait_seconds=SHORT_SECONDS)
    claim = _AClaim(error=errors.DatabaseUnavailable("away"), has_time=True)
    assert _kept(waiting, claim)
    for _ in range(3):
        assert claim.settled.wait(60)
        claim.settled.clear()
    waiting.close()


def test_closing_without_postgres_tries_one_claim_only() -> None:
    """Each would cost a time-out, and the pools wait."""
    waiting: awaited_legs.Waiting[Claim] = awaited_legs.Waiting()
    claims = [_AClaim(replace(ADMITTED, attempt=n), errors.DatabaseUnavailable("away")) for n in (1, 2, 3)]
    assert all(_kept(waiting, claim) for claim in claims)
    waiting.close()
    assert [claim.settled.is_set() for claim in claims] == [True, False, False]


def test_closing_settles_what_is_kept_and_keeps_no_more() -> None:
    waiting: awaited_legs.Waiting[Claim] = awaited_legs.Waiting()
    claim = _AClaim()
    assert _kept(waiting, claim)
    waiting.close()
    assert claim.settled.is_set()
    assert not _kept(waiting, _AClaim())
    assert not waiting._thread.is_alive()


def test_closing_does_not_wait_for_a_leg_that_never_comes() -> None:
    waiting: awaited_legs.Waiting[Claim] = awaited_legs.Waiting()
    waiting.close()
    assert not waiting._thread.is_alive()
