"""The caller hangs up, leaves Stasis, or is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.call import commands, facts
from shared.call.calls import Call
from shared.call.states import Direction, Outcome, State
from tests.support.calls import (
    ADMITTED,
    ATTEMPTING,
    CALL_ID,
    CONNECTED,
    ENDED,
    JOINING,
    NOW,
    PREPARED,
    RECEIVED,
    WAITING,
    advance,
)

HANG_UPS = [
    facts.CallerHangingUp(hangup_cause=17),
    facts.CallerLeft(stamp="2026-05-01T12:00:09.000+0000"),
    facts.CallerGone(hangup_cause=17),
]


@pytest.mark.parametrize("hang_up", HANG_UPS)
@pytest.mark.parametrize("call", [RECEIVED, ADMITTED, PREPARED, ATTEMPTING, WAITING, JOINING])
def test_a_caller_who_leaves_before_the_agent_is_abandoned(call: Call, hang_up: facts.Fact) -> None:
    after, ordered = advance(call, hang_up)
    assert (after.state, after.outcome) == (State.ENDING, Outcome.ABANDONED)
    assert after.caller_left is not isinstance(hang_up, facts.CallerHangingUp)
    assert ordered == [commands.TearDown(call_id=CALL_ID)]


@pytest.mark.parametrize("hang_up", HANG_UPS)
def test_a_caller_who_leaves_a_connected_call_completes_it(hang_up: facts.Fact) -> None:
    after, _ = advance(CONNECTED, hang_up)
    assert (after.outcome, after.reason, after.ending_at) == (Outcome.COMPLETED, "caller hung up", NOW)
    assert after.talk_seconds == 60


@pytest.mark.parametrize("hang_up", HANG_UPS)
def test_an_outbound_caller_who_leaves_before_the_agent_is_canceled(hang_up: facts.Fact) -> None:
    after, _ = advance(replace(WAITING, direction=Direction.OUTBOUND), hang_up)
    assert after.outcome is Outcome.CANCELED


def test_the_cause_is_taken_from_the_report_that_has_it() -> None:
    left, _ = advance(CONNECTED, facts.CallerLeft())
    assert left.hangup_cause is None
    gone, ordered = advance(left, facts.CallerGone(hangup_cause=16))
    assert (gone.hangup_cause, ordered) == (16, [])
    again, _ = advance(gone, facts.CallerGone(hangup_cause=99))
    assert again.hangup_cause == 16


def test_a_caller_asked_to_hang_up_may_be_touched_until_it_left() -> None:
    asked, _ = advance(CONNECTED, facts.CallerHangingUp(hangup_cause=16))
    assert not asked.caller_left
    left, _ = advance(asked, facts.CallerLeft(stamp="stamp"))
    assert (left.caller_left, left.left_stamp) == (True, "stamp")


def test_a_caller_who_left_is_never_touched_again() -> None:
    after, _ = advance(CONNECTED, facts.CallerLeft(), facts.CallerHangingUp(hangup_cause=16))
    assert (after.caller_left, after.hangup_cause) == (True, 16)


def test_the_first_stamp_of_leaving_is_kept() -> None:
    left, _ = advance(CONNECTED, facts.CallerLeft(stamp="first"), facts.CallerLeft(stamp="second"))
    assert left.left_stamp == "first"


def test_a_cause_that_is_reported_late_is_kept() -> None:
    ended = replace(ENDED, hangup_cause=None)
    assert advance(ended, facts.CallerGone(hangup_cause=17))[0].hangup_cause == 17
    assert advance(ENDED, facts.CallerGone(hangup_cause=17))[0].hangup_cause == ENDED.hangup_cause
