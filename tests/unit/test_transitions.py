"""All (state, fact) pairs in one table, and what holds for any history of a call."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.call import commands, facts, transitions
from shared.call.calls import Call
from shared.call.states import State
from tests.support.calls import (
    CALL_ID,
    CALLS,
    FACTS,
    LIMITS,
    NOW,
    ORIGINATING,
    RECEIVED,
    advance,
    named,
    seconds,
)

#: `.` the very same call; `=` the same state, with another field changed; else the new state. After a `+`, the command.
OUTCOMES = """
fact              originating       ringing          received           admitted          prepared         joining          connected        ending      ended
Admitted          .                 .                admitted+CreateRun .                 .                .                .                .           .
RunAttached         .                 .                prepared+StartMedia .                .                .                .                .           .
Refused           ending+TearDown   .                ending+TearDown    ending+TearDown   .                .                .                .           .
RunCreated        .                 .                .                  prepared+StartMedia .              .                .                .           .
AttemptBegun      .                 .                .                  .                 =                .                .                .           .
LegsCreated       .+RemoveAttempt   .+RemoveAttempt  .+RemoveAttempt    .+RemoveAttempt   =                .                .                .           .+RemoveAttempt
LegsFound         .                 .                .                  .                 .                .                .                .           .
LegsRefused       .                 .                .                  .                 ending+TearDown  .                .                .           .
LegsUnknown       .                 .                .                  .                 =+StartMedia     .                .                .           .
MediaReady        .+RemoveAttempt   .+RemoveAttempt  .+RemoveAttempt    .+RemoveAttempt   =                .                .                .+RemoveAttempt .+RemoveAttempt
MediaGone         .                 .                .                  .                 =+StartMedia     ending+TearDown  ending+TearDown  .           .
Joined            .                 .                .                  .                 .                connected        .                .           .
JoinRefused       .                 .                .                  .                 .                ending+TearDown  .                .           .
BridgeLost        .                 .                .                  .                 .                .                ending+TearDown  .           .
Transferred       .                 .                .                  .                 .                .                =                .           .
DestinationGone   .                 .                .                  .                 .                .                .                .           .
LegReplaced       =                 =                =                  =                 =                =+JoinLegs       =                =+TearDown  ending+TearDown
CallerHangingUp   =                 =                ending+TearDown    ending+TearDown   ending+TearDown  ending+TearDown  ending+TearDown  .           .
CallerLeft        ending+TearDown   ending+TearDown  ending+TearDown    ending+TearDown   ending+TearDown  ending+TearDown  ending+TearDown  =           =
CallerGone        ending+TearDown   ending+TearDown  ending+TearDown    ending+TearDown   ending+TearDown  ending+TearDown  ending+TearDown  =           =
DialBegun         =                                 .                .                  .                 .                .                .                .           .
DialUnsent        .                                 .                .                  .                 .                .                .                .           .
DialLost          .                                 .                .                  .                 .                .                .                .           .
Originated        ringing           .                .                  .                 .                .                .                .           .
Dialled           =                 =                .                  .                 .                .                .                .           .
FarEndAnswered    prepared+StartMedia prepared+StartMedia .             .                 .                .                .                .           .
OriginateRefused  ending+TearDown   .                .                  .                 .                .                .                .           .
EndRequested      ending+TearDown   ending+TearDown  ending+TearDown    ending+TearDown   ending+TearDown  ending+TearDown  ending+TearDown  .           .
Hindered          .                 .                .                  .                 =                .                .                .           .
DeadlinePassed    =+OriginateLeg       ending+TearDown  =+DecideAdmission  =+CreateRun       =+StartMedia     =+JoinLegs           ending+TearDown  =+TearDown  .
WorkerDied        .                 .                .                  .                 =+StartMedia     .                .                .           .
LegsRemoved       .                 .                .                  .                 .                .                .                ended       .
RemovalPending    .                 .                .                  .                 .                .                .                =           .
CallerFound       .                 .                .                  .                 .                .                .                .           .
"""  # noqa: E501 - a table


_HEAD, *_ROWS = [line.split() for line in OUTCOMES.strip().splitlines()]


TABLE = {
    (State(state), row[0]): cell for row in _ROWS for state, cell in zip(_HEAD[1:], row[1:], strict=True)
}  # fmt: skip


def cell_of(before: Call, after: Call, ordered: Iterable[commands.Command]) -> str:
    moved = "." if after is before else "=" if after.state is before.state else str(after.state)
    return "+".join([moved, *named(ordered)])


def test_the_table_lists_every_pair() -> None:
    every_fact = {kind.__name__ for kind in typing.get_args(facts.Fact)}
    assert set(TABLE) == set(itertools.product(State, every_fact))
    assert set(FACTS) == every_fact
    assert set(CALLS) == set(State)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_what_a_fact_makes_of_a_call(name: str) -> None:
    row = {}
    for state in State:
        before = CALLS[state]
        after, ordered = transitions.advance(before, FACTS[name], NOW, LIMITS)
        row[state] = cell_of(before, after, ordered)
    assert row == {state: TABLE[state, name] for state in State}


def test_a_duplicate_is_harmless() -> None:
    for (state, name), cell in TABLE.items():
        once, _ = advance(CALLS[state], FACTS[name])
        twice, ordered = transitions.advance(once, FACTS[name], NOW, LIMITS)
        if name == "RemovalPending":
            # Counted, to back off.
            assert replace(twice, step_retries=0, deadline_at=None) == replace(once, step_retries=0, deadline_at=None)
        else:
            assert twice == once, (state, name)
        # A leg that does not count is removed each time it is seen.
        assert named(ordered) == (["RemoveAttempt"] if "RemoveAttempt" in cell else []), (state, name)


def test_every_command_names_the_call_and_the_attempt_it_is_for() -> None:
    for call, fact in itertools.product(CALLS.values(), FACTS.values()):
        after, ordered = transitions.advance(call, fact, NOW, LIMITS)
        for command in ordered:
            assert command.call_id == CALL_ID
            match command:
                case commands.StartMedia():
                    assert command.attempt == after.attempt + 1
                case commands.JoinLegs() | commands.CheckMedia():
                    assert command.attempt == after.attempt
                case commands.RemoveAttempt():
                    assert command.attempt == 1


@pytest.mark.parametrize("state", list(State))
def test_a_fact_about_an_attempt_that_is_not_in_the_row_changes_nothing(state: State) -> None:
    """A fail-over has lost its commit, and the row has another attempt of its number: what it left is removed."""
    call = replace(CALLS[state], attempt_nonces=("0c11d2e3",))
    for fact in FACTS.values():
        if isinstance(fact, facts.AttemptFact) and not isinstance(fact, facts.AttemptBegun):
            after, ordered = transitions.advance(call, replace(fact, nonce="4f2a9c01"), NOW, LIMITS)
            removal = commands.RemoveAttempt(call_id=CALL_ID, attempt=1, nonce="4f2a9c01")
            is_there = isinstance(fact, facts.LegsCreated | facts.MediaReady)
            assert (after, ordered) == (call, (removal,) if is_there else ())


_attempts = st.integers(1, 4)


_causes = st.none() | st.integers(0, 127)


_text = st.text(max_size=5)


_fact: st.SearchStrategy[facts.Fact] = st.one_of(
    st.sampled_from([fact for fact in FACTS.values() if type(fact) is not facts.AttemptBegun]),
    st.builds(facts.AttemptBegun, attempt=_attempts, in_doubt_until=st.just(NOW + seconds(20))),
    st.builds(facts.LegsCreated, attempt=_attempts),
    st.builds(facts.MediaReady, attempt=_attempts),
    st.builds(facts.LegsFound, attempt=_attempts),
    st.builds(facts.MediaGone, attempt=_attempts),
    st.builds(facts.Joined, attempt=_attempts),
    st.builds(facts.LegsUnknown, attempt=_attempts, reason=_text),
    st.builds(facts.CallerGone, hangup_cause=_causes),
    st.builds(facts.Dialled, status=_text),
    st.builds(facts.DialBegun, in_doubt_until=st.just(NOW + seconds(19))),
)  # fmt: skip


#: The usual course, so that long lives are covered too.
_SETUP: list[facts.Fact] = [
    FACTS["Admitted"],
    FACTS["RunCreated"],
    facts.AttemptBegun(attempt=1, in_doubt_until=NOW + seconds(14)),
    facts.MediaReady(attempt=1),
    facts.LegsCreated(attempt=1),
    facts.Joined(attempt=1),
]


DIALLING = replace(ORIGINATING, attempt_in_doubt_until=NOW + seconds(19))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    first=st.sampled_from([transitions.receive(RECEIVED, LIMITS), ORIGINATING, DIALLING]),
    usual=st.integers(0, len(_SETUP)),
    happened=st.lists(st.tuples(_fact, st.sampled_from([0, 1, 5, 100])), max_size=15),
)
def test_whatever_happens_the_rules_hold(first: Call, usual: int, happened: list[tuple[facts.Fact, int]]) -> None:
    call, now = first, NOW
    for fact, later in [*((fact, 0) for fact in _SETUP[:usual]), *happened]:
        now += seconds(later)
        before = call
        call, ordered = transitions.advance(before, fact, now, LIMITS)
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
            # No worker has made the request, or its outcome is known.
            assert isinstance(fact, facts.CallerGone | facts.OriginateRefused) or not before.is_dial_begun
        if call.state is not before.state:
            assert call.state_since == now
        assert len(ordered) <= 1
