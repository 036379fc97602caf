"""Attempts, their outcomes, and the media leg becoming ready or going."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from shared.call import commands, facts
from shared.call.calls import Call
from shared.call.states import Cause, Outcome, State
from shared.call.steps import Step
from shared.call.transitions import media_leg
from tests.support.calls import (
    ATTEMPTING,
    BETWEEN_ATTEMPTS,
    CALL_ID,
    CONNECTED,
    ENDED,
    ENDING,
    FACTS,
    JOINING,
    LIMITS,
    NOW,
    PREPARED,
    WAITING,
    advance,
    named,
    seconds,
)


@pytest.mark.parametrize("media_first", [True, False])
def test_legs_created_and_media_ready_in_any_order_lead_to_one_join(*, media_first: bool) -> None:
    both: list[facts.Fact] = [facts.MediaReady(attempt=1), facts.LegsCreated(attempt=1)]
    after, ordered = advance(ATTEMPTING, *(both if media_first else both[::-1]))
    assert after.state is State.JOINING
    assert ordered == [commands.JoinLegs(call_id=CALL_ID, attempt=1)]


@pytest.mark.parametrize("order", sorted(set(itertools.permutations(["created", "created", "ready", "ready"]))))
def test_duplicates_lead_to_no_second_join(order: tuple[str, ...]) -> None:
    said: dict[str, facts.Fact] = {"created": facts.LegsCreated(attempt=1), "ready": facts.MediaReady(attempt=1)}
    after, ordered = advance(ATTEMPTING, *(said[name] for name in order))
    assert after.state is State.JOINING
    assert named(ordered) == ["JoinLegs"]


def test_created_legs_wait_for_the_media_leg() -> None:
    after, ordered = advance(replace(ATTEMPTING, step_retries=1), facts.LegsCreated(attempt=1))
    assert ordered == []
    assert after.attempt_in_doubt_until is None
    assert (after.deadline_at, after.step_retries) == (NOW + LIMITS.media_wait(), 0)


def test_an_attempt_is_begun_before_anything_is_asked() -> None:
    after, ordered = advance(PREPARED, facts.AttemptBegun(attempt=1, in_doubt_until=NOW + seconds(14)))
    assert (after.attempt, after.attempt_in_doubt_until, ordered) == (1, NOW + seconds(14), [])
    assert after.deadline_at == NOW + LIMITS.attempt_wait()


@pytest.mark.parametrize(
    ("nonces", "drawn", "after"),
    [
        (("4f2a9c01",), "0c11d2e3", ("4f2a9c01", "0c11d2e3")),
        ((), "0c11d2e3", ("", "0c11d2e3")),
        (("4f2a9c01",), "", ("4f2a9c01",)),
        ((), "", ()),
    ],
)
def test_the_nonce_of_an_attempt_is_stored_at_its_place(
    nonces: tuple[str, ...], drawn: str, after: tuple[str, ...]
) -> None:
    """Also if a release without nonces has begun the attempt before."""
    call = replace(BETWEEN_ATTEMPTS, attempt_nonces=nonces)
    begun, _ = advance(call, media_leg.begin(call, NOW, LIMITS, drawn))
    assert (begun.attempt_nonces, begun.nonce) == (after, drawn)


@pytest.mark.parametrize("attempt", [0, 1, 3, 4])
def test_only_the_next_attempt_can_begin(attempt: int) -> None:
    begun = facts.AttemptBegun(attempt=attempt, in_doubt_until=NOW + seconds(14))
    assert advance(ATTEMPTING, begun) == (ATTEMPTING, [])


def test_no_attempt_begins_while_the_legs_of_the_one_before_count() -> None:
    begun = facts.AttemptBegun(attempt=2, in_doubt_until=NOW + seconds(14))
    assert advance(WAITING, begun) == (WAITING, [])


def test_there_is_no_attempt_beyond_the_last() -> None:
    call = replace(ATTEMPTING, attempt=LIMITS.attempts)
    begun = facts.AttemptBegun(attempt=LIMITS.attempts + 1, in_doubt_until=NOW)
    assert advance(call, begun) == (call, [])


def test_a_new_attempt_forgets_what_the_old_one_had_but_not_its_open_request() -> None:
    before = replace(ATTEMPTING, media_ready=True, step_retries=2, attempt_in_doubt_until=NOW + seconds(30))
    after, _ = advance(before, facts.AttemptBegun(attempt=2, in_doubt_until=NOW + seconds(14)))
    assert (after.legs_created, after.media_ready, after.step_retries) == (False, False, 0)
    assert after.earlier_in_doubt_until == NOW + seconds(30)
    assert after.in_doubt_until == NOW + seconds(30)


@pytest.mark.parametrize(
    "outcome", [facts.LegsCreated(attempt=2), facts.LegsRefused(attempt=2, reason="400 no such client")]
)
@pytest.mark.parametrize("state", [State.PREPARED, State.ENDING])
def test_the_outcome_of_an_attempt_leaves_the_one_before_in_doubt(outcome: facts.Fact, state: State) -> None:
    second = replace(ATTEMPTING, state=state, attempt=2, earlier_in_doubt_until=NOW + seconds(9))
    after, _ = advance(second, outcome)
    assert (after.attempt_in_doubt_until, after.earlier_in_doubt_until) == (None, NOW + seconds(9))


def test_a_begun_attempt_is_overdue_when_its_worker_must_have_reported() -> None:
    after, ordered = advance(PREPARED, facts.AttemptBegun(attempt=1, in_doubt_until=NOW + seconds(14)))
    assert (after.attempt, after.attempt_in_doubt_until) == (1, NOW + seconds(14))
    assert (after.deadline_at, ordered) == (NOW + LIMITS.attempt_wait(), [])


def test_an_unknown_outcome_leads_to_the_next_attempt() -> None:
    after, ordered = advance(ATTEMPTING, facts.LegsUnknown(attempt=1, reason="no answer in time"))
    assert ordered == [commands.StartMedia(call_id=CALL_ID, attempt=2)]
    # The number is committed by the worker that begins it; the first one's request is still open.
    assert (after.attempt, after.in_doubt_until) == (1, ATTEMPTING.attempt_in_doubt_until)


def test_an_attempt_is_in_doubt_as_long_as_its_requests_may_take_effect() -> None:
    """Its last request starts with the end of the claim, at the latest."""
    begun = media_leg.begin(PREPARED, NOW, LIMITS, "4f2a9c01")
    longest = LIMITS.claim(Step.MEDIA) + seconds(LIMITS.request_seconds)
    assert begun == facts.AttemptBegun(attempt=1, nonce="4f2a9c01", in_doubt_until=NOW + longest)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(facts.LegsCreated(attempt=2), id="created"),
        pytest.param(facts.LegsRefused(attempt=2, reason="400 no such client"), id="refused"),
        pytest.param(facts.CallerLeft(), id="not reported"),
    ],
)
@pytest.mark.parametrize(
    "lost", [facts.LegsUnknown(attempt=1, reason="no answer in time"), facts.DeadlinePassed()], ids=["unknown", "died"]
)
def test_the_second_attempt_does_not_settle_the_first(lost: facts.Fact, second: facts.Fact) -> None:
    """The first one's media leg may come up when nothing is left of the call."""
    begun = facts.AttemptBegun(attempt=2, in_doubt_until=NOW + seconds(1))
    after, _ = advance(ATTEMPTING, lost, begun, second)
    assert after.in_doubt_until == ATTEMPTING.attempt_in_doubt_until
    ending, _ = advance(after, facts.CallerGone())
    assert advance(ending, facts.LegsRemoved())[0].state is State.ENDING
    assert advance(ending, facts.LegsRemoved(), now=NOW + seconds(14))[0].state is State.ENDED


def test_an_unknown_outcome_of_the_last_attempt_fails_the_call() -> None:
    last = replace(ATTEMPTING, attempt=LIMITS.unknown_attempts)
    after, ordered = advance(last, facts.LegsUnknown(attempt=last.attempt, reason="no answer in time"))
    assert (after.state, after.outcome) == (State.ENDING, Outcome.FAILED)
    assert after.in_doubt_until == ATTEMPTING.attempt_in_doubt_until
    assert named(ordered) == ["TearDown"]


def test_a_worker_that_died_over_an_attempt_costs_that_attempt() -> None:
    after, ordered = advance(ATTEMPTING, facts.DeadlinePassed())
    assert ordered == [commands.StartMedia(call_id=CALL_ID, attempt=2)]
    assert after.in_doubt_until == ATTEMPTING.attempt_in_doubt_until


def test_a_worker_that_died_over_the_last_attempt_costs_the_call() -> None:
    """Its request may still take effect: that is no reason to wait with the caller."""
    after, ordered = advance(replace(ATTEMPTING, attempt=LIMITS.attempts), facts.DeadlinePassed())
    assert (after.outcome, after.reason) == (Outcome.FAILED, "media not created: the worker did not report back")
    assert after.in_doubt_until == ATTEMPTING.attempt_in_doubt_until
    assert named(ordered) == ["TearDown"]


@pytest.mark.parametrize("late", [facts.LegsCreated(attempt=1), facts.MediaReady(attempt=1)])
@pytest.mark.parametrize("call", [replace(call, attempt=2) for call in (ATTEMPTING, JOINING, CONNECTED, ENDING, ENDED)])
def test_late_facts_of_an_older_attempt_have_it_removed(late: facts.Fact, call: Call) -> None:
    assert advance(call, late) == (call, [commands.RemoveAttempt(call_id=CALL_ID, attempt=1)])


def test_the_end_of_an_older_attempt_ends_nothing() -> None:
    call = replace(ATTEMPTING, attempt=2)
    for name in ("LegsRefused", "LegsUnknown", "MediaGone"):
        assert advance(call, FACTS[name]) == (call, [])


def test_a_refusal_settles_the_attempt_and_fails_the_call() -> None:
    after, _ = advance(ATTEMPTING, facts.LegsRefused(attempt=1, reason="400 no such client"))
    assert (after.outcome, after.reason) == (Outcome.FAILED, "media refused: 400 no such client")
    assert after.in_doubt_until is None


REFUSED = facts.MediaGone(attempt=1, reason="media leg ended, cause 3")


def test_a_voice_agent_that_is_not_reached_is_tried_four_times_with_growing_pauses() -> None:
    call, now, pauses, ids = replace(WAITING, state_since=NOW), NOW, [], [1]
    while True:
        call, ordered = advance(call, replace(REFUSED, attempt=call.attempt), now=now)
        if call.state is not State.PREPARED:
            break
        (order,) = ordered
        assert isinstance(order, commands.StartMedia)
        pauses.append(order.pause.total_seconds())
        ids.append(order.attempt)
        # A lost command is ordered again by the sweep, and not before it is due.
        assert call.deadline_at == now + order.pause + LIMITS.queue_wait()
        now += order.pause
        call, _ = advance(call, facts.AttemptBegun(attempt=order.attempt, in_doubt_until=now + seconds(14)), now=now)
        call, _ = advance(call, facts.LegsCreated(attempt=order.attempt), now=now)
    assert (pauses, ids) == ([0.5, 1, 2], [1, 2, 3, 4])
    assert (call.outcome, call.hangup_cause) == (Outcome.FAILED, Cause.TEMPORARY_FAILURE)
    assert call.reason == "voice agent not reached: media leg ended, cause 3"
    assert call.in_doubt_until is None


def test_after_a_media_leg_that_was_found_gone_the_next_attempt_is_ordered_at_once() -> None:
    after, ordered = advance(WAITING, replace(REFUSED, is_found=True))
    assert ordered == [commands.StartMedia(call_id=CALL_ID, attempt=2)]
    assert after.deadline_at == NOW + LIMITS.queue_wait()


def test_no_attempt_at_a_voice_agent_begins_later_than_a_caller_is_to_wait() -> None:
    last = NOW - LIMITS.reach_wait() + LIMITS.reach_pause(1)
    in_time, _ = advance(replace(WAITING, state_since=last), REFUSED)
    late, _ = advance(replace(WAITING, state_since=last - seconds(0.001)), REFUSED)
    assert (in_time.state, late.state) == (State.PREPARED, State.ENDING)


def test_the_end_of_a_media_leg_is_reported_again_and_changes_nothing() -> None:
    paused, _ = advance(WAITING, REFUSED)
    assert advance(paused, REFUSED, now=NOW + seconds(0.4)) == (paused, [])


def test_a_command_lost_during_the_pause_is_ordered_again_without_one() -> None:
    paused, _ = advance(WAITING, REFUSED)
    assert paused.deadline_at is not None
    again, ordered = advance(paused, facts.DeadlinePassed(), now=paused.deadline_at)
    assert (again.state, ordered) == (State.PREPARED, [commands.StartMedia(call_id=CALL_ID, attempt=2)])


def test_a_hang_up_during_the_pause_ends_the_call_and_nothing_is_in_doubt() -> None:
    paused, _ = advance(WAITING, REFUSED)
    after, ordered = advance(paused, facts.CallerLeft())
    assert (after.outcome, named(ordered), after.in_doubt_until) == (Outcome.ABANDONED, ["TearDown"], None)
    begun = facts.AttemptBegun(attempt=2, in_doubt_until=NOW + seconds(14))
    assert advance(after, begun) == (after, [])


def test_a_media_leg_that_ends_before_its_requests_are_answered_is_tried_again_all_the_same() -> None:
    """The answer comes later, and makes the leg that has ended no leg to wait for. Until then a bridge may be made."""
    paused, ordered = advance(ATTEMPTING, REFUSED)
    assert ordered == [commands.StartMedia(call_id=CALL_ID, attempt=2, pause=LIMITS.reach_pause(1))]
    assert paused.in_doubt_until == ATTEMPTING.attempt_in_doubt_until
    answered, ordered = advance(paused, facts.LegsCreated(attempt=1))
    assert (answered.legs_created, answered.in_doubt_until, ordered) == (False, paused.in_doubt_until, [])
    assert answered.deadline_at == paused.deadline_at
    begun, _ = advance(answered, facts.AttemptBegun(attempt=2, in_doubt_until=NOW + seconds(14)))
    assert begun.attempt == 2


def test_a_voice_agent_that_accepted_and_left_before_the_join_is_not_tried_again() -> None:
    """Its run has begun: it takes no second leg."""
    after, _ = advance(replace(ATTEMPTING, media_ready=True), facts.MediaGone(attempt=1))
    assert (after.outcome, after.reason) == (Outcome.FAILED, "voice agent not reached: media leg ended")


@pytest.mark.parametrize("ready", [False, True])
def test_legs_of_a_given_up_attempt_that_are_found_are_used(*, ready: bool) -> None:
    call = replace(BETWEEN_ATTEMPTS, media_ready=ready)
    after, ordered = advance(call, facts.LegsFound(attempt=1))
    assert (after.legs_created, after.in_doubt_until) == (True, BETWEEN_ATTEMPTS.in_doubt_until)
    assert named(ordered) == (["JoinLegs"] if ready else [])
    assert advance(BETWEEN_ATTEMPTS, facts.LegsFound(attempt=2)) == (BETWEEN_ATTEMPTS, [])


@pytest.mark.parametrize(
    ("changes", "is_in_doubt"),
    [
        pytest.param({}, False, id="the only attempt"),
        pytest.param({"attempt": 2}, True, id="an attempt before"),
        pytest.param({"request_id": "campaign 7, row 12"}, True, id="an originating request"),
    ],
)
def test_an_attempt_that_is_found_complete_is_in_doubt_no_longer(changes: dict[str, Any], *, is_in_doubt: bool) -> None:
    """Its call ends at once when the caller hangs up."""
    call = replace(BETWEEN_ATTEMPTS, **changes)
    after, _ = advance(call, facts.LegsFound(attempt=call.attempt, is_complete=True))
    assert (after.in_doubt_until is not None) == is_in_doubt


def test_a_late_answer_about_a_given_up_attempt_is_left_to_the_look_of_the_next_one() -> None:
    late = facts.LegsCreated(attempt=1)
    waits, ordered = advance(BETWEEN_ATTEMPTS, late)
    assert (waits.legs_created, waits.in_doubt_until, ordered) == (False, BETWEEN_ATTEMPTS.in_doubt_until, [])
    joined, ordered = advance(replace(BETWEEN_ATTEMPTS, media_ready=True), late)
    assert (joined.state, named(ordered)) == (State.JOINING, ["JoinLegs"])


def test_an_agent_who_hangs_up_completes_the_call() -> None:
    after, _ = advance(CONNECTED, facts.MediaGone(attempt=1))
    assert (after.outcome, after.reason, after.hangup_cause) == (Outcome.COMPLETED, "agent hung up", Cause.NORMAL)


@pytest.mark.parametrize("cause", [None, 16, 32, 34])
def test_an_agent_that_closes_its_websocket_or_is_removed_has_hung_up(cause: int | None) -> None:
    after, _ = advance(CONNECTED, facts.MediaGone(attempt=1, hangup_cause=cause, reason="media leg ended"))
    assert (after.outcome, after.reason) == (Outcome.COMPLETED, "agent hung up")


def test_an_agent_whose_websocket_breaks_is_lost() -> None:
    gone = facts.MediaGone(attempt=1, hangup_cause=38, reason="media leg ended, cause 38")
    after, ordered = advance(CONNECTED, gone)
    assert (after.outcome, after.reason) == (Outcome.FAILED, "agent lost: media leg ended, cause 38")
    # The caller hears an ordinary end.
    assert (after.hangup_cause, named(ordered)) == (Cause.NORMAL, ["TearDown"])


@pytest.mark.parametrize("cause", [None, 16, 38])
def test_an_agent_that_has_not_begun_the_run_of_a_joined_call_has_refused_it(cause: int | None) -> None:
    gone = facts.MediaGone(attempt=1, hangup_cause=cause, reason="media leg ended", is_refusal=True)
    after, ordered = advance(CONNECTED, gone)
    assert (after.outcome, after.reason) == (Outcome.FAILED, "voice agent not reached: media leg ended")
    assert named(ordered) == ["TearDown"]
    transferred = replace(CONNECTED, destination_id="d")
    assert advance(transferred, gone) == (transferred, [])


def test_how_an_agent_ended_that_was_found_gone_is_not_guessed() -> None:
    after, _ = advance(CONNECTED, facts.MediaGone(attempt=1, reason="media leg is gone", is_found=True))
    assert (after.outcome, after.reason) == (Outcome.COMPLETED, "agent found gone")


def test_legs_created_for_an_ending_call_are_torn_down_at_once() -> None:
    ending, _ = advance(ATTEMPTING, facts.CallerLeft())
    settled, ordered = advance(ending, facts.LegsCreated(attempt=1))
    assert (settled.in_doubt_until, named(ordered)) == (None, ["TearDown"])
    assert advance(settled, facts.LegsRemoved())[0].state is State.ENDED


def test_legs_refused_for_an_ending_call_let_it_end() -> None:
    ending, _ = advance(ATTEMPTING, facts.CallerLeft())
    settled, ordered = advance(ending, facts.LegsRefused(attempt=1, reason=""))
    assert (settled.in_doubt_until, named(ordered)) == (None, ["TearDown"])
