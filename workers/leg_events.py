"""Events about legs: each becomes a fact about the call it belongs to, and the flow goes on from there.

The id of a leg tells what it is: media legs and originated legs have ids of the product. The call of any other leg is
found by channel id and creation time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import structlog

from shared import messages
from shared.asterisk import events
from shared.asterisk.events import EventType
from shared.call import dialling, facts, ids, stasis_args, states
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.states import Outcome, State
from shared.call.steps import Step
from shared.storage.call_writer import CallWriter
from shared.storage.timeline import TimelineEntry
from workers.flow import Flow
from workers.inbound import Inbound, is_no_caller
from workers.step_ports import SendLater
from workers.transfers import Transfers

log = structlog.stdlib.get_logger(__name__)

#: The last Dial event and the end of a leg come together, and may be worked on in any order: an end that does not carry
#: the dial status waits for it.
_STATUS_LOOKS_SECONDS = (0.02, 0.05, 0.1, 0.2)
#: The platform writes under which channel it called only after Asterisk has answered it: looked for again after these.
_RUN_LOOKS_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.5, 5.0)
#: Instead of the number of looks: the run was found, and an event that tells more has had the time for another look.
_LAST_LOOK = 100
#: How long after that other look, for each degree of doubt.
_DOUBT_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class LegEvents:
    """Handles what happened to media legs, to originated legs, and to the end of any leg."""

    flow: Flow
    writer: CallWriter
    inbound: Inbound
    naming: Naming
    transfers: Transfers
    send_later: SendLater

    # ── the media leg ────────────────────────────────────────────────────────────────────────────────────────────────

    def media_leg_ready(self, *, connection: ConnectionVersion, event: events.Event) -> None:
        """A media leg entered Stasis, reported by any version of its connection."""
        own = ids.parse(event.leg.id)
        if own is None or own.kind is not ids.Kind.MEDIA:
            return
        if self.flow.media_ready(own.call_id, own.attempt, own.nonce, connection_id=connection.connection_id):
            return
        call = self._own_call(connection, own, event.leg.id)
        if call is None:
            return
        if call.state is State.CONNECTED and (own.attempt, own.nonce) == (call.attempt, call.nonce):
            # Delivered again: the worker that joined the legs may have died before it did what follows.
            self.flow.resume(call.call_id, Step.BRIDGE, attempt=own.attempt)
        else:
            self.flow.report(call, facts.MediaReady(attempt=own.attempt, nonce=own.nonce))

    def _media_leg_ended(self, connection: ConnectionVersion, own: ids.OwnId, event: events.Event) -> None:
        if own.kind is not ids.Kind.MEDIA or event.type is EventType.CHANNEL_HANGUP_REQUEST:
            return
        call = self._own_call(connection, own, event.leg.id)
        if call is None:
            return
        if (own.attempt, own.nonce) == (call.attempt, call.nonce) and self.transfers.take_up(call):
            return
        reason = "media leg ended"
        if event.cause:
            reason = f"{reason}, cause {event.cause} {event.cause_text}".strip()
        gone = facts.MediaGone(attempt=own.attempt, nonce=own.nonce, hangup_cause=event.cause, reason=reason)
        self.flow.report(call, gone)

    def _own_call(self, connection: ConnectionVersion, own: ids.OwnId, leg_id: str) -> Call | None:
        """Return the call that an id names, if the leg is in the call's app instance; refuse and record any other.

        The owner of a PBX can create a channel with the id of another tenant's media leg.
        """
        call = self.writer.store.load(own.call_id)
        if call is None or not self.naming.is_of(call, own):
            return None
        told_by = connection.connection_id
        if call.connection_id == told_by or self.inbound.connections.share_an_app(call.connection_id, told_by):
            return call
        log.warning("foreign leg refused", connection=str(connection), leg=leg_id)
        detail = f"connection {connection.connection_id} reported leg {leg_id}, which is of another connection's call"
        entry = TimelineEntry(kind="refusal", name="ForeignLeg", detail=detail)
        self.writer.store.append_timeline([entry], connection_id=connection.connection_id)
        return None

    # ── the end of any leg ───────────────────────────────────────────────────────────────────────────────────────────

    def leg_ended(self, *, connection: ConnectionVersion, event: events.Event) -> None:
        """A leg left Stasis, is being hung up, or is gone."""
        own = ids.parse(event.leg.id)
        if own is not None:
            self._media_leg_ended(connection, own, event)
            return
        call = self._call_of(connection, event) or self._unknown_leg_ended(connection, event)
        if call is not None and not self._is_of_earlier_entry(call, event):
            self.flow.report(call, *_caller_facts(event))

    def _call_of(self, connection: ConnectionVersion, event: events.Event) -> Call | None:
        store, connection_id = self.writer.store, connection.connection_id
        call = store.last_entry(connection_id, event.leg.id, event.leg.created)
        if call is None and ids.is_originated(event.leg.id):
            call = store.originated(connection_id, event.leg.id)
            if call is not None and event.type is EventType.CHANNEL_DESTROYED and not event.dial_status:
                call = self._with_dial_status(call)
        return call

    def _unknown_leg_ended(self, connection: ConnectionVersion, event: events.Event) -> Call | None:
        """An unknown leg is gone: one that left before it was received, or a platform's leg that was not answered.

        Returns:
            The call, when it appeared in between.
        """
        if is_no_caller(event.leg) or ids.is_originated(event.leg.id):
            return None
        if event.type in (EventType.STASIS_END, EventType.CHANNEL_DESTROYED):
            transferred = self.writer.store.transferred(connection.connection_id, event.leg.id)
            if transferred is not None:
                gone = facts.DestinationGone(destination_id=event.leg.id, hangup_cause=event.cause)
                self.flow.report(transferred, gone)
                return None
        if stasis_args.is_transfer(event.args):
            # It came for a transfer that was not made, or is known no more: no caller.
            return None
        if event.type is EventType.STASIS_END:
            # The platform may have originated it: then a run waits for it.
            outcome = (Outcome.CANCELED, "far end hung up before the call was received", event.cause)
            is_run_s = self.inbound.record_unanswered(connection=connection, event=event, outcome=outcome)
            if is_run_s or self.inbound.is_left_alone(connection, event.leg):
                return None
            return self.inbound.record_abandoned(connection=connection, event=event)
        if event.type is EventType.CHANNEL_DESTROYED:
            self._unknown_leg_unanswered(connection, event)
        return None

    def _is_of_earlier_entry(self, call: Call, event: events.Event) -> bool:
        """True if a StasisEnd is of an entry before this call's: the channel came back into Stasis since.

        Stamps do not tell: the clock of an Asterisk may be set back during a call. A leg that is hung up does not come
        back; of any other, Asterisk is asked.
        """
        if event.type is not EventType.STASIS_END or event.cause is not None or call.caller_left:
            return False
        return self.inbound.is_in_place(call.connection, call, event.leg) and not self.inbound.is_with_another(
            call.connection, event.leg
        )

    # ── legs that the product or the platform originates ─────────────────────────────────────────────────────────────

    def far_end_answered(self, *, connection: ConnectionVersion, at_ms: int, event: events.Event) -> None:
        """An originated leg entered Stasis: the far end has answered, and media may start."""
        call = self.writer.store.originated(connection.connection_id, event.leg.id)
        if call is None or call.channel_created or (call.state is State.ENDED and not call.caller_left):
            # Reported before, back again, or answered long after the call was over: the caller's rules tell which.
            self.inbound.caller_entered(connection=connection, at_ms=at_ms, event=event)
            return
        self.flow.report(call, answered(event.leg, event.stamp))

    def dial_ended(self, *, connection: ConnectionVersion, event: events.Event) -> None:
        """The dialling of a leg came out: busy, not answered, …"""
        if not ids.is_originated(event.leg.id):
            self._unknown_leg_unanswered(connection, event)
            return
        call = self.writer.store.originated(connection.connection_id, event.leg.id)
        if call is not None:
            self.writer.record(call, facts.Dialled(status=event.dial_status))

    def leg_unanswered(self, *, connection: ConnectionVersion, event: events.Event, looks: int) -> None:
        """End the run that waits for a platform's leg that was not answered.

        Several events tell of it, which know more or less, and the platform writes the leg's channel when it likes. So
        an event that leaves something open finds the run, and ends it only when one that tells more, which looks at the
        same times, has had another look.

        Args:
            looks: How often the run was looked for before.
        """
        doubt = dialling.doubt(event.dial_status or None, event.cause)
        if doubt and looks < _LAST_LOOK:
            if self.inbound.is_awaited(connection, event.leg):
                next_look = _RUN_LOOKS_SECONDS[looks] if looks < len(_RUN_LOOKS_SECONDS) else 0.0
                self._look_again(connection, event, _LAST_LOOK, next_look + doubt * _DOUBT_SECONDS)
            else:
                self._look_later(connection, event, looks)
            return
        outcome = dialling.dial_outcome(event.dial_status or None, event.cause)
        if not self.inbound.record_unanswered(connection=connection, event=event, outcome=outcome):
            self._look_later(connection, event, looks)

    def _unknown_leg_unanswered(self, connection: ConnectionVersion, event: events.Event) -> None:
        """A leg without a call was not answered (Dial, ChannelDestroyed): perhaps the platform originated it."""
        if is_no_caller(event.leg) or event.leg.name.endswith(";2"):
            # The far half of a Local channel is no call.
            return
        self.leg_unanswered(connection=connection, event=event, looks=0)

    def _look_later(self, connection: ConnectionVersion, event: events.Event, looks: int) -> None:
        if looks < len(_RUN_LOOKS_SECONDS):
            self._look_again(connection, event, looks + 1, _RUN_LOOKS_SECONDS[looks])

    def _look_again(self, connection: ConnectionVersion, event: events.Event, looks: int, seconds: float) -> None:
        again = messages.of_unanswered(event, connection=connection, looks=looks)
        self.send_later(again, timedelta(seconds=seconds))

    def _with_dial_status(self, call: Call) -> Call:
        """Return the call of a leg that ended unanswered, once its dial status is known or has not come in time."""
        for pause_seconds in _STATUS_LOOKS_SECONDS:
            if call.state not in states.DIALLING or call.dial_status is not None:
                break
            self.writer.clock.sleep(pause_seconds)
            call = self.writer.store.load(call.call_id) or call
        return call


def answered(leg: events.Channel, stamp: str = "") -> facts.FarEndAnswered:
    """Return the fact that an originated leg is in Stasis. The stamp is empty when a resync found it."""
    return facts.FarEndAnswered(channel_name=leg.name, channel_created=leg.created, stamp=stamp or None)


def _caller_facts(event: events.Event) -> tuple[facts.Fact, ...]:
    match event.type:
        case EventType.STASIS_END:
            return (facts.CallerLeft(stamp=event.stamp or None, hangup_cause=event.cause),)
        case EventType.CHANNEL_DESTROYED:
            gone = facts.CallerGone(hangup_cause=event.cause)
            return (facts.Dialled(status=event.dial_status), gone) if event.dial_status else (gone,)
        case _:
            return (facts.CallerHangingUp(hangup_cause=event.cause),)
