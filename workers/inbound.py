"""Callers: a leg that entered Stasis becomes a call, once, however often it is reported; then its admission runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

import structlog

from shared import errors
from shared.asterisk import events
from shared.call import calls, facts, faults, stasis_args, stasis_entry, transitions
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.states import Cause, Direction, Outcome, State
from shared.call.steps import Step
from shared.platform.ports import NO_PLATFORM_SLOTS, PlatformSlots, Runs
from shared.process import metrics
from shared.storage.call_writer import CallWriter
from shared.storage.connections import InboundTarget
from shared.storage.timeline import TOO_MANY_CALLS, TimelineEntry
from workers.asterisks import Asterisks
from workers.call_allowance import CallAllowance
from workers.claims import Arrival, TimedBudget
from workers.flow import Flow
from workers.step_ports import Connections, Lookup
from workers.transfer_legs import TransferLegs

log = structlog.stdlib.get_logger(__name__)

#: Channels that are no callers: media of other controllers, recordings, snoops. By the name of their technology.
_NO_CALLERS = (
    "WebSocket/", "AudioSocket/", "UnicastRTP/", "Snoop/", "Announcer/", "Recorder/", "CBAnn/", "ConfBridgeRecorder/",
    "Surrogate/",
)  # fmt: skip


def is_over_unreceived(call: Call) -> bool:
    """True for a call that was over when it was written: a channel in its leg's place is a caller itself."""
    return call.outcome is Outcome.ABANDONED and call.ended_at == call.received_at


def is_no_caller(leg: events.Channel) -> bool:
    """True for a leg that is another controller's media: that controller serves it."""
    return leg.name.startswith(_NO_CALLERS)


#: The name of the note for a leg that another program is to dial.
_OUTGOING = "OutgoingLeg"
#: So long a leg that was left alone is remembered.
_REMEMBERED = timedelta(days=1)
#: A caller whose event has waited longer may have hung up: Asterisk is asked before anything is begun.
_ASKED_AFTER_SECONDS = 2.0


def outgoing_leg(leg: events.Channel) -> TimelineEntry:
    """Return the note that a leg which goes out, and was not answered when it was seen, is left alone."""
    detail = f"channel {leg.id} of {leg.created} goes out, for another program to dial: left alone"
    return TimelineEntry(kind="note", name=_OUTGOING, detail=detail)


def _over(call: Call) -> Call:
    """Return a call as it is written when its leg is gone."""
    return replace(call, state=State.ENDED, caller_left=True, ending_at=call.received_at, ended_at=call.received_at)


def _abandoned(call: Call, obstacle: str = "") -> Call:
    """Return a call whose caller has hung up before it was received, and what it has waited for."""
    hung_up = "caller hung up before the call was received"
    reason = f"caller hung up before the call was received: {obstacle}" if obstacle else hung_up
    outcome = Outcome.ABANDONED
    return replace(_over(call), outcome=outcome, reason=reason, fault=faults.fault_of(outcome, reason))


@dataclass(frozen=True, kw_only=True)
class Inbound:
    """Receives callers.

    Args:
        allowance: The calls that a connection may still have: a leg above it is refused without one.
        age_ms: Returns how long ago a moment of Redis's clock was, in ms; 0 when unknown.
        assumes: Where a caller goes may be assumed: the admission is quick, and checks it.
    """

    flow: Flow
    writer: CallWriter
    connections: Connections
    lookup: Lookup
    asterisks: Asterisks
    runs: Runs
    naming: Naming
    allowance: CallAllowance
    age_ms: Callable[[int], float]
    transfer_legs: TransferLegs
    platform_slots: PlatformSlots = NO_PLATFORM_SLOTS
    assumes: bool = False

    # ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def caller_entered(self, *, connection: ConnectionVersion, at_ms: int, event: events.Event) -> None:
        """A caller's leg entered the app: its StasisStart."""
        if event.replaces is not None:
            detail = f"channel {event.leg.id} took the place of {event.replaces}, which is of no call: left alone"
            self._note(connection, "ChannelReplaced", detail)
            return
        if is_no_caller(event.leg):
            detail = f"channel {event.leg.id} ({event.leg.name}) is another controller's media: left alone"
            self._note(connection, "ForeignMedia", detail)
            return
        if stasis_args.is_transfer(event.args):
            self.transfer_legs.entered(connection=connection, event=event)
            return
        if event.leg.is_unanswered and not stasis_args.names_run(event.args):
            # `POST /channels/create` puts it into Stasis, to be dialled later. We would answer it, or hang it up.
            self.writer.store.append_timeline([outgoing_leg(event.leg)], connection_id=connection.connection_id)
            return
        waited_seconds = self.age_ms(at_ms) / 1000
        self.receive(
            connection=connection, leg=event.leg, args=event.args, stamp=event.stamp, waited_seconds=waited_seconds
        )

    def successor_entered(self, over: Call, *, connection: ConnectionVersion, at_ms: int, event: events.Event) -> None:
        """A channel has taken the place of a caller who was found gone, and is that caller: with the number called.

        From the masquerade on it shows the creation time of the one before (measured), also at its end.
        """
        leg = replace(
            event.leg,
            created=over.channel_created,
            caller_number=over.caller_number,
            called_number=over.called_number,
        )
        waited_seconds = self.age_ms(at_ms) / 1000
        self.receive(connection=connection, leg=leg, args=over.args, stamp=event.stamp, waited_seconds=waited_seconds)

    def is_left_alone(self, connection: ConnectionVersion, leg: events.Channel) -> bool:
        """True for a leg that goes out, for another program to dial, by what it is or was when it entered Stasis."""
        if leg.is_unanswered:
            return True
        note = outgoing_leg(leg)
        return self.writer.store.is_noted(note, connection_id=connection.connection_id, within=_REMEMBERED)

    def receive(
        self,
        *,
        connection: ConnectionVersion,
        leg: events.Channel,
        args: tuple[str, ...],
        stamp: str = "",
        waited_seconds: float = 0.0,
    ) -> None:
        """Make a call of a leg that is in Stasis, by its event or as a resync found it.

        Args:
            stamp: Asterisk's timestamp of the StasisStart; empty when a resync found the leg.
            waited_seconds: How long ago the event was read.
        """
        if not self.allowance.take(connection.connection_id):
            self._refuse(connection, leg, stamp)
            return
        # The same id for both tries: what the first one may have left at the platform is this call's.
        call_id, began, call = self.writer.new_id(), self.writer.clock.monotonic(), None
        unusable, is_late = events.unusable(leg, args), waited_seconds > _ASKED_AFTER_SECONDS
        may_assume = self.assumes and not (unusable or is_late or stasis_args.names_run(args))
        for assume in (True, False) if may_assume else (False,):
            destination = self.lookup.destination(connection, leg.called_number, assume=assume)
            if destination is None or destination.target.is_anothers:
                if call is not None:
                    self.platform_slots.give_back(call, media_ids=())
                if destination is not None:
                    self._leave(connection, leg)
                else:
                    log.warning("leg of an unknown connection", connection=str(connection))
                return
            call = self._new_call(destination.target, connection, leg, args=args, stamp=stamp, call_id=call_id)
            arrival = Arrival(
                target=destination.target,
                route=destination.route,
                waited_seconds=waited_seconds,
                unusable=unusable,
                check=destination.check,
            )
            try:
                self._serve(call, arrival, connection, leg)
            except errors.RowChanged:
                if arrival.check is None:
                    raise
                waited_seconds += self.writer.clock.monotonic() - began
            else:
                return

    def _serve(self, call: Call, arrival: Arrival, connection: ConnectionVersion, leg: events.Channel) -> None:
        if self._is_over(call, arrival, connection, leg):
            return
        # Nearly every leg is new: an earlier call of its channel is looked for only if this one cannot be written.
        if not self._admit(call, arrival):
            self._reported_before(call, arrival, connection, leg)

    def _is_over(self, call: Call, arrival: Arrival, connection: ConnectionVersion, leg: events.Channel) -> bool:
        """Write the call of a late event as abandoned if its caller has hung up since; return whether that is done.

        After an outage that is most of them. Each would get a run, a slot, a media leg and a bridge, and the callers
        who are still there would wait for that.
        """
        is_late = arrival.waited_seconds > _ASKED_AFTER_SECONDS
        if not is_late or arrival.unusable or call.direction is Direction.OUTBOUND:
            return False
        try:
            if self.is_up(connection, leg, if_unanswered=True):
                return False
        except errors.PermanentError:
            # There is no Asterisk to ask, as the admission will find.
            return False
        is_too_late = arrival.waited_seconds > self.writer.limits.stale_start_seconds
        return self._write_over(_abandoned(call, faults.NOT_DONE if is_too_late else ""))

    def _reported_before(
        self, call: Call, arrival: Arrival, connection: ConnectionVersion, leg: events.Channel
    ) -> None:
        """Say what a leg is whose channel has a call already: that one, or another entry.

        Args:
            call: The leg's call if it had been the first one.
        """
        args, stamp = call.args, call.entered_stamp or ""
        last = self.writer.store.last_entry(connection.connection_id, leg.id, leg.created)
        if last is None:
            # An open call of another organization has this entry: it had the app instance before.
            self._leave(connection, leg)
            return
        entry = stasis_entry.judge(last, stamp)
        is_known = entry is stasis_entry.Entry.KNOWN
        if is_known or (last.state is State.CONNECTED and self.is_in_place(connection, last, leg)):
            if last.state is State.RECEIVED:
                # Reported again because the admission broke off; if another worker is at it, nothing happens.
                self.flow.resume(last.call_id, Step.ADMISSION)
            self._end_named_run(last, args)
            return
        match entry:
            case stasis_entry.Entry.MISSED_STASIS_END:
                self.flow.report(last, facts.CallerLeft(leg_id=leg.id, stamp=stamp, is_up=True))
                if not self.is_in_stasis(connection, leg):
                    # Nor is it back: its Asterisk was restarted, and the event is late.
                    return
            case stasis_entry.Entry.NEW if last.unverified and not stamp:
                # Its Asterisk was away when it ended. Only an event tells another entry.
                self.flow.report(last, facts.CallerFound())
                return
            case stasis_entry.Entry.NEW if not self.is_in_place(connection, last, leg) or (
                not stamp and self.is_with_another(connection, leg)
            ):
                # The event is late: of an entry that is over. Or a resync found what may be elsewhere by now.
                self._end_named_run(last, args)
                return
        again = replace(call, call_id=self.writer.new_id(), entry=last.entry + 1)
        if not self._admit(again, arrival):
            self._end_named_run(self.writer.store.last_entry(connection.connection_id, leg.id, leg.created), args)

    def _leave(self, connection: ConnectionVersion, leg: events.Channel) -> None:
        """Leave a caller to the other organization whose the app instance is now, or was when the caller came."""
        self._note(connection, "AnotherOwner", f"channel {leg.id} is another organization's caller: left alone")

    def _refuse(self, connection: ConnectionVersion, leg: events.Channel, stamp: str) -> None:
        """Refuse a leg that is one too many, without a call. One that a resync found is left to a later one."""
        metrics.QUOTA_REFUSALS.add("calls-per-hour")
        self._note(connection, TOO_MANY_CALLS, f"channel {leg.id} is one too many (CALLS_PER_HOUR)")
        if not stamp:
            return
        last = self.writer.store.last_entry(connection.connection_id, leg.id, leg.created)
        # A leg that is known may be reported again: its call goes on.
        if (last is None or last.state is State.ENDED) and self.is_in_stasis(connection, leg):
            budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
            self.asterisks.at(connection, budget).hang_up(leg.id, Cause.CONGESTION)

    def is_in_place(self, connection: ConnectionVersion, call: Call, leg: events.Channel) -> bool:
        """Ask Asterisk whether a leg is where its call needs it: in the app, and once it is connected in the bridge.

        For what stamps cannot tell: whether an event is late, or of another entry. A leg that left Stasis has left the
        bridge, even if it has come back into Stasis since. One that was moved to another app has not.
        """
        if call.state is State.CONNECTED:
            budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
            bridge = self.asterisks.at(connection, budget).bridge(self.naming.bridge_id(call))
            if bridge is None or leg.id not in bridge.channels:
                return False
        return self.is_in_stasis(connection, leg)

    def is_in_stasis(self, connection: ConnectionVersion, leg: events.Channel) -> bool:
        """Ask Asterisk whether a leg is in the app now."""
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        found, is_in_app = self.asterisks.at(connection, budget).channel_and_place(leg.id)
        return found is not None and found.created == leg.created and is_in_app

    def is_up(self, connection: ConnectionVersion, leg: events.Channel, *, if_unanswered: bool = False) -> bool:
        """Ask Asterisk whether a leg is up, in the app or not; if it gives no answer, return what is given for that."""
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        try:
            found = self.asterisks.at(connection, budget).channel(leg.id)
        except errors.NO_ANSWER:
            return if_unanswered
        return found is not None and found.created == leg.created

    def is_with_another(self, connection: ConnectionVersion, leg: events.Channel) -> bool:
        """Ask whether another app lists a leg, too: then it may be in that one. An app lists what was made for it."""
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        asterisk = self.asterisks.at(connection, budget)
        return bool(asterisk.apps_of(leg.id) - {asterisk.app})

    def _admit(self, call: Call, arrival: Arrival) -> bool:
        """Write a new call and run its admission; return False when the channel has a call of this entry already."""
        received = transitions.receive(call, self.writer.limits)
        if arrival.unusable:
            return self._write_refused(received, arrival.unusable)
        return self.flow.admit(received, arrival)

    def _write_refused(self, received: Call, reason: str) -> bool:
        """Write a call whose leg cannot be served as it is refused: no other worker can take it for one to admit."""
        refusal = facts.Refused(reason=reason, hangup_cause=Cause.NOT_ALLOWED)
        transition = self.writer.transition(received, [refusal])
        if not self.writer.store.insert(received, [], None, changes=transition.changes):
            return False
        self.writer.stored(transition, transition.call, None)
        return True

    def _end_named_run(self, known: Call | None, args: tuple[str, ...]) -> None:
        """End the run of a platform's leg whose end was reported before its start: only the start names the run."""
        if known is not None and known.outcome is Outcome.ABANDONED and stasis_args.names_run(args):
            named = replace(known, direction=Direction.OUTBOUND, args=args)
            self.runs.end(named, media_id=self.naming.media_id(named), bridge_id=self.naming.bridge_id(named))

    # ── legs that were over before their call was known ──────────────────────────────────────────────────────────────

    def record_abandoned(self, *, connection: ConnectionVersion, event: events.Event) -> Call | None:
        """Record an unknown leg that left Stasis as an abandoned call, so that its late StasisStart finds it.

        Returns:
            The call, when its start came in between after all; None when nothing is left to do.
        """
        target = self.connections.inbound_target(connection)
        if target is None:
            return None
        if not self.allowance.take(connection.connection_id):
            self._note(connection, TOO_MANY_CALLS, f"channel {event.leg.id} has left, one too many (CALLS_PER_HOUR)")
            return None
        call = replace(
            _abandoned(self._new_call(target, connection, event.leg, args=(), stamp="")),
            left_stamp=event.stamp or None,
            hangup_cause=event.cause,
            tech_cause=event.tech_cause,
        )
        if self._write_over(call):
            return None
        return self.writer.store.last_entry(connection.connection_id, event.leg.id, event.leg.created)

    def is_awaited(self, connection: ConnectionVersion, leg: events.Channel) -> bool:
        """True if a run of the platform waits for the call that this leg was originated for."""
        target = self.connections.inbound_target(connection)
        if target is None:
            return False
        with self.writer.store.transaction() as db:
            return self.runs.waiting(db, organization_id=target.organization_id, channel_id=leg.id) is not None

    def record_unanswered(
        self, *, connection: ConnectionVersion, event: events.Event, outcome: tuple[Outcome, str, int | None]
    ) -> bool:
        """End the run of a leg that the platform originated: it was not answered, or has left before it was received.

        Args:
            outcome: How the dialling came out, the reason, and the hang-up cause.

        Returns:
            False when no run waits for such a leg: the platform did not originate it, or has not written its channel
            yet.
        """
        target = self.connections.inbound_target(connection)
        if target is None:
            return False
        result, reason, cause = outcome
        over = replace(
            _over(self._new_call(target, connection, event.leg, args=(), stamp="")),
            direction=Direction.OUTBOUND,
            left_stamp=event.stamp or None,
            outcome=result,
            reason=reason,
            fault=faults.fault_of(result, reason),
            hangup_cause=cause,
            tech_cause=event.tech_cause,
        )
        with self.writer.store.transaction() as db:
            run_id = self.runs.waiting(db, organization_id=target.organization_id, channel_id=event.leg.id)
            if run_id is None:
                return False
            call = replace(over, workflow_run_id=run_id)
            if self.writer.store.insert_in(db, call):
                self.runs.end_in(db, call, {})
        self.writer.observer.ended(call)
        self.platform_slots.give_back(call, media_ids=())
        return True

    def _write_over(self, call: Call) -> bool:
        """Write a call that is over; return False if its channel has a call of this entry already."""
        is_new = self.writer.store.insert(call, [], None)
        if is_new:
            self.writer.observer.ended(call)
        return is_new

    def _new_call(
        self,
        target: InboundTarget,
        connection: ConnectionVersion,
        leg: events.Channel,
        *,
        args: tuple[str, ...],
        stamp: str,
        call_id: UUID | None = None,
    ) -> Call:
        served_by, now = target.served_by or connection, self.writer.store.now()
        return Call(
            # Random, so never the same again, even if a restored database has forgotten a call: the ids of its legs
            # derive from it, and a request for a media leg under the id of a live one crashes Asterisk.
            call_id=call_id or self.writer.new_id(),
            id_prefix=self.naming.prefix,
            connection_id=served_by.connection_id,
            connection_version=served_by.number,
            organization_id=target.organization_id,
            channel_id=leg.id,
            channel_created=leg.created,
            entry=1,
            direction=Direction.OUTBOUND if stasis_args.names_run(args) else Direction.INBOUND,
            state=State.RECEIVED,
            received_at=now,
            state_since=now,
            deadline_at=None,
            channel_name=leg.name,
            caller_number=leg.caller_number or calls.UNKNOWN_NUMBER,
            called_number=leg.called_number,
            args=args,
            entered_stamp=stamp or None,
        )

    def _note(self, connection: ConnectionVersion, name: str, detail: str) -> None:
        entry = TimelineEntry(kind="note", name=name, detail=detail)
        self.writer.store.append_timeline([entry], connection_id=connection.connection_id)
