"""The life of a call: one table of all (state, fact) pairs, the rules by name, and what holds for any history."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.call import calls, commands, facts, states, transitions
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import Cause, Direction, Outcome, State
from shared.call.steps import Step

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LIMITS = Limits()
CALL_ID = UUID("0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11")


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


RECEIVED = Call(
    call_id=CALL_ID,
    connection_id=7,
    connection_version=1,
    organization_id=3,
    channel_id="1700000000.1",
    channel_created="2026-05-01T12:00:00.000+0000",
    entry=1,
    direction=Direction.INBOUND,
    state=State.RECEIVED,
    received_at=NOW - seconds(3),
    state_since=NOW - seconds(3),
    # Due: a deadline that passes now passes in every state.
    deadline_at=NOW,
)
ORIGINATING = replace(
    RECEIVED,
    state=State.ORIGINATING,
    direction=Direction.OUTBOUND,
    channel_created="",
    workflow_id=1,
    user_id=2,
    media_client="media",
    workflow_run_id=9,
    request_id="campaign 7, row 12",
    dial_endpoint="PJSIP/+4930123",
)
RINGING = replace(ORIGINATING, state=State.RINGING)
ADMITTED = replace(RECEIVED, state=State.ADMITTED, workflow_id=1, user_id=2, media_client="media")
PREPARED = replace(ADMITTED, state=State.PREPARED, workflow_run_id=9)
#: Its first attempt is under way.
ATTEMPTING = replace(PREPARED, attempt=1, attempt_in_doubt_until=NOW + seconds(14))
WAITING = replace(ATTEMPTING, attempt_in_doubt_until=None, legs_created=True)
JOINING = replace(WAITING, state=State.JOINING, media_ready=True)
CONNECTED = replace(JOINING, state=State.CONNECTED, connected_at=NOW - seconds(60))
ENDING = replace(
    CONNECTED, state=State.ENDING, ending_at=NOW, outcome=Outcome.COMPLETED, reason="agent hung up", hangup_cause=16
)
ENDED = replace(ENDING, state=State.ENDED, ended_at=NOW, deadline_at=None)

CALLS = {
    call.state: call
    for call in (ORIGINATING, RINGING, RECEIVED, ADMITTED, ATTEMPTING, JOINING, CONNECTED, ENDING, ENDED)
}
FACTS: dict[str, facts.Fact] = {
    type(fact).__name__: fact
    for fact in (
        facts.Admitted(workflow_id=1, user_id=2, media_client="media"),
        facts.RunAttached(workflow_id=1, user_id=2, media_client="media", workflow_run_id=9),
        facts.Refused(reason="no route", hangup_cause=Cause.UNALLOCATED),
        facts.RunCreated(workflow_run_id=9),
        facts.AttemptBegun(attempt=2, in_doubt_until=NOW + seconds(20)),
        facts.LegsCreated(attempt=1),
        facts.LegsRefused(attempt=1, reason="400 no such client"),
        facts.LegsUnknown(attempt=1, reason="no answer in time"),
        facts.MediaReady(attempt=1),
        facts.MediaGone(attempt=1, hangup_cause=3),
        facts.Joined(attempt=1),
        facts.JoinRefused(attempt=1, reason="422 Channel not in Stasis application"),
        facts.BridgeLost(attempt=1, reason="the bridge is gone"),
        facts.CallerHangingUp(hangup_cause=16),
        facts.CallerLeft(stamp="2026-05-01T12:00:09.000+0000"),
        facts.CallerGone(hangup_cause=16),
        facts.Originated(),
        facts.Dialled(status="BUSY"),
        facts.FarEndAnswered(channel_name="PJSIP/trunk-1", channel_created="2026-05-01T12:00:05.000+0000"),
        facts.OriginateRefused(reason="400 no such endpoint"),
        facts.EndRequested(reason="ended by an operator"),
        facts.DeadlinePassed(),
        facts.LegsRemoved(),
        facts.RemovalPending(reason="connection refused"),
    )
}

#: `.` the very same call; `=` the same state, something noted; else the new state. After a `+`, the order given.
OUTCOMES = """
fact              originating       ringing          received           admitted          prepared         joining          connected        ending      ended
Admitted          .                 .                admitted+CreateRun .                 .                .                .                .           .
RunAttached         .                 .                prepared+StartMedia .                .                .                .                .           .
Refused           ending+TearDown   .                ending+TearDown    ending+TearDown   .                .                .                .           .
RunCreated        .                 .                .                  prepared+StartMedia .              .                .                .           .
AttemptBegun      .                 .                .                  .                 =                .                .                .           .
LegsCreated       .+RemoveAttempt   .+RemoveAttempt  .+RemoveAttempt    .+RemoveAttempt   =                .                .                .           .+RemoveAttempt
LegsRefused       .                 .                .                  .                 ending+TearDown  .                .                .           .
LegsUnknown       .                 .                .                  .                 =+StartMedia     .                .                .           .
MediaReady        .+RemoveAttempt   .+RemoveAttempt  .+RemoveAttempt    .+RemoveAttempt   =                .                .                .+RemoveAttempt .+RemoveAttempt
MediaGone         .                 .                .                  .                 ending+TearDown  ending+TearDown  ending+TearDown  .           .
Joined            .                 .                .                  .                 .                connected        .                .           .
JoinRefused       .                 .                .                  .                 .                ending+TearDown  .                .           .
BridgeLost        .                 .                .                  .                 .                .                ending+TearDown  .           .
CallerHangingUp   =                 =                ending+TearDown    ending+TearDown   ending+TearDown  ending+TearDown  ending+TearDown  .           .
CallerLeft        ending+TearDown   ending+TearDown  ending+TearDown    ending+TearDown   ending+TearDown  ending+TearDown  ending+TearDown  =           =
CallerGone        ending+TearDown   ending+TearDown  ending+TearDown    ending+TearDown   ending+TearDown  ending+TearDown  ending+TearDown  =           =
Originated        ringing           .                .                  .                 .                .                .                .           .
Dialled           =                 =                .                  .                 .                .                .                .           .
FarEndAnswered    prepared+StartMedia prepared+StartMedia .             .                 .                .                .                .           .
OriginateRefused  ending+TearDown   .                .                  .                 .                .                .                .           .
EndRequested      ending+TearDown   ending+TearDown  ending+TearDown    ending+TearDown   ending+TearDown  ending+TearDown  ending+TearDown  .           .
DeadlinePassed    =+OriginateLeg       ending+TearDown  =+DecideAdmission  =+CreateRun       =+StartMedia     =+JoinLegs           ending+TearDown  =+TearDown  .
LegsRemoved       .                 .                .                  .                 .                .                .                ended       .
RemovalPending    .                 .                .                  .                 .                .                .                =           .
"""  # noqa: E501 - a table

_HEAD, *_ROWS = [line.split() for line in OUTCOMES.strip().splitlines()]
TABLE = {
    (State(state), row[0]): cell for row in _ROWS for state, cell in zip(_HEAD[1:], row[1:], strict=True)
}  # fmt: skip


def advance(call: Call, *happened: facts.Fact, now: datetime = NOW) -> tuple[Call, list[commands.Command]]:
    """Applies facts in turn; gives all the orders."""
    ordered: list[commands.Command] = []
    for fact in happened:
        call, orders = transitions.advance(call, fact, now, LIMITS)
        ordered += orders
    return call, ordered


def named(orders: Iterable[commands.Command]) -> list[str]:
    return [type(order).__name__ for order in orders]


def cell_of(before: Call, after: Call, orders: Iterable[commands.Command]) -> str:
    moved = "." if after is before else "=" if after.state is before.state else str(after.state)
    return "+".join([moved, *named(orders)])


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_lists_every_pair() -> None:
    every_fact = {kind.__name__ for kind in typing.get_args(facts.Fact)}
    assert set(TABLE) == set(itertools.product(State, every_fact))
    assert set(FACTS) == every_fact
    assert set(CALLS) == set(State)


@pytest.mark.parametrize(("state", "name"), sorted(TABLE))
def test_what_a_fact_makes_of_a_call(state: State, name: str) -> None:
    before = CALLS[state]
    after, orders = transitions.advance(before, FACTS[name], NOW, LIMITS)
    assert cell_of(before, after, orders) == TABLE[state, name]


def test_a_duplicate_is_harmless() -> None:
    for (state, name), cell in TABLE.items():
        once, _ = advance(CALLS[state], FACTS[name])
        twice, orders = transitions.advance(once, FACTS[name], NOW, LIMITS)
        if name == "RemovalPending":
            # Counted, to back off.
            assert replace(twice, step_retries=0, deadline_at=None) == replace(once, step_retries=0, deadline_at=None)
        else:
            assert twice == once, (state, name)
        # What is to be removed on sight is removed each time it is seen.
        assert named(orders) == (["RemoveAttempt"] if "RemoveAttempt" in cell else []), (state, name)


def test_every_order_names_the_call_and_the_attempt_it_is_for() -> None:
    for call, fact in itertools.product(CALLS.values(), FACTS.values()):
        after, orders = transitions.advance(call, fact, NOW, LIMITS)
        for order in orders:
            assert order.call_id == CALL_ID
            match order:
                case commands.StartMedia():
                    assert order.attempt == after.attempt + 1
                case commands.JoinLegs() | commands.CheckMedia():
                    assert order.attempt == after.attempt
                case commands.RemoveAttempt():
                    assert order.attempt == 1


# ── set-up ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_received_call_has_a_deadline() -> None:
    received = transitions.receive(replace(RECEIVED, deadline_at=None), LIMITS)
    assert received.deadline_at == RECEIVED.received_at + LIMITS.queue_wait()


def test_admission_keeps_the_route() -> None:
    after, _ = advance(RECEIVED, facts.Admitted(workflow_id=41, user_id=42, media_client="agent"))
    assert (after.workflow_id, after.user_id, after.media_client) == (41, 42, "agent")


def test_a_refused_call_ends_with_the_reason_and_cause_given() -> None:
    after, _ = advance(RECEIVED, facts.Refused(reason="no route", hangup_cause=Cause.UNALLOCATED))
    assert (after.outcome, after.reason, after.hangup_cause) == (Outcome.REFUSED, "no route", 1)
    assert after.ending_at == NOW


@pytest.mark.parametrize("media_first", [True, False])
def test_legs_created_and_media_ready_in_any_order_order_one_join(*, media_first: bool) -> None:
    both: list[facts.Fact] = [facts.MediaReady(attempt=1), facts.LegsCreated(attempt=1)]
    after, orders = advance(ATTEMPTING, *(both if media_first else both[::-1]))
    assert after.state is State.JOINING
    assert orders == [commands.JoinLegs(call_id=CALL_ID, attempt=1)]


@pytest.mark.parametrize("order", sorted(set(itertools.permutations(["created", "created", "ready", "ready"]))))
def test_duplicates_order_no_second_join(order: tuple[str, ...]) -> None:
    said: dict[str, facts.Fact] = {"created": facts.LegsCreated(attempt=1), "ready": facts.MediaReady(attempt=1)}
    after, orders = advance(ATTEMPTING, *(said[name] for name in order))
    assert after.state is State.JOINING
    assert named(orders) == ["JoinLegs"]


def test_created_legs_wait_for_the_media_leg() -> None:
    after, orders = advance(replace(ATTEMPTING, step_retries=1), facts.LegsCreated(attempt=1))
    assert orders == []
    assert after.attempt_in_doubt_until is None
    assert (after.deadline_at, after.step_retries) == (NOW + LIMITS.media_wait(), 0)


def test_joined_legs_are_a_connected_call() -> None:
    after, orders = advance(JOINING, facts.Joined(attempt=1))
    assert (after.connected_at, after.deadline_at) == (NOW, NOW + seconds(LIMITS.call_seconds))
    assert orders == []


def test_a_join_of_another_attempt_connects_nothing() -> None:
    call = replace(JOINING, attempt=2)
    assert advance(call, facts.Joined(attempt=1), facts.JoinRefused(attempt=1, reason="")) == (call, [])


# ── attempts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_attempt_is_begun_before_anything_is_asked() -> None:
    after, orders = advance(PREPARED, facts.AttemptBegun(attempt=1, in_doubt_until=NOW + seconds(14)))
    assert (after.attempt, after.attempt_in_doubt_until, orders) == (1, NOW + seconds(14), [])
    assert after.deadline_at == NOW + LIMITS.attempt_wait()


@pytest.mark.parametrize("attempt", [0, 1, 3, 4])
def test_only_the_next_attempt_can_begin(attempt: int) -> None:
    begun = facts.AttemptBegun(attempt=attempt, in_doubt_until=NOW + seconds(14))
    assert advance(ATTEMPTING, begun) == (ATTEMPTING, [])


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


def test_an_unknown_outcome_leads_to_the_next_attempt() -> None:
    after, orders = advance(ATTEMPTING, facts.LegsUnknown(attempt=1, reason="no answer in time"))
    assert orders == [commands.StartMedia(call_id=CALL_ID, attempt=2)]
    # The number is committed by the worker that begins it; the first one's request is still open.
    assert (after.attempt, after.in_doubt_until) == (1, ATTEMPTING.attempt_in_doubt_until)


def test_an_unknown_outcome_of_the_last_attempt_fails_the_call() -> None:
    last = replace(ATTEMPTING, attempt=LIMITS.attempts)
    after, orders = advance(last, facts.LegsUnknown(attempt=LIMITS.attempts, reason="no answer in time"))
    assert (after.state, after.outcome) == (State.ENDING, Outcome.FAILED)
    assert after.in_doubt_until == ATTEMPTING.attempt_in_doubt_until
    assert named(orders) == ["TearDown"]


def test_a_worker_that_died_over_an_attempt_costs_that_attempt() -> None:
    after, orders = advance(ATTEMPTING, facts.DeadlinePassed())
    assert orders == [commands.StartMedia(call_id=CALL_ID, attempt=2)]
    assert after.in_doubt_until == ATTEMPTING.attempt_in_doubt_until


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


def test_a_media_leg_that_never_came_up_fails_the_call() -> None:
    after, _ = advance(WAITING, facts.MediaGone(attempt=1, reason="media leg ended, cause 3"))
    assert (after.outcome, after.hangup_cause) == (Outcome.FAILED, Cause.TEMPORARY_FAILURE)
    assert after.reason == "voice agent not reached: media leg ended, cause 3"


def test_a_media_leg_that_is_only_found_missing_is_tried_once_more() -> None:
    """Without an event socket no leg enters Stasis: that says nothing of the agent."""
    missing = facts.MediaGone(attempt=1, reason="media leg is gone", reported_by_event=False)
    again, orders = advance(WAITING, missing)
    assert (again.state, orders) == (State.PREPARED, [commands.StartMedia(call_id=CALL_ID, attempt=2)])
    begun, _ = advance(again, facts.AttemptBegun(attempt=2, in_doubt_until=NOW + seconds(20)))
    assert begun.attempt == 2
    second, _ = advance(begun, facts.LegsCreated(attempt=2))
    ended, _ = advance(second, replace(missing, attempt=2))
    assert (ended.outcome, ended.reason) == (Outcome.FAILED, "voice agent not reached: media leg is gone")


# ── the end of a call ────────────────────────────────────────────────────────────────────────────────────────────────

HANG_UPS = [
    facts.CallerHangingUp(hangup_cause=17),
    facts.CallerLeft(stamp="2026-05-01T12:00:09.000+0000"),
    facts.CallerGone(hangup_cause=17),
]


@pytest.mark.parametrize("hang_up", HANG_UPS)
@pytest.mark.parametrize("call", [RECEIVED, ADMITTED, PREPARED, ATTEMPTING, WAITING, JOINING])
def test_a_caller_who_leaves_before_the_agent_is_abandoned(call: Call, hang_up: facts.Fact) -> None:
    after, orders = advance(call, hang_up)
    assert (after.state, after.outcome) == (State.ENDING, Outcome.ABANDONED)
    assert after.caller_left is not isinstance(hang_up, facts.CallerHangingUp)
    assert orders == [commands.TearDown(call_id=CALL_ID)]


@pytest.mark.parametrize("hang_up", HANG_UPS)
def test_a_caller_who_leaves_a_connected_call_completes_it(hang_up: facts.Fact) -> None:
    after, _ = advance(CONNECTED, hang_up)
    assert (after.outcome, after.reason, after.ending_at) == (Outcome.COMPLETED, "caller hung up", NOW)
    assert after.talk_seconds == 60


@pytest.mark.parametrize("hang_up", HANG_UPS)
def test_an_outbound_caller_who_leaves_before_the_agent_is_canceled(hang_up: facts.Fact) -> None:
    after, _ = advance(replace(WAITING, direction=Direction.OUTBOUND), hang_up)
    assert after.outcome is Outcome.CANCELED


def test_the_cause_comes_with_whichever_report_knows_it() -> None:
    left, _ = advance(CONNECTED, facts.CallerLeft())
    assert left.hangup_cause is None
    gone, orders = advance(left, facts.CallerGone(hangup_cause=16))
    assert (gone.hangup_cause, orders) == (16, [])
    again, _ = advance(gone, facts.CallerGone(hangup_cause=99))
    assert again.hangup_cause == 16


def test_a_caller_asked_to_hang_up_is_still_ours_until_it_left() -> None:
    asked, _ = advance(CONNECTED, facts.CallerHangingUp(hangup_cause=16))
    assert not asked.caller_left
    left, _ = advance(asked, facts.CallerLeft(stamp="stamp"))
    assert (left.caller_left, left.left_stamp) == (True, "stamp")


def test_a_caller_who_left_is_never_ours_again() -> None:
    after, _ = advance(CONNECTED, facts.CallerLeft(), facts.CallerHangingUp(hangup_cause=16))
    assert (after.caller_left, after.hangup_cause) == (True, 16)


def test_the_first_stamp_of_leaving_is_kept() -> None:
    left, _ = advance(CONNECTED, facts.CallerLeft(stamp="first"), facts.CallerLeft(stamp="second"))
    assert left.left_stamp == "first"


def test_an_agent_who_hangs_up_completes_the_call() -> None:
    after, _ = advance(CONNECTED, facts.MediaGone(attempt=1))
    assert (after.outcome, after.reason, after.hangup_cause) == (Outcome.COMPLETED, "agent hung up", Cause.NORMAL)


def test_a_lost_bridge_fails_the_call() -> None:
    after, _ = advance(CONNECTED, facts.BridgeLost(attempt=1, reason="gone"))
    assert (after.outcome, after.reason) == (Outcome.FAILED, "bridge lost: gone")


@pytest.mark.parametrize(("call", "outcome"), [(PREPARED, Outcome.CANCELED), (CONNECTED, Outcome.COMPLETED)])
def test_an_operator_ends_a_call(call: Call, outcome: Outcome) -> None:
    after, _ = advance(call, facts.EndRequested(reason="by an operator"))
    assert (after.outcome, after.reason) == (outcome, "by an operator")


def test_what_is_known_of_an_end_is_kept() -> None:
    for fact in FACTS.values():
        after, _ = advance(ENDING, fact)
        assert (after.outcome, after.reason, after.hangup_cause) == (Outcome.COMPLETED, "agent hung up", 16)


@pytest.mark.parametrize("field", ["attempt_in_doubt_until", "earlier_in_doubt_until"])
def test_a_call_does_not_end_while_a_request_of_it_may_take_effect(field: str) -> None:
    still_open = replace(ENDING, **{field: NOW + seconds(5)})  # type: ignore[arg-type]
    assert advance(still_open, facts.LegsRemoved()) == (still_open, [])
    assert advance(still_open, facts.LegsRemoved(), now=NOW + seconds(5))[0].state is State.ENDED


def test_open_until_is_the_latest_of_all_attempts() -> None:
    assert replace(
        ENDING, earlier_in_doubt_until=NOW, attempt_in_doubt_until=NOW + seconds(1)
    ).in_doubt_until == NOW + seconds(1)
    assert replace(
        ENDING, earlier_in_doubt_until=NOW + seconds(2), attempt_in_doubt_until=NOW
    ).in_doubt_until == NOW + seconds(2)
    assert ENDING.in_doubt_until is None


def test_legs_created_for_an_ending_call_are_torn_down_at_once() -> None:
    ending, _ = advance(ATTEMPTING, facts.CallerLeft())
    settled, orders = advance(ending, facts.LegsCreated(attempt=1))
    assert (settled.in_doubt_until, named(orders)) == (None, ["TearDown"])
    assert advance(settled, facts.LegsRemoved())[0].state is State.ENDED


def test_legs_refused_for_an_ending_call_let_it_end() -> None:
    ending, _ = advance(ATTEMPTING, facts.CallerLeft())
    settled, orders = advance(ending, facts.LegsRefused(attempt=1, reason=""))
    assert (settled.in_doubt_until, named(orders)) == (None, ["TearDown"])


def test_a_pending_removal_is_tried_again_later_and_later() -> None:
    pauses, call = [], replace(ENDING, step_retries=0)
    for _ in range(9):
        call, orders = advance(call, facts.RemovalPending(reason="connection refused"))
        assert orders == []
        assert call.deadline_at is not None
        pauses.append((call.deadline_at - NOW).total_seconds())
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_pending_removal_waits_for_what_may_still_take_effect() -> None:
    still_open = replace(ENDING, attempt_in_doubt_until=NOW + seconds(30))
    after, _ = advance(still_open, facts.RemovalPending(reason="open", not_before=NOW + seconds(30)))
    assert after.deadline_at == NOW + seconds(30)
    soon, _ = advance(still_open, facts.RemovalPending(reason="open", not_before=NOW - seconds(30)))
    assert soon.deadline_at == NOW + seconds(1)
    settled, _ = advance(ENDING, facts.RemovalPending(reason="open", not_before=NOW + seconds(30)))
    assert settled.deadline_at == NOW + seconds(1), "settled while the teardown was at work"


def test_an_ended_call_has_no_deadline() -> None:
    after, _ = advance(ENDING, facts.LegsRemoved())
    assert (after.deadline_at, after.ended_at) == (None, NOW)


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", [call for call in CALLS.values() if call.deadline_at is not None])
def test_a_deadline_not_reached_does_nothing(call: Call) -> None:
    early = replace(call, deadline_at=NOW + seconds(0.001))
    assert advance(early, facts.DeadlinePassed()) == (early, [])


@pytest.mark.parametrize("call", [ORIGINATING, RECEIVED, ADMITTED, PREPARED, JOINING])
def test_a_lost_step_is_started_again_then_given_up(call: Call) -> None:
    now, orders = NOW, []
    for step_retries in range(1, LIMITS.max_step_retries + 1):
        call, again = advance(call, facts.DeadlinePassed(), now=now)
        orders += named(again)
        assert (call.step_retries, call.deadline_at) == (step_retries, now + LIMITS.queue_wait())
        now += LIMITS.queue_wait()
    over, last = advance(call, facts.DeadlinePassed(), now=now)
    assert len(set(orders)) == 1
    assert (over.state, over.outcome, over.hangup_cause) == (State.ENDING, Outcome.FAILED, Cause.RECOVERY_ON_TIMER)
    assert named(last) == ["TearDown"]


def test_a_silent_media_leg_is_asked_for_then_given_up() -> None:
    call, now, orders = WAITING, NOW, []
    while call.state is State.PREPARED:
        call, again = advance(call, facts.DeadlinePassed(), now=now)
        orders += named(again)
        now += LIMITS.media_wait()
    assert orders == ["CheckMedia"] * LIMITS.media_checks + ["TearDown"]
    assert call.outcome is Outcome.FAILED
    assert call.reason == "voice agent not reached: media leg not ready in time"


@pytest.mark.parametrize("call", [PREPARED, ATTEMPTING, *CALLS.values()])
def test_a_call_for_which_every_order_is_lost_still_comes_to_its_end(call: Call) -> None:
    for _ in range(20):
        if call.state in (State.ENDING, State.ENDED):
            return
        assert call.deadline_at is not None
        call, _ = advance(call, facts.DeadlinePassed(), now=call.deadline_at)
    pytest.fail(f"driven on for ever in {call.state}")


def test_an_ending_call_is_driven_for_ever_with_longer_pauses() -> None:
    call, now = ENDING, NOW
    for _ in range(50):
        call, orders = advance(call, facts.DeadlinePassed(), now=now)
        assert named(orders) == ["TearDown"]
        assert call.deadline_at is not None
        assert LIMITS.queue_wait() <= call.deadline_at - now <= seconds(LIMITS.teardown_pause_seconds)
        now = call.deadline_at
    assert call.state is State.ENDING


def test_the_longest_call_completes() -> None:
    after, _ = advance(CONNECTED, facts.DeadlinePassed())
    assert (after.outcome, after.reason) == (Outcome.COMPLETED, "longest call time reached")


def test_each_state_begins_with_its_drives_at_zero() -> None:
    for fact in (facts.RunCreated(workflow_run_id=1), facts.CallerLeft()):
        after, _ = advance(replace(ADMITTED, step_retries=2), fact)
        assert after.step_retries == 0


# ── outbound ─────────────────────────────────────────────────────────────────────────────────────────────────────────


REFUSED = facts.Refused(reason="the organization is blocked", hangup_cause=Cause.NOT_ALLOWED)
ANSWERED = facts.FarEndAnswered(channel_name="PJSIP/trunk-1", channel_created="2026", stamp="2026-05-01T12:00:05")


def test_an_originate_is_ordered_as_soon_as_it_is_written() -> None:
    call, order = transitions.originate(replace(ORIGINATING, state=State.RECEIVED), LIMITS)
    assert (call.state, call.deadline_at) == (State.ORIGINATING, call.received_at + LIMITS.queue_wait())
    assert order == commands.OriginateLeg(call_id=CALL_ID)


def test_an_answered_far_end_gets_an_agent() -> None:
    ringing, _ = advance(ORIGINATING, facts.Originated())
    assert ringing.deadline_at == NOW + seconds(LIMITS.ring_seconds + LIMITS.ring_slack_seconds)
    prepared, orders = advance(ringing, ANSWERED)
    assert prepared.state is State.PREPARED
    assert orders == [commands.StartMedia(call_id=CALL_ID, attempt=1)]
    assert (prepared.channel_name, prepared.channel_created) == ("PJSIP/trunk-1", "2026")


def test_an_answer_that_overtakes_the_request_s_own_answer_counts() -> None:
    prepared, _ = advance(ORIGINATING, ANSWERED)
    after, orders = advance(prepared, facts.Originated())
    assert after is prepared
    assert orders == []


def test_an_originate_called_off_while_it_is_asked_for_is_removed_when_it_is_known_to_ring() -> None:
    ending, _ = advance(ORIGINATING, facts.EndRequested(reason="ended by an operator"))
    # The teardown was there first, and found no leg yet.
    waiting, _ = advance(ending, facts.RemovalPending(reason="may still take effect", not_before=ending.in_doubt_until))
    settled, orders = advance(waiting, facts.Originated())
    assert (settled.in_doubt_until, named(orders)) == (None, ["TearDown"])
    assert advance(settled, facts.LegsRemoved())[0].state is State.ENDED


def test_an_originate_called_off_while_it_is_asked_for_ends_when_it_is_refused() -> None:
    ending, _ = advance(ORIGINATING, facts.EndRequested(reason="ended by an operator"))
    settled, orders = advance(ending, facts.OriginateRefused(reason="500 Allocation failed"))
    assert (settled.in_doubt_until, named(orders)) == (None, ["TearDown"])
    assert (settled.outcome, settled.reason) == (Outcome.CANCELED, "ended by an operator")


@pytest.mark.parametrize("call", [ORIGINATING, RINGING])
def test_a_far_end_that_answers_a_call_that_was_called_off_is_not_kept_waiting(call: Call) -> None:
    ending, _ = advance(call, facts.EndRequested(reason="ended by an operator"))
    after, orders = advance(ending, ANSWERED)
    # Its leg is hung up wherever it is.
    assert (after.is_unanswered, named(orders)) == (True, ["TearDown"])
    gone, _ = advance(ending, facts.CallerGone(hangup_cause=16))
    assert advance(gone, ANSWERED) == (gone, [])
    assert advance(gone, facts.Originated()) == (gone, [])


def test_ringing_is_bounded_by_what_was_asked_for_and_asterisk_ends_it_first() -> None:
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


def test_an_originate_refused_by_the_first_who_had_it_has_no_leg_and_ends_at_once() -> None:
    ending, orders = advance(replace(ORIGINATING, lock_version=1), REFUSED)
    assert (ending.caller_left, ending.outcome, named(orders)) == (True, Outcome.REFUSED, ["TearDown"])
    assert advance(ending, facts.LegsRemoved())[0].state is State.ENDED


def test_an_originate_refused_that_somebody_else_may_have_asked_for_is_waited_for() -> None:
    """Another worker had it before, and did not report back: the leg may ring yet."""
    ending, _ = advance(replace(ORIGINATING, lock_version=2), REFUSED)
    assert (ending.caller_left, ending.in_doubt_until) == (False, NOW + LIMITS.originate_wait())


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
    after, orders = advance(call, facts.CallerGone(hangup_cause=cause))
    assert (after.outcome, after.reason, after.hangup_cause) == came_to
    assert after.caller_left
    assert named(orders) == ["TearDown"]


def test_a_cause_that_is_told_late_is_kept() -> None:
    ended = replace(ENDED, hangup_cause=None)
    assert advance(ended, facts.CallerGone(hangup_cause=17))[0].hangup_cause == 17
    assert advance(ENDED, facts.CallerGone(hangup_cause=17))[0].hangup_cause == ENDED.hangup_cause


def test_a_leg_taken_over_has_its_run_already() -> None:
    taken = facts.RunAttached(workflow_id=1, user_id=2, media_client="media", workflow_run_id=9, call_seconds=60)
    prepared, orders = advance(replace(RECEIVED, direction=Direction.OUTBOUND), taken)
    assert (prepared.state, prepared.workflow_run_id, prepared.call_seconds) == (State.PREPARED, 9, 60)
    assert orders == [commands.StartMedia(call_id=CALL_ID, attempt=1)]


def test_a_connection_s_own_bound_ends_a_call() -> None:
    connected, _ = advance(replace(JOINING, call_seconds=90.0), facts.Joined(attempt=1))
    assert connected.deadline_at == NOW + seconds(90)


def test_a_refused_caller_may_go_on_in_the_dialplan() -> None:
    after, _ = advance(RECEIVED, facts.Refused(reason="busy", hangup_cause=17, continue_in_dialplan=True))
    assert (after.state, after.continue_in_dialplan) == (State.ENDING, True)


# ── any history ──────────────────────────────────────────────────────────────────────────────────────────────────────

_attempts = st.integers(1, 4)
_causes = st.none() | st.integers(0, 127)
_text = st.text(max_size=5)
_fact: st.SearchStrategy[facts.Fact] = st.one_of(
    st.sampled_from([fact for fact in FACTS.values() if type(fact) is not facts.AttemptBegun]),
    st.builds(facts.AttemptBegun, attempt=_attempts, in_doubt_until=st.just(NOW + seconds(20))),
    st.builds(facts.LegsCreated, attempt=_attempts),
    st.builds(facts.MediaReady, attempt=_attempts),
    st.builds(facts.MediaGone, attempt=_attempts, reported_by_event=st.booleans()),
    st.builds(facts.Joined, attempt=_attempts),
    st.builds(facts.LegsUnknown, attempt=_attempts, reason=_text),
    st.builds(facts.CallerGone, hangup_cause=_causes),
    st.builds(facts.Dialled, status=_text),
)  # fmt: skip
#: What usually happens, so that long lives are seen too.
_SETUP: list[facts.Fact] = [
    FACTS["Admitted"],
    FACTS["RunCreated"],
    facts.AttemptBegun(attempt=1, in_doubt_until=NOW + seconds(14)),
    facts.MediaReady(attempt=1),
    facts.LegsCreated(attempt=1),
    facts.Joined(attempt=1),
]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    first=st.sampled_from([transitions.receive(RECEIVED, LIMITS), ORIGINATING, replace(ORIGINATING, lock_version=2)]),
    usual=st.integers(0, len(_SETUP)),
    happened=st.lists(st.tuples(_fact, st.sampled_from([0, 1, 5, 100])), max_size=15),
)
def test_whatever_happens_the_rules_hold(first: Call, usual: int, happened: list[tuple[facts.Fact, int]]) -> None:
    call, now = first, NOW
    for fact, later in [*((fact, 0) for fact in _SETUP[:usual]), *happened]:
        now += seconds(later)
        before = call
        call, orders = transitions.advance(before, fact, now, LIMITS)
        assert before.attempt <= call.attempt <= min(before.attempt + 1, LIMITS.attempts)
        assert call.caller_left or not before.caller_left
        if before.state is State.ENDED:
            assert call.state is State.ENDED
        if before.state is State.ENDING:
            assert call.state in (State.ENDING, State.ENDED)
        if call.state is State.CONNECTED:
            assert call.legs_created
            assert call.media_ready
            assert call.connected_at is not None
        if call.state in (State.ENDING, State.ENDED):
            assert call.outcome is not None
            assert call.reason
            assert call.ending_at is not None
        else:
            assert not call.caller_left
        assert (call.deadline_at is None) == (call.state is State.ENDED)
        if call.state is State.ENDED and before.state is not State.ENDED:
            assert call.in_doubt_until is None or call.in_doubt_until <= now
        if before.state is State.ORIGINATING and call.state is State.ENDING and call.in_doubt_until is None:
            # Nobody has asked, or what it came to is known.
            assert isinstance(fact, facts.CallerGone | facts.OriginateRefused) or before.lock_version <= 1
        if call.state is not before.state:
            assert call.state_since == now
        assert len(orders) <= 1


def test_each_step_has_one_state_and_each_waiting_state_one_step() -> None:
    assert set(calls.WORKS_IN) == set(Step)
    assert set(State) - set(calls.WORKS_IN.values()) == {State.RINGING, State.CONNECTED, State.ENDED}
    assert {State.ENDING, State.ENDED}.isdisjoint(states.LIVE)
