"""The life of a call, whole: its states, what can happen to it, and what is to be done then.

    received → admitted → prepared → joining → connected → ending → ended
    originating → ringing ↗

`advance` is pure and total: any fact in any state, any number of times. A fact that no longer applies leaves the call
unchanged and orders nothing. What may happen in any order (legs created, media ready) are facts on the call, not
places in a line; whichever is stored last orders the join.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

from shared.call import commands, facts
from shared.call.limits import Limits, Step


class State(StrEnum):
    """Where a call is."""

    #: Our row is written, the originating request is being asked.
    ORIGINATING = "originating"
    #: Asterisk rings the far end.
    RINGING = "ringing"
    #: The caller's leg entered Stasis; tenant, route and quota are to be checked.
    RECEIVED = "received"
    #: Granted; its workflow run is to be created.
    ADMITTED = "admitted"
    #: The run exists; media leg and bridge are being made, or the leg is not ready yet.
    PREPARED = "prepared"
    #: The media leg is ready; caller and agent are being joined.
    JOINING = "joining"
    #: Both legs are in the bridge.
    CONNECTED = "connected"
    #: Over; legs, bridge and run are being ended.
    ENDING = "ending"
    #: Verified: nothing of it is left.
    ENDED = "ended"


class Direction(StrEnum):
    """Who started the call."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Outcome(StrEnum):
    """How a call came out."""

    #: It was connected, and ended in good order.
    COMPLETED = "completed"
    #: The caller left before an agent was on the line.
    ABANDONED = "abandoned"
    #: We would not serve it; the reason says why.
    REFUSED = "refused"
    #: Something of ours, of the agent's or of the Asterisk's failed.
    FAILED = "failed"
    #: The far end was busy.
    BUSY = "busy"
    #: The far end did not answer.
    NO_ANSWER = "no-answer"
    #: It was called off before an answer.
    CANCELED = "canceled"


class Cause(IntEnum):
    """The Q.850 hang-up causes that we give, or go by."""

    UNALLOCATED = 1
    NORMAL = 16
    BUSY = 17
    NO_RESPONSE = 18
    NO_ANSWER = 19
    REJECTED = 21
    NO_CIRCUIT = 34
    NETWORK_OUT_OF_ORDER = 38
    TEMPORARY_FAILURE = 41
    CONGESTION = 42
    NOT_ALLOWED = 57
    RECOVERY_ON_TIMER = 102


#: The states in which a call's legs are wanted.
LIVE = frozenset(State) - {State.ENDING, State.ENDED}

#: The live states in which a call takes up a slot of its organization's: from its admission on.
TAKES_SLOT = LIVE - {State.RECEIVED}
#: An ending call that was admitted keeps its slot until its legs are gone, but no longer than this.
ENDING_SLOT_SECONDS = 60

#: The state in which each step does its work; in any other it has nothing to do.
WORKS_IN: dict[Step, State] = {
    Step.ADMISSION: State.RECEIVED,
    Step.RUNS: State.ADMITTED,
    Step.MEDIA: State.PREPARED,
    Step.BRIDGE: State.JOINING,
    Step.TEARDOWN: State.ENDING,
    Step.ORIGINATE: State.ORIGINATING,
}
_STEP_OF = {state: step for step, state in WORKS_IN.items()}

#: A leg of ours has not been answered yet.
DIALLING = frozenset({State.ORIGINATING, State.RINGING})
#: Dialstatus → outcome, why, and the cause when Asterisk tells none.
_DIALLED: dict[str, tuple[Outcome, str, int]] = {
    "BUSY": (Outcome.BUSY, "busy", Cause.BUSY),
    "NOANSWER": (Outcome.NO_ANSWER, "not answered", Cause.NO_ANSWER),
    "CANCEL": (Outcome.NO_ANSWER, "not answered", Cause.NO_ANSWER),
    "CONGESTION": (Outcome.FAILED, "congestion", Cause.CONGESTION),
}
#: What Asterisk says of a leg that was dialled in vain.
UNANSWERED_STATUSES = frozenset({*_DIALLED, "CHANUNAVAIL"})
#: Of these the dialstatus alone tells how it came out: there may be no cause.
_TELLING_STATUSES = frozenset({"BUSY", "CONGESTION"})
#: Q.850 cause → outcome and why, when no dialstatus says it.
_UNANSWERED: dict[int, tuple[Outcome, str]] = {
    Cause.UNALLOCATED: (Outcome.FAILED, "unallocated number"),
    Cause.BUSY: (Outcome.BUSY, "busy"),
    Cause.NO_RESPONSE: (Outcome.NO_ANSWER, "not answered"),
    Cause.NO_ANSWER: (Outcome.NO_ANSWER, "not answered"),
    Cause.REJECTED: (Outcome.FAILED, "rejected"),
    Cause.NO_CIRCUIT: (Outcome.FAILED, "congestion"),
    Cause.CONGESTION: (Outcome.FAILED, "congestion"),
}


#: Stands for a caller's number that nobody told.
UNKNOWN_NUMBER = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: a row of ari.calls. All times are Postgres's."""

    call_id: UUID
    connection_id: int
    connection_version: int
    organization_id: int
    channel_id: str
    #: Asterisk's `creationtime` of the caller's leg: text, only ever compared for equality.
    channel_created: str
    #: How many times this channel has entered our app: 1, 2, …
    entry: int
    direction: Direction
    state: State
    received_at: datetime
    state_since: datetime
    deadline_at: datetime | None
    #: 0 as first written, raised by every write, claims included; a write names the version it read.
    lock_version: int = 0
    #: How often the sweep started this state's step again.
    step_retries: int = 0

    channel_name: str = ""
    caller_number: str = UNKNOWN_NUMBER
    called_number: str = ""
    args: tuple[str, ...] = ()
    #: Asterisk's timestamps of our leg entering and leaving Stasis: they tell a duplicate event from a new entry.
    entered_stamp: str | None = None
    left_stamp: str | None = None

    workflow_id: int | None = None
    user_id: int | None = None
    media_client: str | None = None
    workflow_run_id: int | None = None
    #: The connection's own bound on a connected call; None for the setting's.
    call_seconds: float | None = None
    #: A refused caller goes on in the dialplan instead of being hung up.
    continue_in_dialplan: bool = False

    #: Names the request to originate, once per connection; None for a leg that came to us.
    request_id: str | None = None
    #: What to dial for it, such as `PJSIP/4930123@trunk`, and for how long.
    dial_endpoint: str | None = None
    ring_seconds: float | None = None
    #: How the dialling came out (Dial events): BUSY, NOANSWER, …
    dial_status: str | None = None

    #: The last attempt committed; 0 before the first. Every attempt from 1 on may have left something behind.
    attempt: int = 0
    #: Until then a request of the last attempt may be on its way or take effect; None when its outcome is known.
    attempt_in_doubt_until: datetime | None = None
    #: The same for earlier requests, the originating one included, whose outcome stayed unknown.
    earlier_in_doubt_until: datetime | None = None
    legs_created: bool = False
    media_ready: bool = False

    #: The caller's leg left Stasis or is gone: it is not ours to touch.
    caller_left: bool = False
    connected_at: datetime | None = None
    ending_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    hangup_cause: int | None = None

    @property
    def is_unanswered(self) -> bool:
        """Whether it is a leg we originate that was not seen in Stasis yet: ours to hang up wherever it is."""
        return self.request_id is not None and not self.channel_created

    @property
    def in_doubt_until(self) -> datetime | None:
        """Until when a creating request may still make something of this call appear; None when none can."""
        return max(
            (t for t in (self.attempt_in_doubt_until, self.earlier_in_doubt_until) if t is not None), default=None
        )

    @property
    def talk_seconds(self) -> float:
        """From answered to ended; 0 for a call that was never connected."""
        if self.connected_at is None or self.ending_at is None:
            return 0.0
        return max(0.0, (self.ending_at - self.connected_at).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a fact made of a call."""

    before: Call
    after: Call
    fact: facts.Fact


Advance = tuple[Call, tuple[commands.Command, ...]]
_Handler = Callable[[Call, Any, datetime, Limits], Advance]


def receive(call: Call, limits: Limits) -> Call:
    """Gives a call that came to us its first deadline."""
    return replace(call, state=State.RECEIVED, deadline_at=call.received_at + limits.queue_wait())


def originate(call: Call, limits: Limits) -> tuple[Call, commands.Command]:
    """Gives a call we begin its first deadline, and its first order."""
    begun = replace(call, state=State.ORIGINATING, deadline_at=call.received_at + limits.queue_wait())
    return begun, commands.OriginateLeg(call_id=call.call_id)


def advance(call: Call, fact: facts.Fact, now: datetime, limits: Limits) -> Advance:
    """What becomes of a call when something happened to it.

    Args:
        call: As last read from the store.
        fact: What happened.
        now: Postgres's clock.
        limits: The bounds to live under.

    Returns:
        The call as it is to be stored, and the orders to give once it is. The very same call and no order when the
        fact no longer applies.
    """
    return _HANDLERS[type(fact)](call, fact, now, limits)


def _same(call: Call) -> Advance:
    return call, ()


def _enter(call: Call, state: State, now: datetime, wait: timedelta | None, **changes: Any) -> Call:
    deadline_at = None if wait is None else now + wait
    return replace(call, state=state, state_since=now, deadline_at=deadline_at, step_retries=0, **changes)


def _end(
    call: Call, now: datetime, limits: Limits, *, outcome: Outcome, reason: str, cause: int | None, **changes: Any
) -> Advance:
    """The one way into `ending`. What is known of outcome and cause already is kept."""
    if call.state is State.ORIGINATING:
        # A worker may be asking just now: what it asked for may appear after we looked.
        changes = {"earlier_in_doubt_until": now + limits.originate_wait()} | changes
    ending = _enter(
        call,
        State.ENDING,
        now,
        limits.queue_wait(),
        ending_at=now,
        outcome=call.outcome or outcome,
        reason=call.reason or reason,
        hangup_cause=call.hangup_cause if call.hangup_cause is not None else cause,
        **changes,
    )
    return ending, (commands.TearDown(call_id=call.call_id),)


def _fail(call: Call, now: datetime, limits: Limits, reason: str, cause: int = Cause.TEMPORARY_FAILURE) -> Advance:
    return _end(call, now, limits, outcome=Outcome.FAILED, reason=reason, cause=cause)


# ── admission and run ────────────────────────────────────────────────────────────────────────────────────────────────


def _admitted(call: Call, fact: facts.Admitted, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.RECEIVED:
        return _same(call)
    admitted = _enter(
        call,
        State.ADMITTED,
        now,
        limits.queue_wait(),
        workflow_id=fact.workflow_id,
        user_id=fact.user_id,
        media_client=fact.media_client,
        call_seconds=fact.call_seconds,
    )
    return admitted, (commands.CreateRun(call_id=call.call_id),)


def _run_attached(call: Call, fact: facts.RunAttached, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.RECEIVED:
        return _same(call)
    taken = replace(
        call,
        workflow_id=fact.workflow_id,
        user_id=fact.user_id,
        media_client=fact.media_client,
        call_seconds=fact.call_seconds,
        workflow_run_id=fact.workflow_run_id,
    )
    return _prepare(taken, now, limits)


def _refused(call: Call, fact: facts.Refused, now: datetime, limits: Limits) -> Advance:
    if call.state not in (State.RECEIVED, State.ADMITTED, State.ORIGINATING):
        return _same(call)
    refused = replace(call, continue_in_dialplan=fact.continue_in_dialplan)
    # There is no leg, and none will appear: nothing to wait for, and the slot is free with the next teardown.
    unasked = {"caller_left": True, "earlier_in_doubt_until": None} if _is_unasked(call) else {}
    return _end(refused, now, limits, outcome=Outcome.REFUSED, reason=fact.reason, cause=fact.hangup_cause, **unasked)


def _is_unasked(call: Call) -> bool:
    """Whether its far end was asked for by nobody but, at most, by whoever reports now.

    Whoever asks claims the call before, and the sweep writes it before somebody else may: one write is one claim.
    """
    return call.state is State.ORIGINATING and call.lock_version <= 1


def _run_created(call: Call, fact: facts.RunCreated, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.ADMITTED:
        return _same(call)
    return _prepare(replace(call, workflow_run_id=fact.workflow_run_id), now, limits)


def _prepare(call: Call, now: datetime, limits: Limits) -> Advance:
    prepared = _enter(call, State.PREPARED, now, limits.queue_wait())
    return prepared, (commands.StartMedia(call_id=call.call_id, attempt=call.attempt + 1),)


# ── media ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _attempt_begun(call: Call, fact: facts.AttemptBegun, now: datetime, limits: Limits) -> Advance:
    is_next = fact.attempt == call.attempt + 1 and fact.attempt <= limits.attempts
    if call.state is not State.PREPARED or not is_next or call.legs_created:
        return _same(call)
    # Still open here means that a worker died over the attempt before: whatever it asked may yet take effect.
    begun = replace(
        call,
        attempt=fact.attempt,
        earlier_in_doubt_until=call.in_doubt_until,
        attempt_in_doubt_until=fact.in_doubt_until,
        legs_created=False,
        media_ready=False,
        step_retries=0,
        deadline_at=now + limits.attempt_wait(),
    )
    return begun, ()


def _legs_created(call: Call, fact: facts.LegsCreated, now: datetime, limits: Limits) -> Advance:
    if fact.attempt != call.attempt:
        return call, (commands.RemoveAttempt(call_id=call.call_id, attempt=fact.attempt),)
    # The first attempt's outcome was all that could be unknown.
    unsettled = None if fact.attempt == 1 else call.earlier_in_doubt_until
    settled = replace(call, legs_created=True, attempt_in_doubt_until=None, earlier_in_doubt_until=unsettled)
    match call.state:
        case State.PREPARED if call.media_ready:
            return _join(settled, now, limits)
        case State.PREPARED if not call.legs_created:
            return replace(settled, step_retries=0, deadline_at=now + limits.media_wait()), ()
        case State.ENDING if not call.legs_created:
            return settled, (commands.TearDown(call_id=call.call_id),)
        case State.ENDED:
            return call, (commands.RemoveAttempt(call_id=call.call_id, attempt=fact.attempt),)
    return _same(call)


def _legs_refused(call: Call, fact: facts.LegsRefused, now: datetime, limits: Limits) -> Advance:
    if fact.attempt != call.attempt or call.legs_created:
        return _same(call)
    settled = replace(call, attempt_in_doubt_until=None)
    if call.state is State.PREPARED:
        return _fail(settled, now, limits, f"media refused: {fact.reason}")
    if call.state is State.ENDING and call.attempt_in_doubt_until is not None:
        return settled, (commands.TearDown(call_id=call.call_id),)
    return _same(call)


def _legs_unknown(call: Call, fact: facts.LegsUnknown, now: datetime, limits: Limits) -> Advance:
    is_open = call.attempt_in_doubt_until is not None
    if call.state is not State.PREPARED or fact.attempt != call.attempt or call.legs_created or not is_open:
        return _same(call)
    return _next_attempt(call, now, limits, fact.reason)


def _next_attempt(call: Call, now: datetime, limits: Limits, reason: str) -> Advance:
    """An attempt came to nothing that we know of: the next id, never the same one again."""
    if call.attempt >= limits.attempts:
        return _fail(call, now, limits, f"media not created: {reason}")
    # Nobody is at work on it any more: what is overdue from here on is the next one's order, and that is counted.
    again = replace(
        call,
        earlier_in_doubt_until=call.in_doubt_until,
        attempt_in_doubt_until=None,
        step_retries=0,
        deadline_at=now + limits.queue_wait(),
    )
    return again, (commands.StartMedia(call_id=call.call_id, attempt=call.attempt + 1),)


def _media_ready(call: Call, fact: facts.MediaReady, now: datetime, limits: Limits) -> Advance:
    if fact.attempt != call.attempt or call.state in (State.ENDING, State.ENDED):
        # A leg of another attempt or of an ended call is removed on sight.
        return call, (commands.RemoveAttempt(call_id=call.call_id, attempt=fact.attempt),)
    if call.media_ready or call.state is not State.PREPARED:
        return _same(call)
    ready = replace(call, media_ready=True)
    return _join(ready, now, limits) if call.legs_created else (ready, ())


def _media_gone(call: Call, fact: facts.MediaGone, now: datetime, limits: Limits) -> Advance:
    if fact.attempt != call.attempt:
        return _same(call)
    match call.state:
        case State.PREPARED if not fact.reported_by_event and call.legs_created and call.attempt < limits.attempts:
            # It says nothing of the agent, and costs the caller no more than a wait.
            unmade = replace(call, legs_created=False, media_ready=False)
            return _next_attempt(unmade, now, limits, fact.reason)
        case State.PREPARED | State.JOINING:
            return _fail(call, now, limits, f"voice agent not reached: {fact.reason}")
        case State.CONNECTED:
            return _end(call, now, limits, outcome=Outcome.COMPLETED, reason="agent hung up", cause=Cause.NORMAL)
    return _same(call)


# ── joining ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _join(call: Call, now: datetime, limits: Limits) -> Advance:
    joining = _enter(call, State.JOINING, now, limits.queue_wait())
    return joining, (commands.JoinLegs(call_id=call.call_id, attempt=call.attempt),)


def _joined(call: Call, fact: facts.Joined, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.JOINING or fact.attempt != call.attempt:
        return _same(call)
    longest = timedelta(seconds=call.call_seconds or limits.call_seconds)
    return _enter(call, State.CONNECTED, now, longest, connected_at=now), ()


def _join_refused(call: Call, fact: facts.JoinRefused, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.JOINING or fact.attempt != call.attempt:
        return _same(call)
    return _fail(call, now, limits, f"legs not joined: {fact.reason}")


def _bridge_lost(call: Call, fact: facts.BridgeLost, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.CONNECTED or fact.attempt != call.attempt:
        return _same(call)
    return _end(call, now, limits, outcome=Outcome.FAILED, reason=f"bridge lost: {fact.reason}", cause=Cause.NORMAL)


# ── the caller's leg ─────────────────────────────────────────────────────────────────────────────────────────────────


def _caller_hanging_up(call: Call, fact: facts.CallerHangingUp, now: datetime, limits: Limits) -> Advance:
    if call.state in DIALLING:
        # Its ChannelDestroyed follows; only that is the end of a leg that was not answered.
        known = call.hangup_cause or fact.hangup_cause
        return (call if known == call.hangup_cause else replace(call, hangup_cause=known)), ()
    return _caller_ended(call, now, limits, cause=fact.hangup_cause, left=False)


def _caller_left(call: Call, fact: facts.CallerLeft, now: datetime, limits: Limits) -> Advance:
    stamped = replace(call, left_stamp=call.left_stamp or fact.stamp)
    return _caller_ended(stamped, now, limits, cause=None, left=True)


def _caller_gone(call: Call, fact: facts.CallerGone, now: datetime, limits: Limits) -> Advance:
    if call.state in DIALLING:
        outcome, reason, cause = unanswered(call.dial_status, fact.hangup_cause or call.hangup_cause)
        settled = replace(call, hangup_cause=cause)
        return _end(settled, now, limits, outcome=outcome, reason=reason, cause=cause, caller_left=True,
                    earlier_in_doubt_until=None)  # fmt: skip
    return _caller_ended(call, now, limits, cause=fact.hangup_cause, left=True)


def _caller_ended(call: Call, now: datetime, limits: Limits, *, cause: int | None, left: bool) -> Advance:
    left = left or call.caller_left
    if call.state in LIVE:
        if call.connected_at is not None:
            outcome, reason = Outcome.COMPLETED, "caller hung up"
        elif call.direction is Direction.INBOUND:
            outcome, reason = Outcome.ABANDONED, "caller hung up before an agent was on the line"
        else:
            outcome, reason = Outcome.CANCELED, "far end hung up before an agent was on the line"
        return _end(call, now, limits, outcome=outcome, reason=reason, cause=cause, caller_left=left)
    # A second report may still know the cause, or that the leg is no longer ours.
    known = call.hangup_cause if call.hangup_cause is not None else cause
    return (call if (left, known) == (call.caller_left, call.hangup_cause) else
            replace(call, caller_left=left, hangup_cause=known)), ()  # fmt: skip


# ── legs that we originate ───────────────────────────────────────────────────────────────────────────────────────────


def _may_appear(call: Call) -> bool:
    """Whether a leg that we asked for may ring, or be answered, though the call is over."""
    return call.is_unanswered and not call.caller_left


def _originated(call: Call, _fact: facts.Originated, now: datetime, limits: Limits) -> Advance:
    match call.state:
        case State.ORIGINATING:
            return _enter(call, State.RINGING, now, limits.ring_wait(call.ring_seconds)), ()
        case State.ENDING if _may_appear(call):
            # Called off while it was being asked for: it rings, and nobody wants it.
            return replace(call, earlier_in_doubt_until=None), (commands.TearDown(call_id=call.call_id),)
    return _same(call)


def _dialled(call: Call, fact: facts.Dialled, _now: datetime, _limits: Limits) -> Advance:
    if call.state not in DIALLING or call.dial_status == fact.status:
        return _same(call)
    return replace(call, dial_status=fact.status), ()


def _far_end_answered(call: Call, fact: facts.FarEndAnswered, now: datetime, limits: Limits) -> Advance:
    if call.state is State.ENDING and _may_appear(call):
        # It appeared after the teardown had looked: somebody is on the line, and hears nothing.
        return call, (commands.TearDown(call_id=call.call_id),)
    if call.state not in DIALLING:
        return _same(call)
    answered = replace(
        call, channel_name=fact.channel_name, channel_created=fact.channel_created, entered_stamp=fact.stamp
    )
    return _prepare(answered, now, limits)


def is_conclusive(dial_status: str | None, cause: int | None) -> bool:
    """Whether these say how the dialling of a leg came out, so that nothing more has to be waited for."""
    return dial_status in _TELLING_STATUSES or cause in _UNANSWERED


def _originate_refused(call: Call, fact: facts.OriginateRefused, now: datetime, limits: Limits) -> Advance:
    match call.state:
        case State.ORIGINATING:
            reason = f"not originated: {fact.reason}"
            return _end(call, now, limits, outcome=Outcome.FAILED, reason=reason, cause=Cause.UNALLOCATED,
                        caller_left=True, earlier_in_doubt_until=None)  # fmt: skip
        case State.ENDING if _may_appear(call):
            # Called off while it was being asked for: there is nothing to wait for.
            settled = replace(call, caller_left=True, earlier_in_doubt_until=None)
            return settled, (commands.TearDown(call_id=call.call_id),)
    return _same(call)


def unanswered(dial_status: str | None, cause: int | None) -> tuple[Outcome, str, int | None]:
    """How the dialling of a leg that was not answered came out, why in words, and the hang-up cause.

    Asterisk's dialstatus first, the cause second: the cause was 0 for busy and for congestion over Local channels
    (measured, 22.10).
    """
    known = _DIALLED.get(dial_status or "")
    # Asterisk says NOANSWER of a leg that was rejected, too (measured, 22.10): there the cause knows more.
    if known is not None and not (dial_status == "NOANSWER" and cause in (Cause.REJECTED, Cause.UNALLOCATED)):
        outcome, reason, usual = known
        return outcome, reason, cause or usual
    otherwise = (Outcome.FAILED, f"not reached, cause {cause}" if cause else "not reached")
    outcome, reason = _UNANSWERED.get(cause or 0, otherwise)
    return outcome, reason, cause or None


# ── deadlines and the end ────────────────────────────────────────────────────────────────────────────────────────────


def _end_requested(call: Call, fact: facts.EndRequested, now: datetime, limits: Limits) -> Advance:
    if call.state not in LIVE:
        return _same(call)
    outcome = Outcome.COMPLETED if call.connected_at is not None else Outcome.CANCELED
    return _end(call, now, limits, outcome=outcome, reason=fact.reason, cause=Cause.NORMAL)


def _deadline_passed(call: Call, _fact: facts.DeadlinePassed, now: datetime, limits: Limits) -> Advance:
    if call.deadline_at is None or now < call.deadline_at:
        return _same(call)
    return _OVERDUE[call.state](call, now, limits)


def _longest_call(call: Call, now: datetime, limits: Limits) -> Advance:
    return _end(call, now, limits, outcome=Outcome.COMPLETED, reason="longest call time reached", cause=Cause.NORMAL)


def _rang_too_long(call: Call, now: datetime, limits: Limits) -> Advance:
    return _end(call, now, limits, outcome=Outcome.NO_ANSWER, reason="not answered in time", cause=Cause.NO_ANSWER)


def _preparation_overdue(call: Call, now: datetime, limits: Limits) -> Advance:
    if call.legs_created:
        return _media_overdue(call, now, limits)
    if call.attempt_in_doubt_until is not None:
        return _next_attempt(call, now, limits, "the worker did not report back")
    return _retry_step(call, now, limits)


def _teardown_overdue(call: Call, now: datetime, limits: Limits) -> Advance:
    wait = max(limits.queue_wait(), limits.teardown_pause(call.step_retries))
    again = replace(call, step_retries=call.step_retries + 1, deadline_at=now + wait)
    return again, (commands.TearDown(call_id=call.call_id),)


def _media_overdue(call: Call, now: datetime, limits: Limits) -> Advance:
    if call.step_retries >= limits.media_checks:
        return _fail(call, now, limits, "voice agent not reached: media leg not ready in time")
    waiting = replace(call, step_retries=call.step_retries + 1, deadline_at=now + limits.media_wait())
    return waiting, (commands.CheckMedia(call_id=call.call_id, attempt=call.attempt),)


def _retry_step(call: Call, now: datetime, limits: Limits) -> Advance:
    """The step of this state was lost: order it once more, or give up."""
    if call.step_retries >= limits.max_step_retries:
        return _fail(call, now, limits, f"{call.state} for too long", Cause.RECOVERY_ON_TIMER)
    step = _STEP_OF[call.state]
    again = replace(call, step_retries=call.step_retries + 1, deadline_at=now + limits.queue_wait())
    return again, (_order(call, step),)


def _order(call: Call, step: Step) -> commands.Command:
    match step:
        case Step.ADMISSION:
            return commands.DecideAdmission(call_id=call.call_id)
        case Step.RUNS:
            return commands.CreateRun(call_id=call.call_id)
        case Step.MEDIA:
            return commands.StartMedia(call_id=call.call_id, attempt=call.attempt + 1)
        case Step.BRIDGE:
            return commands.JoinLegs(call_id=call.call_id, attempt=call.attempt)
        case Step.TEARDOWN:
            return commands.TearDown(call_id=call.call_id)
        case Step.ORIGINATE:
            return commands.OriginateLeg(call_id=call.call_id)


def _removal_pending(call: Call, fact: facts.RemovalPending, now: datetime, limits: Limits) -> Advance:
    if call.state is not State.ENDING:
        return _same(call)
    retry_at = now + limits.teardown_pause(call.step_retries)
    if fact.not_before is not None and call.in_doubt_until is not None:
        # Settled meanwhile, it is no longer waited for.
        retry_at = max(retry_at, min(fact.not_before, call.in_doubt_until))
    return replace(call, step_retries=call.step_retries + 1, deadline_at=retry_at), ()


def _legs_removed(call: Call, _fact: facts.LegsRemoved, now: datetime, _limits: Limits) -> Advance:
    still_open = call.in_doubt_until is not None and now < call.in_doubt_until
    if call.state is not State.ENDING or still_open:
        return _same(call)
    return _enter(call, State.ENDED, now, None, ended_at=now), ()


_OVERDUE: dict[State, Callable[[Call, datetime, Limits], Advance]] = {
    State.ORIGINATING: _retry_step,
    State.RINGING: _rang_too_long,
    State.RECEIVED: _retry_step,
    State.ADMITTED: _retry_step,
    State.PREPARED: _preparation_overdue,
    State.JOINING: _retry_step,
    State.CONNECTED: _longest_call,
    State.ENDING: _teardown_overdue,
    State.ENDED: lambda call, _now, _limits: _same(call),
}

_HANDLERS: dict[type[facts.Fact], _Handler] = {
    facts.Admitted: _admitted,
    facts.RunAttached: _run_attached,
    facts.Refused: _refused,
    facts.RunCreated: _run_created,
    facts.AttemptBegun: _attempt_begun,
    facts.LegsCreated: _legs_created,
    facts.LegsRefused: _legs_refused,
    facts.LegsUnknown: _legs_unknown,
    facts.MediaReady: _media_ready,
    facts.MediaGone: _media_gone,
    facts.Joined: _joined,
    facts.JoinRefused: _join_refused,
    facts.BridgeLost: _bridge_lost,
    facts.CallerHangingUp: _caller_hanging_up,
    facts.CallerLeft: _caller_left,
    facts.CallerGone: _caller_gone,
    facts.Originated: _originated,
    facts.Dialled: _dialled,
    facts.FarEndAnswered: _far_end_answered,
    facts.OriginateRefused: _originate_refused,
    facts.EndRequested: _end_requested,
    facts.DeadlinePassed: _deadline_passed,
    facts.LegsRemoved: _legs_removed,
    facts.RemovalPending: _removal_pending,
}
