"""Legs that the product originates: requested, dialled, answered, or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.call import commands, facts, transitions
from shared.call.calls import Call
from shared.call.states import Cause, Outcome, State
from tests.support.calls import (
    CALL_ID,
    LIMITS,
    NOW,
    ORIGINATING,
    RECEIVED,
    RINGING,
    advance,
    named,
    seconds,
)

REFUSED = facts.Refused(reason="the organization is blocked", hangup_cause=Cause.NOT_ALLOWED)


ANSWERED = facts.FarEndAnswered(channel_name="PJSIP/trunk-1", channel_created="2026", stamp="2026-05-01T12:00:05")


def test_an_originate_is_ordered_as_soon_as_it_is_written() -> None:
    call, command = transitions.originate(replace(ORIGINATING, state=State.RECEIVED), LIMITS)
    assert (call.state, call.deadline_at) == (State.ORIGINATING, call.received_at + LIMITS.queue_wait())
    assert command == commands.OriginateLeg(call_id=CALL_ID)


def test_an_answered_far_end_gets_an_agent() -> None:
    ringing, _ = advance(ORIGINATING, facts.Originated())
    assert ringing.deadline_at == NOW + seconds(LIMITS.ring_seconds + LIMITS.ring_slack_seconds)
    prepared, ordered = advance(ringing, ANSWERED)
    assert prepared.state is State.PREPARED
    assert ordered == [commands.StartMedia(call_id=CALL_ID, attempt=1)]
    assert (prepared.channel_name, prepared.channel_created) == ("PJSIP/trunk-1", "2026")


def test_an_answer_that_overtakes_the_request_s_own_answer_counts() -> None:
    prepared, _ = advance(ORIGINATING, ANSWERED)
    after, ordered = advance(prepared, facts.Originated())
    assert after is prepared
    assert ordered == []


def test_an_originate_cancelled_during_its_request_is_removed_when_it_is_known_to_ring() -> None:
    ending, _ = advance(ORIGINATING, facts.EndRequested(reason="ended by an operator"))
    # The teardown was there first, and found no leg yet.
    waiting, _ = advance(ending, facts.RemovalPending(reason="may still take effect", not_before=ending.in_doubt_until))
    settled, ordered = advance(waiting, facts.Originated())
    assert (settled.in_doubt_until, named(ordered)) == (None, ["TearDown"])
    assert advance(settled, facts.LegsRemoved())[0].state is State.ENDED


def test_an_originate_cancelled_during_its_request_ends_when_it_is_refused() -> None:
    ending, _ = advance(ORIGINATING, facts.EndRequested(reason="ended by an operator"))
    settled, ordered = advance(ending, facts.OriginateRefused(reason="500 Allocation failed"))
    assert (settled.in_doubt_until, named(ordered)) == (None, ["TearDown"])
    assert (settled.outcome, settled.reason) == (Outcome.CANCELED, "ended by an operator")


@pytest.mark.parametrize("call", [ORIGINATING, RINGING])
def test_a_far_end_that_answers_a_cancelled_call_is_not_kept_waiting(call: Call) -> None:
    ending, _ = advance(call, facts.EndRequested(reason="ended by an operator"))
    after, ordered = advance(ending, ANSWERED)
    # Its leg is hung up wherever it is.
    assert (after.is_unanswered, named(ordered)) == (True, ["TearDown"])
    gone, _ = advance(ending, facts.CallerGone(hangup_cause=16))
    assert advance(gone, ANSWERED) == (gone, [])
    assert advance(gone, facts.Originated()) == (gone, [])


def test_ringing_is_bounded_by_the_request_and_asterisk_ends_it_first() -> None:
    ringing, _ = advance(replace(ORIGINATING, ring_seconds=20.0), facts.Originated())
    assert ringing.deadline_at == NOW + seconds(20 + LIMITS.ring_slack_seconds)


def test_a_leg_is_unanswered_until_it_is_seen_in_stasis() -> None:
    assert RINGING.is_unanswered
    assert not advance(RINGING, ANSWERED)[0].is_unanswered
    assert not RECEIVED.is_unanswered


def test_a_far_end_that_rings_too_long_did_not_answer() -> None:
    after, _ = advance(RINGING, facts.DeadlinePassed())
    assert (after.outcome, after.hangup_cause) == (Outcome.NO_ANSWER, Cause.NO_ANSWER)


def test_a_hang_up_request_is_not_yet_the_end_of_a_leg_that_rings() -> None:
    after, _ = advance(RINGING, facts.CallerHangingUp(hangup_cause=21))
    assert after.state is State.RINGING
    ended, _ = advance(after, facts.CallerGone())
    assert (ended.outcome, ended.reason, ended.hangup_cause) == (Outcome.FAILED, "rejected", 21)


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize(
    ("statuses", "causes", "gone", "came_to"),
    [
        (["BUSY", "NOANSWER"], [], 0, (Outcome.BUSY, "busy")),
        (["BUSY", "CHANUNAVAIL"], [16], 0, (Outcome.BUSY, "busy")),
        (["BUSY"], [16, 32], 16, (Outcome.BUSY, "busy")),
        (["NOANSWER"], [17, 16], 16, (Outcome.BUSY, "busy")),
        (["CHANUNAVAIL"], [16], 17, (Outcome.BUSY, "busy")),
        ([], [17, 16], 0, (Outcome.BUSY, "busy")),
        ([], [17, 16], 16, (Outcome.BUSY, "busy")),
        (["NOANSWER", "CONGESTION"], [], 0, (Outcome.FAILED, "congestion")),
        (["NOANSWER"], [21, 16], 0, (Outcome.FAILED, "rejected")),
        (["NOANSWER", "CHANUNAVAIL"], [32], 16, (Outcome.NO_ANSWER, "not answered")),
        (["CANCEL", "CHANUNAVAIL"], [16], 0, (Outcome.NO_ANSWER, "not answered")),
        (["CHANUNAVAIL"], [], 0, (Outcome.FAILED, "not reached")),
    ],
)
def test_what_tells_most_of_an_unanswered_leg_counts_in_any_order(
    statuses: list[str], causes: list[int], gone: int, came_to: tuple[Outcome, str], *, is_reversed: bool
) -> None:
    happened: list[facts.Fact] = [facts.Dialled(status=status) for status in statuses]
    happened += [facts.CallerHangingUp(hangup_cause=cause) for cause in causes]
    call = RINGING
    for fact in reversed(happened) if is_reversed else happened:
        call, _ = advance(call, fact)
    ended, _ = advance(call, facts.CallerGone(hangup_cause=gone))
    assert (ended.outcome, ended.reason) == came_to


UNTIL = NOW + LIMITS.originate_wait()
DIALLING = replace(ORIGINATING, attempt_in_doubt_until=UNTIL)
UNSENT = facts.DialUnsent(in_doubt_until=UNTIL, reason="connection refused")
CANCEL = facts.EndRequested(reason="ended by an operator")


def test_a_leg_is_asked_for_once() -> None:
    """Of two workers that are about to dial, one may."""
    dialling, ordered = advance(ORIGINATING, facts.DialBegun(in_doubt_until=UNTIL))
    assert (dialling.is_dial_begun, dialling.in_doubt_until, ordered) == (True, UNTIL, [])
    assert advance(dialling, facts.DialBegun(in_doubt_until=UNTIL + seconds(1))) == (dialling, [])


def test_what_was_not_sent_may_be_asked_for_again() -> None:
    again, ordered = advance(DIALLING, UNSENT)
    assert (again, ordered) == (replace(ORIGINATING, obstacle="connection refused"), [])
    # A fail-over has forgotten this request, and another worker has made one since.
    other = replace(DIALLING, attempt_in_doubt_until=UNTIL + seconds(1))
    assert advance(other, UNSENT) == (other, [])


def test_what_was_not_sent_for_a_call_that_is_cancelled_leaves_nothing_to_wait_for() -> None:
    ending, _ = advance(DIALLING, CANCEL)
    settled, ordered = advance(ending, UNSENT)
    assert (settled.caller_left, settled.in_doubt_until, named(ordered)) == (True, None, ["TearDown"])


def test_a_leg_of_which_nothing_is_known_ends_its_call() -> None:
    """It may have rung: it is not asked for again."""
    lost, ordered = advance(DIALLING, facts.DialLost())
    assert (lost.state, lost.outcome, lost.hangup_cause) == (State.ENDING, Outcome.FAILED, Cause.RECOVERY_ON_TIMER)
    assert lost.reason == "dialled, and what came of it is unknown"
    assert (lost.caller_left, lost.in_doubt_until, named(ordered)) == (False, UNTIL, ["TearDown"])
    given_up, _ = advance(replace(DIALLING, step_retries=LIMITS.max_step_retries), facts.DeadlinePassed())
    assert given_up.reason == lost.reason
    never, _ = advance(replace(ORIGINATING, step_retries=LIMITS.max_step_retries), facts.DeadlinePassed())
    assert never.reason == "originating for too long: no worker has done its step"


@pytest.mark.parametrize("fact", [CANCEL, facts.CallerLeft(), REFUSED])
def test_a_leg_that_may_have_been_asked_for_is_waited_for(fact: facts.Fact) -> None:
    ending, _ = advance(DIALLING, fact)
    assert (ending.caller_left, ending.in_doubt_until) == (isinstance(fact, facts.CallerLeft), UNTIL)
    assert advance(ending, facts.LegsRemoved())[0].state is State.ENDING
    assert advance(ending, facts.LegsRemoved(), now=UNTIL)[0].state is State.ENDED


@pytest.mark.parametrize(
    ("call", "fact"),
    [
        (DIALLING, facts.OriginateRefused(reason="500 Allocation failed")),
        (DIALLING, facts.CallerGone(hangup_cause=17)),
        (ORIGINATING, REFUSED),
        (ORIGINATING, CANCEL),
        (advance(DIALLING, facts.Originated())[0], CANCEL),
        (advance(DIALLING, ANSWERED)[0], CANCEL),
    ],
)
def test_a_leg_whose_outcome_is_known_is_not_waited_for(call: Call, fact: facts.Fact) -> None:
    ending, _ = advance(call, fact)
    assert ending.in_doubt_until is None
    assert advance(ending, facts.LegsRemoved())[0].state is State.ENDED


def test_a_call_that_is_refused_before_it_is_dialled_has_no_leg() -> None:
    ending, ordered = advance(ORIGINATING, REFUSED)
    assert (ending.caller_left, ending.outcome, named(ordered)) == (True, Outcome.REFUSED, ["TearDown"])


@pytest.mark.parametrize("call", [ORIGINATING, RINGING])
def test_the_first_dial_status_counts(call: Call) -> None:
    """An Asterisk that reports one after the other would write the call, and its timeline, for each."""
    after, _ = advance(call, facts.Dialled(status="BUSY"))
    assert after.dial_status == "BUSY"
    assert advance(after, facts.Dialled(status="NOANSWER")) == (after, [])


@pytest.mark.parametrize("call", [ORIGINATING, RINGING])
@pytest.mark.parametrize(
    ("dial_status", "cause", "came_to"),
    [
        ("BUSY", 0, (Outcome.BUSY, "busy", 17)),
        ("BUSY", 19, (Outcome.BUSY, "busy", 19)),
        ("NOANSWER", 0, (Outcome.NO_ANSWER, "not answered", 19)),
        ("CANCEL", 16, (Outcome.NO_ANSWER, "not answered", 16)),
        ("CONGESTION", 0, (Outcome.FAILED, "congestion", 42)),
        ("CONGESTION", 17, (Outcome.FAILED, "congestion", 17)),
        ("CHANUNAVAIL", 1, (Outcome.FAILED, "unallocated number", 1)),
        ("CHANUNAVAIL", 0, (Outcome.FAILED, "not reached", None)),
        (None, 17, (Outcome.BUSY, "busy", 17)),
        (None, 19, (Outcome.NO_ANSWER, "not answered", 19)),
        ("NOANSWER", 21, (Outcome.FAILED, "rejected", 21)),
        (None, 21, (Outcome.FAILED, "rejected", 21)),
        (None, 3, (Outcome.FAILED, "not reached, cause 3", 3)),
        (None, None, (Outcome.FAILED, "not reached", None)),
    ],
)
def test_an_unanswered_call_comes_out_by_dial_status_then_cause(
    call: Call, dial_status: str | None, cause: int | None, came_to: tuple[Outcome, str, int | None]
) -> None:
    if dial_status is not None:
        call, _ = advance(call, facts.Dialled(status=dial_status))
    after, ordered = advance(call, facts.CallerGone(hangup_cause=cause))
    assert (after.outcome, after.reason, after.hangup_cause) == came_to
    assert after.caller_left
    assert named(ordered) == ["TearDown"]
