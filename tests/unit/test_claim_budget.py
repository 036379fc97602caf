"""A claim as a budget: how long its requests may take, what is kept of them, and what is stored when."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from shared import errors
from shared.asterisk.rest import RequestRecord
from shared.call import facts
from shared.call.calls import Call
from shared.call.states import State
from shared.call.steps import Step
from shared.storage.call_writer import CallWriter, Recorded, VersionConflict
from shared.storage.timeline import TimelineEntry
from tests.simulation.stores import MemoryStore
from tests.support.calls import ADMITTED, ATTEMPTING, CALL_ID, JOINING, LIMITS, PREPARED, seconds
from tests.support.flows import CommandQueue, InstantDatabase
from workers import claims
from workers.claims import Claim, TimedBudget


class Clock:
    """Stands still unless it is moved; a pause moves it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, pause_seconds: float, /) -> None:
        self.now += pause_seconds


class Store(MemoryStore):
    """Calls in memory; keeps the timeline, and whose claims were released."""

    def __init__(self) -> None:
        super().__init__(InstantDatabase(), lambda *_: None)
        self.timeline: list[tuple[str, str]] = []
        #: The call of each append.
        self.of: list[Call | None] = []
        self.is_away = False

    def append_timeline(self, timeline: Sequence[TimelineEntry], *, call: Call | None = None, **_: Any) -> None:
        self.of.append(call)
        self.timeline += [(entry.name, entry.detail) for entry in timeline]

    def save(self, *args: Any, **given: Any) -> Call | None:
        if self.is_away:
            raise errors.DatabaseUnavailable("away")
        self.append_timeline(given["timeline"], call=args[0])
        return super().save(*args, **given)

    def release(self, call_id: Any, owner: str) -> None:
        if self.is_away:
            raise errors.DatabaseUnavailable("away")
        super().release(call_id, owner)


class Scene:
    """A claimed call."""

    def __init__(self, call: Call = JOINING, step: Step = Step.BRIDGE) -> None:
        self.clock, self.store, self.queue = Clock(), Store(), CommandQueue()
        self.writer = CallWriter(self.store, self.queue, LIMITS, who="test", clock=self.clock)
        assert self.store.insert(call, [], self.writer.claim_request(step, "me"))
        self.claim = Claim(self.writer, call, step, owner="me", started=self.clock.now)

    @property
    def row(self) -> tuple[State, str | None]:
        """State and claim of the call as stored."""
        row = self.store.rows[CALL_ID]
        return row.call.state, row.claim_owner


def test_no_request_begins_once_the_worker_may_count_as_dead() -> None:
    """Its claims may be broken, and others at work on its calls."""
    scene = Scene()
    lives_since = [scene.clock.now]
    scene.writer.lives_since = lambda moment: lives_since[0] <= moment
    assert scene.claim.seconds_left() > 0
    lives_since[0] += 1
    with pytest.raises(errors.OutOfTime, match="not heard of"):
        scene.claim.seconds_left()
    # What was done is stored all the same.
    scene.claim.record(facts.Joined(attempt=1))
    assert scene.row == (State.CONNECTED, None)


@pytest.fixture
def scene() -> Scene:
    return Scene()


ASKED = RequestRecord(what="GET /channels/1", answer="200", took_ms=12.001)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_runs_down_to_nothing(scene: Scene) -> None:
    budget = TimedBudget(scene.writer, 2.0)
    assert budget.seconds_left() == 2.0
    budget.pause(1.5)
    assert budget.seconds_left() == 0.5
    # No longer than there is time.
    budget.pause(60.0)
    assert scene.clock.now == 1002.0
    for _ in range(2):
        with pytest.raises(errors.OutOfTime):
            budget.seconds_left()
        scene.clock.now += 0.5


def test_a_claim_ends_here_no_later_than_in_the_row(scene: Scene) -> None:
    """It counts from the moment it was asked for, not from the answer."""
    scene.clock.now += 3.0
    late = Claim(scene.writer, JOINING, Step.BRIDGE, owner="me", started=1000.0)
    assert late.seconds_left() == 5.0
    assert (late.has_time(5.0), late.has_time(5.01)) == (True, False)
    assert scene.claim.request() == scene.writer.claim_request(Step.BRIDGE, "me")
    assert scene.claim.request().duration == seconds(8)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_in_the_timeline_as_of_its_beginning(scene: Scene) -> None:
    scene.claim.record_request(ASKED)
    at = scene.store.now() - seconds(0.012001)
    assert scene.claim.timeline() == [
        TimelineEntry(kind="request", name="GET /channels/1", detail="200", at=at, took_ms=12.0)
    ]
    assert scene.claim.timeline() == []


def test_a_question_is_asked_once(scene: Scene) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return f"answer to {question}"

    for question in ("a", "b", "a"):
        assert scene.claim.ask_once(question, functools.partial(ask, question)) == f"answer to {question}"
    assert asked == ["a", "b"]


# ── the end of a claim ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_that_comes_to_something_stores_it_with_its_requests(scene: Scene) -> None:
    scene.claim.record_request(ASKED)
    with scene.claim:
        assert scene.claim.record(facts.Joined(attempt=1)) is None
    assert scene.row == (State.CONNECTED, None)
    assert scene.claim.call.state is State.CONNECTED
    assert scene.store.timeline == [("GET /channels/1", "200")]


def test_a_step_that_breaks_off_ends_its_claim(scene: Scene) -> None:
    with pytest.raises(KeyError), scene.claim:
        raise KeyError
    assert scene.row == (State.JOINING, None)


def test_a_step_that_ends_well_does_not_release_its_claim_by_itself(scene: Scene) -> None:
    with scene.claim:
        pass
    assert scene.row == (State.JOINING, "me")


def test_a_claim_of_a_call_that_is_not_written_yet_is_not_released(scene: Scene) -> None:
    new = Claim(scene.writer, JOINING, Step.BRIDGE, owner="me", started=1000.0, is_new=True)
    with pytest.raises(KeyError), new:
        raise KeyError
    assert scene.row == (State.JOINING, "me")


def test_a_claim_that_cannot_be_released_raises_what_broke_the_step_off(scene: Scene) -> None:
    scene.store.is_away = True
    with pytest.raises(KeyError), scene.claim:
        raise KeyError


def test_a_step_that_gives_up_says_so_and_ends_its_claim(scene: Scene) -> None:
    scene.claim.record_request(ASKED)
    scene.claim.give_up("no answer in time")
    assert scene.row == (State.JOINING, None)
    assert scene.store.timeline == [("GET /channels/1", "200"), ("bridge gave up", "no answer in time")]
    assert scene.store.of == [scene.claim.call]


def test_a_step_that_gives_up_tells_the_call_what_its_asterisk_did(scene: Scene) -> None:
    scene.claim.record_request(ASKED)
    scene.claim.give_up(errors.AsteriskUnreachable("no answer in time"))
    assert scene.row == (State.JOINING, None)
    assert scene.store.rows[CALL_ID].call.obstacle == "Asterisk gave no answer: no answer in time"
    assert scene.store.timeline == [("GET /channels/1", "200"), ("bridge gave up", "no answer in time")]


@pytest.mark.parametrize(
    ("failure", "obstacle"),
    [
        (errors.AsteriskUnreachable("answered 503"), "Asterisk gave no answer: answered 503"),
        (errors.PlatformUnserved("no layout"), "the platform gave no answer: no layout"),
        (errors.DatabaseUnavailable("too slow"), None),
        (errors.OutOfTime("the step ran out of its time"), None),
        (KeyError(), None),
    ],
)
def test_a_step_that_breaks_off_tells_the_call_what_was_not_our_fault(
    scene: Scene, failure: Exception, obstacle: str | None
) -> None:
    with pytest.raises(type(failure)), scene.claim:
        raise failure
    assert scene.row == (State.JOINING, None)
    assert scene.store.rows[CALL_ID].call.obstacle == obstacle


def test_a_step_that_is_dropped_leaves_its_requests_only(scene: Scene) -> None:
    scene.claim.drop()
    assert scene.store.timeline == []
    scene.claim.record_request(ASKED)
    scene.claim.drop()
    assert scene.store.timeline == [("GET /channels/1", "200")]
    assert scene.store.of == [scene.claim.call]
    assert scene.row == (State.JOINING, "me")


# ── facts that are stored later ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def attempting() -> Scene:
    """A media step at work on its first attempt."""
    return Scene(ATTEMPTING, Step.MEDIA)


def test_deferred_facts_are_stored_with_the_next_ones(attempting: Scene) -> None:
    claim = attempting.claim
    claim.defer(facts.LegsCreated(attempt=1))
    assert claim.has_deferred
    assert (claim.call.legs_created, attempting.store.rows[CALL_ID].call.legs_created) == (True, False)
    claim.continue_with(Step.BRIDGE, facts.MediaReady(attempt=1))
    assert (claim.step, claim.is_continued, claim.call.state) == (Step.BRIDGE, True, State.JOINING)
    assert claim.record(facts.Joined(attempt=1)) is None
    assert attempting.row == (State.CONNECTED, None)
    assert not claim.has_deferred
    assert attempting.queue.enqueued == []


def test_deferred_facts_keep_the_claim_when_the_step_breaks_off(attempting: Scene) -> None:
    attempting.claim.defer(facts.LegsCreated(attempt=1))
    with pytest.raises(KeyError), attempting.claim:
        raise KeyError
    assert attempting.row == (State.PREPARED, "me")


@pytest.mark.parametrize("orders", [True, False])
def test_settled_facts_order_what_they_lead_to_unless_told_not_to(attempting: Scene, *, orders: bool) -> None:
    attempting.claim.may_lead_to(lambda _call: set(Step))
    attempting.claim.defer(facts.LegsCreated(attempt=1), facts.MediaReady(attempt=1))
    attempting.claim.settle(orders=orders)
    # Ordered by message: the claim leads to no step of this thread.
    assert attempting.row == (State.JOINING, None)
    assert attempting.queue.names == (["JoinLegs"] if orders else [])


def test_facts_that_could_not_be_stored_stay_deferred(attempting: Scene) -> None:
    claim = attempting.claim
    claim.defer(facts.LegsCreated(attempt=1))
    claim.continue_with(Step.BRIDGE, facts.MediaReady(attempt=1))
    claim.record_request(ASKED)
    attempting.store.is_away = True
    with pytest.raises(errors.DatabaseUnavailable):
        claim.record(facts.Joined(attempt=1))
    assert claim.call.state is State.CONNECTED
    attempting.store.is_away = False
    claim.settle()
    assert attempting.row == (State.CONNECTED, None)
    assert attempting.store.timeline == [("GET /channels/1", "200")]


def test_facts_without_deferred_ones_are_not_kept_when_they_cannot_be_stored(scene: Scene) -> None:
    scene.store.is_away = True
    with pytest.raises(errors.DatabaseUnavailable):
        scene.claim.record(facts.Joined(attempt=1))
    assert not scene.claim.has_deferred


def test_a_step_that_gives_up_stores_what_was_deferred(attempting: Scene) -> None:
    attempting.claim.continue_with(Step.BRIDGE, facts.LegsCreated(attempt=1), facts.MediaReady(attempt=1))
    attempting.claim.give_up("no answer in time")
    assert attempting.row == (State.JOINING, None)
    assert attempting.queue.names == []
    assert attempting.store.timeline == [("bridge gave up", "no answer in time")]


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_next_steps_are_found_out_once(scene: Scene) -> None:
    """Finding out may take a query."""
    asked: list[Call] = []

    def next_steps(call: Call) -> set[Step]:
        asked.append(call)
        return {Step.MEDIA}

    scene.claim.may_lead_to(next_steps)
    assert scene.claim.leads_to(Step.MEDIA)
    assert not scene.claim.leads_to(Step.RUNS)
    assert asked == [JOINING]


def test_a_claim_leads_nowhere_unless_told(scene: Scene) -> None:
    assert not any(scene.claim.leads_to(step) for step in Step)


def test_the_claim_for_the_next_step_is_its_owner_s() -> None:
    scene = Scene(ADMITTED, Step.RUNS)
    scene.claim.may_lead_to(lambda _call: {Step.MEDIA})
    following = scene.claim.record(facts.RunCreated(workflow_run_id=9))
    assert following is not None
    assert (following.step, following.call.attempt, following.is_continued) == (Step.MEDIA, 1, False)
    assert following.request() == scene.writer.claim_request(Step.MEDIA, "me")
    assert claims.following(scene.writer, Recorded(call=PREPARED, applied=True), 0.0) is None


def test_a_step_runs_again_on_the_call_as_it_is_now(scene: Scene) -> None:
    scene.store.rows[CALL_ID].call = replace(JOINING, caller_number="+49151")
    scene.claim.retry_locked()
    assert scene.claim.call.caller_number == "+49151"


@pytest.mark.parametrize("now", [None, replace(JOINING, state=State.ENDING)])
def test_a_step_does_not_run_again_where_it_has_nothing_to_do(scene: Scene, now: Call | None) -> None:
    if now is None:
        scene.store.rows.clear()
    else:
        scene.store.rows[CALL_ID].call = now
    with pytest.raises(VersionConflict):
        scene.claim.retry_locked()


# ── transactions ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Work:
    """A transaction whose end fails as told."""

    connection = "transaction"

    def __init__(self, call: Call, error: Exception | None = None) -> None:
        self.call = call
        self._error = error
        self.broken_off_by: list[BaseException | None] = []

    def roll_back(self, exc: BaseException | None = None) -> None:
        self.broken_off_by.append(exc)
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    ("broken_by", "raised"),
    [
        pytest.param(KeyError("of the driver"), errors.DatabaseUnavailable, id="the driver's: in the store's words"),
        pytest.param(errors.OutOfTime("no time left"), errors.OutOfTime, id="ours: as it is"),
        pytest.param(None, None, id="none: the transaction had nothing to store"),
    ],
)
def test_a_transaction_that_cannot_be_rolled_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, broken_by: Exception | None, raised: type[Exception] | None
) -> None:
    work = Work(JOINING, errors.DatabaseUnavailable("away"))
    monkeypatch.setattr(scene.writer, "begin", lambda _call, **_: work)

    def step() -> None:
        with scene.claim:
            scene.claim.begin()
            if broken_by is not None:
                raise broken_by

    with pytest.raises(raised) if raised is not None else contextlib.nullcontext():
        step()
    assert work.broken_off_by == [broken_by]
    assert scene.row[1] == (None if broken_by is not None else "me")


def test_the_next_steps_are_found_out_before_the_transaction(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The query that this may take would wait for a second connection, with the first one in the transaction."""
    done: list[str] = []

    def begin(_call: Call, *, lock: bool, is_new: bool) -> Work:
        done.append(f"begin, lock={lock}, is_new={is_new}")
        return Work(replace(JOINING, caller_number="+49151"))

    monkeypatch.setattr(scene.writer, "begin", begin)
    scene.claim.may_lead_to(lambda _call: done.append("next steps") or ())  # type: ignore[func-returns-value]
    scene.claim.begin()
    assert done == ["next steps", "begin, lock=False, is_new=False"]
    # As the transaction has read it.
    assert scene.claim.call.caller_number == "+49151"


def test_a_second_try_is_not_bound_to_the_transaction_of_the_first(scene: Scene) -> None:
    scene.claim.begin()
    scene.store.rows[CALL_ID].call = replace(JOINING, lock_version=5)
    scene.claim.retry_locked()
    # It decides without a transaction.
    scene.claim.record(facts.Joined(attempt=1))
    assert scene.row == (State.CONNECTED, None)


def test_the_next_claim_counts_from_before_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(ADMITTED, Step.RUNS)
    save = scene.store.save

    def slow(*args: Any, **given: Any) -> Call | None:
        scene.clock.now += 1.5
        return save(*args, **given)

    monkeypatch.setattr(scene.store, "save", slow)
    scene.claim.may_lead_to(lambda _call: {Step.MEDIA})
    following = scene.claim.record(facts.RunCreated(workflow_run_id=9))
    assert following is not None
    assert following.seconds_left() == 8.0 - 1.5


@pytest.mark.parametrize(
    ("what", "answer", "has_row"),
    [
        ("DELETE /channels/1", "404 Channel not found", False),
        ("DELETE /channels/1", "204", True),
        ("DELETE /channels/1", "no answer", True),
        ("DELETE /bridges/1", "204", False),
        ("DELETE /bridges/1", "404 Bridge not found", False),
        ("DELETE /bridges/1", "500", True),
        ("GET /applications/voiceai", "200", False),
        ("GET /applications/voiceai", "404", True),
        ("GET /channels/1", "404 Channel not found", True),
        ("POST /bridges/1", "200", True),
    ],
)
def test_a_request_of_tidying_up_has_a_row_only_if_its_answer_is_unexpected(
    scene: Scene, what: str, answer: str, *, has_row: bool
) -> None:
    scene.claim.record_request(RequestRecord(what=what, answer=answer, took_ms=1.0))
    assert [entry.name for entry in scene.claim.timeline()] == [what] * has_row
