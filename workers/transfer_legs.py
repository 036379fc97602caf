"""Legs to which the platform transfers its callers, until it has put them into their caller's bridge.

The platform is told that such a leg has answered, or was not reached. It puts the leg into the bridge by itself, which
`transfers` finds. A leg of which nothing comes is hung up: nothing else ends it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta

import structlog

from shared import errors, messages
from shared.asterisk import events
from shared.call import dialling, ids, stasis_args
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.states import Cause, Outcome, State
from shared.platform.ports import Transfer, TransferEvents
from shared.storage.call_writer import CallWriter
from shared.storage.timeline import TimelineEntry
from workers.asterisks import Asterisks
from workers.claims import TimedBudget
from workers.step_ports import SendLater

log = structlog.stdlib.get_logger(__name__)

#: The platform is told again after these: it listens only after its request to originate has been answered. It swaps
#: the legs as soon as it has heard.
_LOOKS_SECONDS = (0.1, 0.3, 1.0, 2.0, 3.0, 4.0, 5.0)
#: From this look on, 3.4 s after the answer, a platform's Redis that is away is waited for no longer: the API hears
#: nothing either, and the destination is in silence.
_AWAY_LOOKS = 4
#: A resync leaves a leg to its looks for this time, and knows it for this one.
_LOOKED_AFTER = timedelta(seconds=30)
_REMEMBERED = timedelta(days=1)


def note(leg: events.Channel) -> TimelineEntry:
    """Return the note that a leg came for a transfer."""
    detail = f"channel {leg.id} of {leg.created} came for a transfer: no caller"
    return TimelineEntry(kind="note", name="TransferLeg", detail=detail)


@dataclass(frozen=True, kw_only=True)
class TransferLegs:
    """Tells the platform of these legs, and ends those of which nothing comes."""

    writer: CallWriter
    asterisks: Asterisks
    transfer_events: TransferEvents
    send_later: SendLater

    def entered(self, *, connection: ConnectionVersion, event: events.Event) -> None:
        """A leg entered the app, that is it answered."""
        self.writer.store.append_timeline([note(event.leg)], connection_id=connection.connection_id)
        if self.transfer_events.is_served():
            self.look(connection=connection, event=event, looks=0)

    def found(self, *, connection: ConnectionVersion, leg: events.Channel) -> None:
        """A resync has found a leg in the app: its event was lost, or it was forgotten."""
        store, connection_id = self.writer.store, connection.connection_id
        is_looked_after = store.is_noted(note(leg), connection_id=connection_id, within=_LOOKED_AFTER)
        if is_looked_after or not self.transfer_events.is_served():
            return
        event = events.Event(
            type=events.EventType.STASIS_START, application="", stamp="", channel=leg, args=leg.stasis_args
        )
        if store.is_noted(note(leg), connection_id=connection_id, within=_REMEMBERED):
            self.look(connection=connection, event=event, looks=len(_LOOKS_SECONDS))
        else:
            self.entered(connection=connection, event=event)

    def look(self, *, connection: ConnectionVersion, event: events.Event, looks: int) -> None:
        """Tell the platform of a leg that has answered, until it has put it into the bridge.

        Args:
            looks: How often this was done before.
        """
        is_last = looks >= len(_LOOKS_SECONDS)
        try:
            reason = self.transfer_events.refusal() or self._reason_to_end(connection, event, looks, is_last=is_last)
        except errors.PlatformRedisAway as exc:
            reason = self._unless_bridged(connection, event.leg.id, str(exc)) if looks >= _AWAY_LOOKS else ""
        if reason is None:
            return
        if reason:
            self._end(connection, event.leg, reason)
        else:
            again = messages.of_unanswered(event, connection=connection, looks=looks + 1)
            self.send_later(again, timedelta(seconds=_LOOKS_SECONDS[looks]))

    def _reason_to_end(
        self, connection: ConnectionVersion, event: events.Event, looks: int, *, is_last: bool
    ) -> str | None:
        """Return why a leg is to be ended; empty while that is not known, None when it has its caller."""
        leg_id = event.leg.id
        swapped = self.writer.store.transferred(connection.connection_id, leg_id)
        if swapped is not None and swapped.state is not State.ENDED:
            return None
        transfer = self.transfer_events.transfer(stasis_args.transfer_id(event.args))
        if transfer is None:
            # The platform removes it once it has swapped the legs: the leg is in the bridge, or its caller left again.
            reason = self._unless_bridged(connection, leg_id, "the platform knows no such transfer")
            return reason if reason is not None or is_last else ""
        call = self._call_of(connection, transfer)
        if call is None or call.state is not State.CONNECTED:
            return "its caller has left"
        if call.destination_id is not None:
            # This leg, if it was swapped between the two looks.
            return None if call.destination_id == leg_id else "its caller was transferred to another leg"
        if looks == 0 or self._is_there(connection, event.leg):
            # One that has left since is no answer: its end tells.
            self.transfer_events.answered(transfer, leg_id)
        if not is_last:
            return ""
        reason = self._unless_bridged(connection, leg_id, "the platform did not take it over")
        if reason is not None:
            self.transfer_events.failed(transfer, leg_id, reason)
        return reason

    def _unless_bridged(self, connection: ConnectionVersion, leg_id: str, reason: str) -> str | None:
        """Return the reason, unless the leg is in the bridge of a call: that is found as a transfer then.

        Or in a bridge that is not ours: the controller that has bridged it serves it.
        """
        bridged_by = self._bridged_by(connection, leg_id)
        if bridged_by is None:
            return None
        for own in bridged_by:
            call = self.writer.store.load(own.call_id) if own is not None else None
            if own is None or (call is not None and call.state is State.CONNECTED):
                return None
        return reason

    def _bridged_by(self, connection: ConnectionVersion, leg_id: str) -> list[ids.OwnId | None] | None:
        """Return what the ids of a leg's bridges tell, None of one that is not ours; None if there is no answer."""
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        try:
            bridges = self.asterisks.at(connection, budget).bridges()
        except errors.NO_ANSWER:
            return None
        return [ids.parse(bridge.id) for bridge in bridges if leg_id in bridge.channels]

    def _is_there(self, connection: ConnectionVersion, leg: events.Channel) -> bool:
        """Return whether a leg is still there; True if that cannot be found out."""
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        try:
            seen = self.asterisks.at(connection, budget).channel(leg.id)
        except errors.NO_ANSWER:
            return True
        return seen is not None and seen.created == leg.created

    def _end(self, connection: ConnectionVersion, leg: events.Channel, reason: str) -> None:
        """Hang a leg up if it is in the app, and no other controller has bridged it. If that fails, a resync does."""
        if None in (self._bridged_by(connection, leg.id) or ()):
            return
        entry = TimelineEntry(kind="note", name="TransferLegEnded", detail=f"channel {leg.id}: {reason}")
        self.writer.store.append_timeline([entry], connection_id=connection.connection_id)
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        asterisk = self.asterisks.at(connection, budget)
        try:
            seen, is_in_app = asterisk.channel_and_place(leg.id)
            if seen is not None and seen.created == leg.created and is_in_app:
                asterisk.hang_up(leg.id)
        except errors.NO_ANSWER as exc:
            log.warning("leg of a transfer not hung up", leg=leg.id, reason=str(exc))
            return
        with contextlib.suppress(errors.PlatformRedisAway):
            self.transfer_events.forget(leg.id)

    def ended(self, *, connection: ConnectionVersion, event: events.Event) -> bool:
        """Tell the platform that a leg which it has originated for a transfer is gone; return False if it did not hear.

        Then it is asked again: it notes the transfer of a channel, and listens, only after Asterisk has answered it.
        """
        leg_id = event.leg.id
        try:
            transfer = self.transfer_events.transfer_to(leg_id)
            call = self._call_of(connection, transfer) if transfer is not None else None
            if transfer is None or call is None:
                return False
            # A caller who has left waits for nothing.
            is_waiting = call.state is State.CONNECTED
            is_over = not is_waiting or self.transfer_events.failed(transfer, leg_id, _failure(event))
            if is_over:
                self.transfer_events.forget(leg_id)
        except errors.PlatformRedisAway:
            return False
        return is_over

    def _call_of(self, connection: ConnectionVersion, transfer: Transfer) -> Call | None:
        """Return the call of a transfer's caller, if that is in this app: a PBX may name another tenant's transfer."""
        store, caller = self.writer.store, (connection.connection_id, transfer.caller_id)
        # Another channel may have taken the caller's place.
        call = store.of_channel(*caller) or store.replaced_by(*caller)
        is_its = call is not None and transfer.workflow_run_id in (None, call.workflow_run_id)
        return call if is_its else None


def _failure(event: events.Event) -> str:
    """Return why a destination was not reached, in words for the voice agent."""
    outcome, _, cause = dialling.dial_outcome(event.dial_status or None, event.cause)
    if outcome is Outcome.BUSY:
        return "The line is busy, or the call was declined."
    if outcome is Outcome.NO_ANSWER:
        return "The call was not answered."
    if cause == Cause.REJECTED:
        return "The call was rejected, or the number cannot be reached."
    return f"The call failed: {event.cause_text or 'Asterisk gives no cause'}."
