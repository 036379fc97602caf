"""The step `quota`: a caller's leg becomes a call, and is admitted or refused by tenant, route, quota and slots."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import structlog

from shared import errors
from shared.asterisk import events
from shared.call import calls, facts, stasis_args, stasis_entry
from shared.call.calls import Call, Cause, Direction, State
from shared.call.limits import Step
from shared.platform.ports import NoRoute, Route
from shared.storage import connections
from shared.storage.call_store import TimelineEntry
from shared.storage.call_writer import CallWriter, UnitOfWork
from workers import claims, media, runs
from workers.ports import Tools

log = structlog.stdlib.get_logger(__name__)

#: States of a leg with somebody on it: answered, or one that rings here and is answered by us.
_ANSWERABLE = frozenset({"Up", "Ring"})
#: Channels that are no callers: other controllers' media, recordings, snoops. By the name of their technology.
_NO_CALLERS = (
    "WebSocket/", "AudioSocket/", "UnicastRTP/", "Snoop/", "Announcer/", "Recorder/", "CBAnn/", "ConfBridgeRecorder/",
    "Surrogate/",
)  # fmt: skip


def caller_entered(tools: Tools, *, connection_id: int, version: int, at_ms: int, event: events.Event) -> None:
    """A caller's leg entered our app: its StasisStart."""
    if event.replaces is not None:
        detail = f"channel {event.leg.id} took the place of {event.replaces}"
        tools.writer.store.append_timeline(
            [TimelineEntry(kind="note", name="ChannelReplaced", detail=detail)], connection_id=connection_id
        )
        return
    if is_no_caller(event.leg):
        detail = f"channel {event.leg.id} ({event.leg.name}) is no caller and not ours: left alone"
        tools.writer.store.append_timeline(
            [TimelineEntry(kind="note", name="ForeignMedia", detail=detail)], connection_id=connection_id
        )
        return
    now_ms = tools.redis_ms()
    age_seconds = max(0.0, (now_ms - at_ms) / 1000) if now_ms is not None else 0.0
    admit_leg(
        tools,
        connection_id=connection_id,
        version=version,
        leg=event.leg,
        args=event.args,
        stamp=event.stamp,
        age_seconds=age_seconds,
    )


def is_no_caller(leg: events.Channel) -> bool:
    """Whether a leg is another controller's media: whoever made it serves it."""
    return leg.name.startswith(_NO_CALLERS)


def admit_leg(
    tools: Tools,
    *,
    connection_id: int,
    version: int,
    leg: events.Channel,
    args: tuple[str, ...],
    stamp: str,
    age_seconds: float,
) -> None:
    """Makes a call of a leg that is in Stasis, by its event or as a resync found it; once, however often told.

    Args:
        stamp: Of the StasisStart; empty when a resync found it.
        age_seconds: How long ago the event was read.
    """
    target = tools.connections.inbound_target(connection_id, version)
    if target is None:
        log.warning("a leg of a connection we do not know", connection=connection_id, version=version)
        return
    call = _new_call(
        tools.writer, target, connection_id=connection_id, version=version, leg=leg, args=args, stamp=stamp
    )
    # Nearly every leg is a new one: only one that cannot be written is looked for.
    if _received(tools, call, target, age_seconds):
        return
    last = tools.writer.store.last_entry(connection_id, leg.id, leg.created)
    assert last is not None, "it was there just now, and is never deleted so soon"
    match stasis_entry.judge(last, stamp):
        case stasis_entry.Entry.KNOWN:
            if last.state is State.RECEIVED:
                # Told again because the decision broke off; in somebody's hands, it is left to them.
                decide_admission(tools, call_id=last.call_id)
            _end_missed_run(tools, last, args)
            return
        case stasis_entry.Entry.MISSED_STASIS_END:
            tools.writer.record(last, facts.CallerLeft(stamp=stamp))
        case stasis_entry.Entry.NEW if not is_in_stasis(tools, connection_id, version, leg):
            return
    again = replace(call, call_id=tools.writer.new_id(), entry=last.entry + 1)
    if not _received(tools, again, target, age_seconds):
        _end_missed_run(tools, tools.writer.store.last_entry(connection_id, leg.id, leg.created), args)


def _received(tools: Tools, call: Call, target: connections.InboundTarget, age_seconds: float) -> bool:
    """Writes a new call and decides on its admission; False when the channel has a call of this entry already."""
    call = calls.receive(call, tools.writer.limits)
    started, owner = tools.writer.clock.monotonic(), tools.writer.owner()
    if not tools.writer.store.insert(call, [], tools.writer.hold(Step.ADMISSION, owner)):
        return False
    with claims.Claim(tools.writer, call, Step.ADMISSION, owner, started) as claim:
        _decide(tools, claim, target, age_seconds)
    return True


def _end_missed_run(tools: Tools, known: Call | None, args: tuple[str, ...]) -> None:
    """Ends the run of a leg that the platform originated, whose end was told before its start: only this names it."""
    if known is not None and known.outcome is calls.Outcome.ABANDONED and stasis_args.names_run(args):
        named = replace(known, direction=Direction.OUTBOUND, args=args)
        tools.runs.end(named, media_id=tools.media_id(named), bridge_id=tools.bridge_id(named))


def decide_admission(tools: Tools, *, call_id: UUID) -> None:
    """The decision once more, for a call whose first one was lost."""
    claim = claims.claim(tools.writer, call_id, Step.ADMISSION)
    if claim is None:
        return
    with claim:
        call = claim.call
        target = tools.connections.inbound_target(call.connection_id, call.connection_version)
        assert target is not None, "a call's connection version is never deleted"
        _decide(tools, claim, target, 0.0)


def _decide(tools: Tools, claim: claims.Claim, target: connections.InboundTarget, age_seconds: float) -> None:
    call = claim.call
    if target.serving is None:
        claim.record(facts.Refused(reason=target.reason, hangup_cause=Cause.CONGESTION))
    elif call.direction is Direction.OUTBOUND:
        _take_over(tools, claim, target)
    else:
        route = tools.routes.inbound(source_id=target.source_id, organization_id=target.organization_id)
        refused = _refusal(tools, claim, route, age_seconds)
        if refused is not None:
            claim.record(replace(refused, continue_in_dialplan=route.continue_in_dialplan))
            return
        assert isinstance(route, Route)
        _admit(tools, claim, route)


def _admit(tools: Tools, claim: claims.Claim, route: Route) -> None:
    """Admits the call if it has a slot, and goes on as far as this worker may: to its run, and to its media."""
    admitted = facts.Admitted(
        workflow_id=route.workflow_id,
        user_id=route.user_id,
        media_client=route.settings.media_client,
        call_seconds=route.settings.call_seconds,
    )
    slots = tools.slots(claim.call.organization_id)

    def decide(decision: UnitOfWork) -> None:
        no_free_slot = tools.writer.no_free_slot(decision, slots)
        if no_free_slot is not None:
            decision.learn(replace(no_free_slot, continue_in_dialplan=route.continue_in_dialplan))
            return
        decision.learn(admitted)
        if Step.RUNS in tools.serves:
            runs.add_run(tools, decision)

    media.decide_and_begin(tools, claim, decide)


def _refusal(tools: Tools, claim: claims.Claim, route: Route | NoRoute, age_seconds: float) -> facts.Refused | None:
    """Why an inbound call may not be served, slots aside; None when it may."""
    if age_seconds > tools.writer.limits.stale_start_seconds:
        return facts.Refused(reason=f"picked up {age_seconds:.1f} s late", hangup_cause=Cause.CONGESTION)
    if isinstance(route, NoRoute):
        return facts.Refused(reason=route.reason, hangup_cause=route.hangup_cause)
    return tools.quota.refusal(claim.call, user_id=route.user_id, budget=claim)


def _take_over(tools: Tools, claim: claims.Claim, target: connections.InboundTarget) -> None:
    """A leg that the platform originated: it has passed the platform's own quota, and is for a run that waits."""
    fact = _not_to_be_taken(tools, claim)
    if fact is not None:
        claim.record(fact)
        return

    def decide(decision: UnitOfWork) -> None:
        args = stasis_args.read(decision.call.args)
        route = tools.runs.attach(decision.connection, decision.call, args, source_id=target.source_id)
        if isinstance(route, NoRoute):
            decision.learn(
                facts.Refused(
                    reason=route.reason,
                    hangup_cause=route.hangup_cause,
                    continue_in_dialplan=route.continue_in_dialplan,
                )
            )
            return
        decision.learn(
            facts.RunAttached(
                workflow_id=route.workflow_id,
                user_id=route.user_id,
                media_client=route.settings.media_client,
                call_seconds=route.settings.call_seconds,
                workflow_run_id=args.workflow_run_id,
            )
        )

    media.decide_and_begin(tools, claim, decide)


def _not_to_be_taken(tools: Tools, claim: claims.Claim) -> facts.Fact | None:
    """Why the leg is not to be taken over, by itself; None when it may be."""
    call = claim.call
    try:
        stasis_args.read(call.args)
    except errors.InvalidStasisArgs as exc:
        return facts.Refused(reason=str(exc), hangup_cause=Cause.NOT_ALLOWED)
    asterisk = tools.asterisks.of(call, claim)
    leg = asterisk.channel(call.channel_id)
    if leg is None or leg.created != call.channel_created:
        return facts.CallerGone()
    if leg.stasis_app != asterisk.app:
        return facts.CallerLeft()
    if leg.state not in _ANSWERABLE:
        # Ringing and early media are no answer: the agent would talk to nobody.
        return facts.Refused(reason=f"the far end has not answered: {leg.state}", hangup_cause=Cause.NOT_ALLOWED)
    return None


def is_in_stasis(tools: Tools, connection_id: int, version: int, leg: events.Channel) -> bool:
    """Asks Asterisk whether a leg is in our app now: where stamps cannot tell a new entry from a late event."""
    budget = claims.TimedBudget(tools.writer, tools.writer.limits.request_seconds)
    asterisk = tools.asterisks.at(connection_id, version, budget)
    found = asterisk.channel(leg.id)
    return found is not None and found.created == leg.created and found.stasis_app == asterisk.app


def _new_call(
    writer: CallWriter,
    target: connections.InboundTarget,
    *,
    connection_id: int,
    version: int,
    leg: events.Channel,
    args: tuple[str, ...],
    stamp: str,
) -> Call:
    serving, now = target.serving, writer.store.now()
    return Call(
        # Never the same twice, also when a restored database has forgotten a call: the ids of its legs derive from it,
        # and asking for a media leg under the id of a live one crashes Asterisk.
        call_id=writer.new_id(),
        connection_id=connection_id,
        connection_version=serving if serving is not None else version,
        organization_id=target.organization_id,
        channel_id=leg.id,
        channel_created=leg.created,
        entry=1,
        direction=Direction.OUTBOUND if stasis_args.names_run(args) else Direction.INBOUND,
        state=calls.State.RECEIVED,
        received_at=now,
        state_since=now,
        deadline_at=None,
        channel_name=leg.name,
        caller_number=leg.caller_number or calls.UNKNOWN_NUMBER,
        called_number=leg.called_number,
        args=args,
        entered_stamp=stamp or None,
    )


def record_abandoned(tools: Tools, *, connection_id: int, version: int, event: events.Event) -> Call | None:
    """A leg we never heard of left Stasis: recorded as an abandoned call, so that its late StasisStart finds it.

    Returns:
        The call when its start came in between after all; None when all is done.
    """
    target = tools.connections.inbound_target(connection_id, version)
    if target is None:
        return None
    call = replace(
        _over(tools, target, connection_id=connection_id, version=version, leg=event.leg),
        left_stamp=event.stamp or None,
        outcome=calls.Outcome.ABANDONED,
        reason="caller hung up before the call was picked up",
    )
    if tools.writer.store.insert(call, [], None):
        return None
    return tools.writer.store.last_entry(connection_id, event.leg.id, event.leg.created)


def record_unanswered(tools: Tools, *, connection_id: int, version: int, event: events.Event) -> bool:
    """A leg that the platform originated was not answered, so it never entered Stasis: its run is ended.

    Returns:
        False when no run waits for such a leg: it is none of the platform's, or the platform has not written yet
        under which channel it called.
    """
    target = tools.connections.inbound_target(connection_id, version)
    if target is None:
        return False
    outcome, reason, cause = calls.unanswered(event.dial_status or None, event.cause)
    over = replace(
        _over(tools, target, connection_id=connection_id, version=version, leg=event.leg),
        direction=Direction.OUTBOUND,
        outcome=outcome,
        reason=reason,
        hangup_cause=cause,
    )
    with tools.writer.store.transaction() as connection:
        run_id = tools.runs.waiting(connection, organization_id=target.organization_id, channel_id=event.leg.id)
        if run_id is None:
            return False
        call = replace(over, workflow_run_id=run_id)
        if tools.writer.store.insert_in(connection, call):
            tools.runs.end_in(connection, call, {})
    return True


def _over(
    tools: Tools, target: connections.InboundTarget, *, connection_id: int, version: int, leg: events.Channel
) -> Call:
    """A call that was over before it was heard of."""
    call = _new_call(tools.writer, target, connection_id=connection_id, version=version, leg=leg, args=(), stamp="")
    return replace(call, state=State.ENDED, caller_left=True, ending_at=call.received_at, ended_at=call.received_at)
