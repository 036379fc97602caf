"""Lost steps, operators, and teardown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.call import facts, faults
from shared.call.calls import Call
from shared.call.states import Cause, Fault, Outcome, State
from tests.support.calls import (
    ADMITTED,
    ATTEMPTING,
    CALLS,
    CONNECTED,
    ENDED,
    ENDING,
    FACTS,
    JOINING,
    LIMITS,
    NOW,
    ORIGINATING,
    PREPARED,
    RECEIVED,
    WAITING,
    advance,
    named,
    seconds,
)

DIED = facts.WorkerDied()


@pytest.mark.parametrize(("call", "outcome"), [(PREPARED, Outcome.CANCELED), (CONNECTED, Outcome.COMPLETED)])
def test_an_operator_ends_a_call(call: Call, outcome: Outcome) -> None:
    after, _ = advance(call, facts.EndRequested(reason="by an operator"))
    assert (after.outcome, after.reason) == (outcome, "by an operator")


@pytest.mark.parametrize("state", [State.ORIGINATING, State.RECEIVED, State.ADMITTED, State.JOINING, State.ENDING])
def test_the_step_of_a_worker_that_has_died_is_overdue_at_once(state: State) -> None:
    """Also where its claim would have lasted for longer than the deadline."""
    call = replace(CALLS[state], deadline_at=NOW + seconds(3))
    after, ordered = advance(call, DIED)
    assert (after, ordered) == (replace(call, deadline_at=NOW), [])
    assert named(advance(call, DIED, facts.DeadlinePassed())[1]) == named(
        advance(CALLS[state], facts.DeadlinePassed())[1]
    )
    assert advance(replace(call, deadline_at=None), DIED)[1] == []


@pytest.mark.parametrize("state", [State.RINGING, State.CONNECTED, State.ENDED])
def test_a_call_without_a_step_is_not_overdue_when_a_worker_has_died(state: State) -> None:
    call = replace(CALLS[state], deadline_at=NOW + seconds(3))
    assert advance(call, DIED) == (call, [])


def test_workers_that_die_cost_a_call_no_more_attempts_than_it_has() -> None:
    """Asterisk is not to blame, as it is for an attempt that it did not answer: of those there are two."""
    call = replace(ATTEMPTING, attempt=LIMITS.unknown_attempts)
    after, ordered = advance(call, DIED, facts.DeadlinePassed())
    assert (after.state, named(ordered)) == (State.PREPARED, ["StartMedia"])
    assert (after.attempt_in_doubt_until, after.earlier_in_doubt_until) == (None, call.attempt_in_doubt_until)
    assert advance(after, DIED, facts.DeadlinePassed())[0].deadline_at == after.deadline_at
    last = replace(ATTEMPTING, attempt=LIMITS.attempts, deadline_at=NOW + seconds(9))
    assert advance(last, DIED, facts.DeadlinePassed())[0].state is State.ENDING


def test_what_is_known_of_an_end_is_kept() -> None:
    for fact in FACTS.values():
        after, _ = advance(ENDING, fact)
        assert (after.outcome, after.reason, after.hangup_cause) == (Outcome.COMPLETED, "agent hung up", 16)


@pytest.mark.parametrize("field", ["attempt_in_doubt_until", "earlier_in_doubt_until"])
def test_a_call_does_not_end_while_a_request_of_it_may_take_effect(field: str) -> None:
    still_open = replace(ENDING, **{field: NOW + seconds(5)})  # type: ignore[arg-type]
    assert advance(still_open, facts.LegsRemoved()) == (still_open, [])
    assert advance(still_open, facts.LegsRemoved(), now=NOW + seconds(5))[0].state is State.ENDED


def test_in_doubt_until_is_the_latest_of_all_attempts() -> None:
    assert replace(
        ENDING, earlier_in_doubt_until=NOW, attempt_in_doubt_until=NOW + seconds(1)
    ).in_doubt_until == NOW + seconds(1)
    assert replace(
        ENDING, earlier_in_doubt_until=NOW + seconds(2), attempt_in_doubt_until=NOW
    ).in_doubt_until == NOW + seconds(2)
    assert ENDING.in_doubt_until is None


def test_a_pending_removal_is_tried_again_later_and_later() -> None:
    pauses, call = [], replace(ENDING, step_retries=0)
    for _ in range(9):
        call, ordered = advance(call, facts.RemovalPending(reason="connection refused"))
        assert ordered == []
        assert call.deadline_at is not None
        pauses.append((call.deadline_at - NOW).total_seconds())
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_pending_removal_waits_for_what_may_still_take_effect() -> None:
    still_open = replace(ENDING, attempt_in_doubt_until=NOW + seconds(30))
    after, _ = advance(still_open, facts.RemovalPending(reason="open", not_before=NOW + seconds(30)))
    assert after.deadline_at == NOW + seconds(30)
    often, _ = advance(
        replace(still_open, step_retries=9), facts.RemovalPending(reason="open", not_before=NOW + seconds(30))
    )
    assert often.deadline_at == NOW + seconds(30), "all is gone: no pause that has grown keeps the call open"
    soon, _ = advance(still_open, facts.RemovalPending(reason="open", not_before=NOW - seconds(30)))
    assert soon.deadline_at == NOW + seconds(1)
    settled, _ = advance(ENDING, facts.RemovalPending(reason="open", not_before=NOW + seconds(30)))
    assert settled.deadline_at == NOW + seconds(1), "the outcome became known while the teardown was at work"


def test_an_ended_call_has_no_deadline() -> None:
    after, _ = advance(ENDING, facts.LegsRemoved())
    assert (after.deadline_at, after.ended_at) == (None, NOW)


@pytest.mark.parametrize("call", [call for call in CALLS.values() if call.deadline_at is not None])
def test_a_deadline_not_reached_does_nothing(call: Call) -> None:
    early = replace(call, deadline_at=NOW + seconds(0.001))
    assert advance(early, facts.DeadlinePassed()) == (early, [])


@pytest.mark.parametrize("call", [ORIGINATING, RECEIVED, ADMITTED, PREPARED, JOINING])
def test_a_lost_step_is_started_again_then_given_up(call: Call) -> None:
    now, ordered = NOW, []
    for step_retries in range(1, LIMITS.max_step_retries + 1):
        call, again = advance(call, facts.DeadlinePassed(), now=now)
        ordered += named(again)
        assert (call.step_retries, call.deadline_at) == (step_retries, now + LIMITS.queue_wait())
        now += LIMITS.queue_wait()
    over, last = advance(call, facts.DeadlinePassed(), now=now)
    assert len(set(ordered)) == 1
    assert (over.state, over.outcome, over.hangup_cause) == (State.ENDING, Outcome.FAILED, Cause.RECOVERY_ON_TIMER)
    assert named(last) == ["TearDown"]


def test_an_attempt_without_a_report_is_followed_by_the_next_and_stays_in_doubt() -> None:
    after, ordered = advance(replace(ATTEMPTING, step_retries=2), facts.DeadlinePassed())
    assert named(ordered) == ["StartMedia"]
    assert (after.attempt_in_doubt_until, after.earlier_in_doubt_until) == (None, ATTEMPTING.attempt_in_doubt_until)
    # The deadline is that of the next attempt's command.
    assert (after.step_retries, after.deadline_at) == (0, NOW + LIMITS.queue_wait())
    over, _ = advance(replace(ATTEMPTING, attempt=LIMITS.attempts), facts.DeadlinePassed())
    assert (over.state, over.reason) == (State.ENDING, "media not created: the worker did not report back")


@pytest.mark.parametrize(
    ("checked", "reason", "fault"),
    [
        (faults.NOT_ACCEPTED, "voice agent not reached: media leg not ready in time", Fault.AGENT),
        (f"{faults.NO_ANSWER}: 503", "media leg not ready in time: Asterisk gave no answer: 503", Fault.ASTERISK),
        (None, "media leg not ready in time: no worker has done its step", Fault.US),
    ],
)
def test_a_silent_media_leg_is_asked_for_then_given_up(checked: str | None, reason: str, fault: Fault) -> None:
    call, now, ordered = WAITING, NOW, []
    while call.state is State.PREPARED:
        call, again = advance(call, facts.DeadlinePassed(), now=now)
        ordered += named(again)
        if checked is not None:
            call, _ = advance(call, facts.Hindered(state=State.PREPARED, obstacle=checked), now=now)
        now += LIMITS.media_wait()
    assert ordered == ["CheckMedia"] * LIMITS.media_checks + ["TearDown"]
    assert call.outcome is Outcome.FAILED
    assert (call.reason, call.fault) == (reason, fault)


@pytest.mark.parametrize("call", [PREPARED, ATTEMPTING, *CALLS.values()])
def test_a_call_whose_every_command_is_lost_still_comes_to_its_end(call: Call) -> None:
    for _ in range(20):
        if call.state in (State.ENDING, State.ENDED):
            return
        assert call.deadline_at is not None
        call, _ = advance(call, facts.DeadlinePassed(), now=call.deadline_at)
    pytest.fail(f"no end in {call.state}")


def test_an_ending_call_is_torn_down_again_with_longer_pauses() -> None:
    call, now = ENDING, NOW
    for _ in range(50):
        call, ordered = advance(call, facts.DeadlinePassed(), now=now)
        assert named(ordered) == ["TearDown"]
        assert call.deadline_at is not None
        assert LIMITS.queue_wait() <= call.deadline_at - now <= seconds(LIMITS.teardown_pause_seconds)
        now = call.deadline_at
    assert call.state is State.ENDING


UNVERIFIED = replace(ENDED, unverified=True, reason="agent hung up; not verified")
LATE = ENDING.state_since + LIMITS.teardown_wait()


def test_a_teardown_that_was_tried_long_enough_has_ended_not_verified() -> None:
    pending = facts.RemovalPending(reason="no answer")
    early, _ = advance(ENDING, pending, now=LATE - seconds(1))
    assert early.state is State.ENDING
    over, ordered = advance(ENDING, pending, now=LATE)
    assert (over.state, over.unverified, over.ended_at, over.deadline_at) == (State.ENDED, True, LATE, None)
    assert (over.outcome, over.reason) == (Outcome.COMPLETED, "agent hung up; not verified")
    assert ordered == []


@pytest.mark.parametrize(
    ("call", "pending"),
    [
        pytest.param(ENDING, facts.RemovalPending(reason="locked", run_is_over=False), id="its run is not over"),
        pytest.param(
            replace(ENDING, earlier_in_doubt_until=LATE + seconds(9)),
            facts.RemovalPending(reason="no answer"),
            id="a request may still take effect",
        ),
        pytest.param(
            ENDING,
            facts.RemovalPending(reason="in doubt", not_before=NOW),
            id="a request might have taken effect when the teardown looked",
        ),
    ],
)
def test_a_call_that_may_still_change_something_does_not_end_unverified(
    call: Call, pending: facts.RemovalPending
) -> None:
    assert advance(call, pending, now=LATE)[0].state is State.ENDING


def test_an_unverified_call_whose_caller_is_found_is_torn_down_for_as_long_again() -> None:
    again, ordered = advance(UNVERIFIED, facts.CallerFound(), now=LATE)
    assert (again.state, again.unverified, again.ended_at, named(ordered)) == (State.ENDING, False, None, ["TearDown"])
    assert again.ending_at == UNVERIFIED.ending_at, "its minutes stay as they were"
    waiting, _ = advance(again, facts.RemovalPending(reason="no answer"), now=LATE + seconds(60))
    assert waiting.state is State.ENDING
    over, _ = advance(waiting, facts.RemovalPending(reason="no answer"), now=LATE + LIMITS.teardown_wait())
    assert (over.state, over.reason) == (State.ENDED, UNVERIFIED.reason)


def test_the_longest_call_completes() -> None:
    after, _ = advance(CONNECTED, facts.DeadlinePassed())
    assert (after.outcome, after.reason) == (Outcome.COMPLETED, "longest call time reached")


def test_each_state_begins_without_step_retries() -> None:
    for fact in (facts.RunCreated(workflow_run_id=1), facts.CallerLeft()):
        after, _ = advance(replace(ADMITTED, step_retries=2), fact)
        assert after.step_retries == 0
