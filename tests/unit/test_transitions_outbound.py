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


@pytest.mark.parametrize("fact", [facts.EndRequested(reason="ended by an operator"), facts.CallerLeft()])
def test_an_originate_that_may_be_under_way_is_waited_for(fact: facts.Fact) -> None:
    ending, _ = advance(ORIGINATING, fact)
    assert ending.in_doubt_until == NOW + LIMITS.originate_wait()
    assert advance(ending, facts.LegsRemoved())[0].state is State.ENDING
    assert advance(ending, facts.LegsRemoved(), now=NOW + LIMITS.originate_wait())[0].state is State.ENDED


@pytest.mark.parametrize(
    ("call", "fact"),
    [
        (ORIGINATING, facts.OriginateRefused(reason="500 Allocation failed")),
        (ORIGINATING, facts.CallerGone(hangup_cause=17)),
        (ORIGINATING, REFUSED),
        (replace(ORIGINATING, lock_version=1), REFUSED),
        (RINGING, facts.EndRequested(reason="ended by an operator")),
    ],
)
def test_an_originate_whose_outcome_is_known_is_not_waited_for(call: Call, fact: facts.Fact) -> None:
    ending, _ = advance(call, fact)
    assert ending.in_doubt_until is None


@pytest.mark.parametrize(
    "fact", [facts.CallerGone(hangup_cause=17), facts.OriginateRefused(reason="500 Allocation failed")]
)
def test_a_leg_that_was_asked_for_twice_may_come_late(fact: facts.Fact) -> None:
    """The first request may take effect after the second one: the teardown looks for its leg until then."""
    again, ordered = advance(ORIGINATING, facts.DeadlinePassed())
    assert named(ordered) == ["OriginateLeg"]
    until = NOW + seconds(LIMITS.request_seconds)
    for call in (again, advance(again, facts.Originated())[0]):
        ending, _ = advance(call, fact)
        if ending.state is State.RINGING:
            # It rings, so it was not refused.
            continue
        assert not ending.caller_left
        assert ending.in_doubt_until is not None
        assert ending.in_doubt_until >= until
        assert advance(ending, facts.LegsRemoved())[0].state is State.ENDING
        assert advance(ending, facts.LegsRemoved(), now=ending.in_doubt_until)[0].state is State.ENDED


def test_an_answered_leg_that_was_asked_for_twice_is_not_forgotten_with_its_first_attempt() -> None:
    """Once the far end hangs up its id is free, and the first request would dial again."""
    again, _ = advance(ORIGINATING, facts.DeadlinePassed())
    begun = facts.AttemptBegun(attempt=1, in_doubt_until=NOW + seconds(1))
    after, _ = advance(again, ANSWERED, begun, facts.LegsCreated(attempt=1))
    assert after.in_doubt_until == NOW + seconds(LIMITS.request_seconds)


@pytest.mark.parametrize("fact", [facts.Originated(), facts.OriginateRefused(reason="500 Allocation failed")])
def test_the_answer_to_the_second_request_says_nothing_of_the_first(fact: facts.Fact) -> None:
    again, _ = advance(ORIGINATING, facts.DeadlinePassed())
    ending, _ = advance(again, facts.EndRequested(reason="ended by an operator"))
    settled, _ = advance(ending, fact)
    assert (settled.caller_left, settled.in_doubt_until) == (False, NOW + seconds(LIMITS.request_seconds))


def test_an_originate_refused_by_the_first_worker_to_claim_it_has_no_leg_and_ends_at_once() -> None:
    ending, ordered = advance(replace(ORIGINATING, lock_version=1), REFUSED)
    assert (ending.caller_left, ending.outcome, named(ordered)) == (True, Outcome.REFUSED, ["TearDown"])
    assert advance(ending, facts.LegsRemoved())[0].state is State.ENDED


def test_an_originate_refused_that_an_earlier_worker_may_have_requested_is_waited_for() -> None:
    """Another worker claimed it before and did not report back: the leg may ring yet."""
    ending, _ = advance(replace(ORIGINATING, lock_version=2), REFUSED)
    assert (ending.caller_left, ending.in_doubt_until) == (False, NOW + LIMITS.originate_wait())


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
