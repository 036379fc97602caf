"""Another channel takes the place of the caller's leg: the call follows, whatever is told of the channel before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.call import commands, facts
from shared.call.calls import Call
from shared.call.legs import Naming, Role
from shared.call.states import State
from tests.support.calls import CALL_ID, CALLS, CONNECTED, ENDED, ENDING, JOINING, LIMITS, advance

OLD, NEW, NEWEST = CONNECTED.channel_id, "1700000001.7", "1700000002.9"
REPLACED = facts.LegReplaced(replaced_id=OLD, channel_id=NEW, channel_name="Local/1001@sales-1;1")
AGAIN = facts.LegReplaced(replaced_id=NEW, channel_id=NEWEST, channel_name="PJSIP/1001-2")
OPEN = [call for state, call in CALLS.items() if state is not State.ENDED]
OF_OLD = [
    facts.CallerHangingUp(leg_id=OLD, hangup_cause=16),
    facts.CallerLeft(leg_id=OLD, stamp="then"),
    facts.CallerGone(leg_id=OLD, hangup_cause=26),
]


@pytest.mark.parametrize("call", OPEN, ids=lambda call: str(call.state))
@pytest.mark.parametrize("told", OF_OLD, ids=lambda fact: type(fact).__name__)
def test_what_is_told_of_a_channel_that_was_replaced_ends_nothing(call: Call, told: facts.Fact) -> None:
    followed, _ = advance(call, REPLACED)
    after, _ = advance(followed, told)
    assert after is followed
    assert (after.leg_id, after.channel_id) == (NEW, OLD)


@pytest.mark.parametrize("told", [facts.CallerLeft(leg_id=NEW), facts.CallerGone(leg_id=NEW), facts.CallerGone()])
def test_the_end_of_the_new_channel_ends_the_call(told: facts.Fact) -> None:
    after, _ = advance(CONNECTED, REPLACED, told)
    assert (after.state, after.reason) == (State.ENDING, "caller hung up")


def test_a_leg_may_be_replaced_again_and_what_is_late_changes_nothing() -> None:
    after, _ = advance(CONNECTED, REPLACED, AGAIN, REPLACED)
    assert after.replacements == (NEW, NEWEST)
    assert advance(after, facts.CallerLeft(leg_id=NEW))[0] is after


def test_the_legs_of_a_call_are_those_that_it_has_now() -> None:
    naming = Naming("aip-")
    after, _ = advance(CONNECTED, REPLACED)
    before = naming.legs(CONNECTED)
    assert naming.legs(after) == {**before, Role.CALLER: NEW}
    assert naming.bridge_id(after) == naming.bridge_id(CONNECTED)


def test_a_join_that_met_the_channel_before_begins_again() -> None:
    followed, ordered = advance(JOINING, REPLACED)
    assert ordered == [commands.JoinLegs(call_id=CALL_ID, attempt=1)]
    after, ordered = advance(followed, facts.CallerGone(leg_id=OLD))
    assert (after, ordered) == (followed, [commands.JoinLegs(call_id=CALL_ID, attempt=1)])


@pytest.mark.parametrize("call", [ENDING, replace(ENDING, caller_left=True), replace(ENDED, caller_left=True)])
def test_a_channel_that_comes_to_a_call_that_is_over_is_removed(call: Call) -> None:
    """In whatever order the ends are told: it would wait for nothing."""
    after, ordered = advance(call, REPLACED)
    assert (after.state, after.caller_left, after.leg_id) == (State.ENDING, False, NEW)
    assert (after.outcome, after.reason) == (call.outcome, call.reason)
    assert ordered == [commands.TearDown(call_id=CALL_ID)]


def test_a_channel_is_known_whichever_creation_time_it_shows() -> None:
    """Measured: its own in its StasisStart; later, after a masquerade, that of the channel before."""
    after, _ = advance(CONNECTED, REPLACED)
    assert after.is_leg(NEW, CONNECTED.channel_created)
    assert after.is_leg(NEW, "its own")
    assert not after.is_leg(OLD, CONNECTED.channel_created)
    assert CONNECTED.is_leg(OLD, CONNECTED.channel_created)
    assert not CONNECTED.is_leg(OLD, "another's")


def test_the_leg_that_a_caller_was_transferred_to_may_be_replaced_as_well() -> None:
    transferred = replace(CONNECTED, destination_id="destination")
    fact = facts.LegReplaced(replaced_id="destination", channel_id=NEW, channel_name="PJSIP/2")
    after, _ = advance(transferred, fact)
    assert (after.destination_id, after.leg_id) == (NEW, OLD)
    assert advance(after, facts.DestinationGone(destination_id="destination"))[0] is after
    assert advance(after, facts.DestinationGone(destination_id=NEW))[0].state is State.ENDING


def test_a_leg_is_replaced_so_many_times() -> None:
    """A PBX could do so without end; each time a row is written."""
    call: Call = CONNECTED
    ordered: list[commands.Command] = []
    for number in range(LIMITS.replacements + 1):
        assert (call.state, ordered) == (State.CONNECTED, [])
        fact = facts.LegReplaced(replaced_id=call.leg_id, channel_id=f"channel-{number}", channel_name="PJSIP/1")
        call, ordered = advance(call, fact)
    assert (call.state, call.reason) == (State.ENDING, "the caller's leg was replaced too often")
    assert ordered == [commands.TearDown(call_id=CALL_ID)]
    again = facts.LegReplaced(replaced_id=call.leg_id, channel_id="one more", channel_name="PJSIP/1")
    assert advance(call, again) == (call, [])


def test_a_teardown_that_worked_with_the_channel_before_is_ordered_again() -> None:
    """It has seen that one gone; the new one waits for nothing."""
    removed = facts.LegsRemoved(leg_id=OLD)
    after, ordered = advance(ENDING, REPLACED, removed)
    assert (after.state, after.leg_id) == (State.ENDING, NEW)
    assert ordered == [commands.TearDown(call_id=CALL_ID)] * 2
    assert advance(after, facts.LegsRemoved(leg_id=NEW))[0].state is State.ENDED
    assert advance(ENDING, removed)[0].state is State.ENDED
