"""A call in each state, one of each fact, and `advance` over several facts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from shared.call import commands, facts, transitions
from shared.call.calls import Call
from shared.call.limits import Limits
from shared.call.states import Cause, Direction, Outcome, State

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LIMITS = Limits()
CALL_ID = UUID("0c9a4e52-9c5e-5c53-8a5f-6d0a5d6a2f11")


def seconds(count: float) -> timedelta:
    """Return a span of time."""
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
#: It was given up: the next one is ordered.
BETWEEN_ATTEMPTS = replace(ATTEMPTING, attempt_in_doubt_until=None, earlier_in_doubt_until=NOW + seconds(14))
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
        facts.LegsFound(attempt=1),
        facts.LegsRefused(attempt=1, reason="400 no such client"),
        facts.LegsUnknown(attempt=1, reason="no answer in time"),
        facts.Hindered(state=State.PREPARED, obstacle="no worker has done its step"),
        facts.MediaReady(attempt=1),
        facts.MediaGone(attempt=1, hangup_cause=3),
        facts.Joined(attempt=1),
        facts.JoinRefused(attempt=1, reason="422 Channel not in Stasis application"),
        facts.BridgeLost(attempt=1, reason="the bridge is gone"),
        facts.Transferred(attempt=1, destination_id="destination-1"),
        facts.DestinationGone(destination_id="destination-1", hangup_cause=16),
        facts.LegReplaced(replaced_id="1700000000.1", channel_id="1700000001.7", channel_name="Local/1001@sales-1;1"),
        facts.CallerHangingUp(hangup_cause=16),
        facts.CallerLeft(stamp="2026-05-01T12:00:09.000+0000"),
        facts.CallerGone(hangup_cause=16),
        facts.DialBegun(in_doubt_until=NOW + seconds(19)),
        facts.DialUnsent(in_doubt_until=NOW + seconds(19), reason="connection refused"),
        facts.DialLost(),
        facts.Originated(),
        facts.Dialled(status="BUSY"),
        facts.FarEndAnswered(channel_name="PJSIP/trunk-1", channel_created="2026-05-01T12:00:05.000+0000"),
        facts.OriginateRefused(reason="400 no such endpoint"),
        facts.EndRequested(reason="ended by an operator"),
        facts.DeadlinePassed(),
        facts.WorkerDied(),
        facts.LegsRemoved(),
        facts.RemovalPending(reason="connection refused"),
        facts.CallerFound(),
    )
}


def advance(call: Call, *happened: facts.Fact, now: datetime = NOW) -> tuple[Call, list[commands.Command]]:
    """Apply facts in turn; return the call and all the commands."""
    ordered: list[commands.Command] = []
    for fact in happened:
        call, more = transitions.advance(call, fact, now, LIMITS)
        ordered += more
    return call, ordered


def named(ordered: Iterable[commands.Command]) -> list[str]:
    """Return the commands' class names."""
    return [type(command).__name__ for command in ordered]
