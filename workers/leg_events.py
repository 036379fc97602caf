"""Events about legs: each becomes a fact about the call it belongs to, and the flow goes on from there.

The id of a leg tells what it is: media legs and originated legs have ids of the product. The call of any other leg is
found by channel id and creation time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from shared import messages
from shared.asterisk import events
from shared.asterisk.events import EventType
from shared.call import dialling, facts, ids, stasis_args, states
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.states import Cause, Outcome, State
from shared.call.steps import Step
from shared.storage.call_writer import CallWriter
from shared.storage.timeline import TimelineEntry
from workers.flow import Flow
from workers.inbound import Inbound, is_no_caller, is_over_unreceived
from workers.replacements import Replacements
from workers.step_ports import SendLater
from workers.talk_detection import TalkDetection
from workers.transfers import Transfers

log = structlog.stdlib.get_logger(__name__)

#: The last Dial event and the end of a leg come together, and may be worked on in any order: an end that does not carry
#: the dial status waits for it.
_STATUS_LOOKS_SECONDS = (0.02, 0.05, 0.1, 0.2)
#: The platform writes under which channel it called only after Asterisk has answered it: looked for again after these.
_RUN_LOOKS_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.5, 5.0)
#: A leg may be replaced before its call is written: the call is looked for again, so often. The events of both may have
#: waited for long, and are begun at the same time then.
_REPLACED_PAUSE = timedelta(seconds=0.2)
_REPLACED_LOOKS = 5
#: A channel that was replaced and is still up after this is hung up.
_REPLACED_GONE = timedelta(seconds=2)
#: Instead of the number of looks: the run was found, and an event that tells more has had the time for another look.
_LAST_LOOK = 100
#: How long after that other look, for each degree of doubt: as long as a busy worker may be behind. Only an end whose
#: telling event is lost waits for it.
_DOUBT_SECONDS = 1.0
_BEFORE_CONNECTED = (State.PREPARED, State.JOINING)
#: The cause of a media leg's end that the call was not connected with → what the voice agent did. Measured.
_AGENT_DID: dict[int, str] = {
    Cause.NO_ROUTE_DESTINATION: "the voice agent was not there, or refused the socket",
    Cause.NORMAL: "the voice agent closed the socket at once",
}


@dataclass(frozen=True, kw_only=True)
class LegEvents:
    """Handles what happened to media legs, to originated legs, and to the end of any leg.

    Args:
        refusal_causes: Returns what makes the voice agent refuse a call's socket, as far as it can be told.
        talk_detection: Notes that a party sends audio; None if that is not wanted.
    """

    flow: Flow
    writer: CallWriter
    inbound: Inbound
    naming: Naming
    transfers: Transfers
    replacements: Replacements
    send_later: SendLater
    refusal_causes: Callable[[Call], str]
    talk_detection: TalkDetection | None = None

    # ── a leg that takes another's place ─────────────────────────────────────────────────────────────────────────────

    def caller_entered(self, *, connection: ConnectionVersion, at_ms: int, event: events.Event, looks: int = 0) -> None:
        """A leg entered the app: a caller's, or a channel that has taken the place of a leg of a call.

        Args:
            looks: How often the call of the leg whose place it has taken was looked for before.
        """
        if event.replaces is not None and (call := self._replaced(connection, event.replaces, event.leg)) is not None:
            if is_over_unreceived(call):
                self.inbound.successor_entered(call, connection=connection, at_ms=at_ms, event=event)
                return
            recorded = self.replacements.follow(call, event.leg, replaced_id=event.replaces)
            if recorded.applied:
                # By then a telephone has hung up.
                self._tell_again(connection, event, at_ms, _REPLACED_GONE)
            else:
                self.replacements.remove_replaced(recorded.call, event.replaces)
            return
        if event.replaces is not None and looks < _REPLACED_LOOKS:
            self._tell_again(connection, event, at_ms, _REPLACED_PAUSE, looks=looks + 1)
            return
        if not self._has_picked_up(connection, event):
            self.inbound.caller_entered(connection=connection, at_ms=at_ms, event=event)

    def _tell_again(
        self, connection: ConnectionVersion, event: events.Event, at_ms: int, pause: timedelta, looks: int = 0
    ) -> None:
        again = messages.of_event(event, connection=connection, at_ms=at_ms, looks=looks)
        assert again is not None
        self.send_later(again, pause)

    def _has_picked_up(self, connection: ConnectionVersion, event: events.Event) -> bool:
        """True for a channel that has picked up a leg which the product dialled: it has its place, and has answered."""
        dialled = stasis_args.dialled_leg(event.args)
        if dialled is None or not ids.is_originated(dialled):
            return False
        call = self.writer.store.originated(connection.connection_id, dialled)
        if call is None or call.leg_id == event.leg.id:
            return call is not None
        if call.state not in states.DIALLING:
            return False
        leg = event.leg
        replaced = facts.LegReplaced(replaced_id=call.leg_id, channel_id=leg.id, channel_name=leg.name)
        self.flow.report(call, replaced, answered(leg, event.stamp))
        return True

    def _replaced(self, connection: ConnectionVersion, leg_id: str, by: events.Channel) -> Call | None:
        own = ids.parse(leg_id)
        if own is not None:
            return self._own_call(connection, own, leg_id) if own.kind is ids.Kind.MEDIA else None
        return self.replacements.call_of(connection, leg_id, by.id)

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
        if self.writer.is_over(own.call_id, connection_id=connection.connection_id):
            # This process has removed the leg, and its listener is an old one, or has heard of its last event late.
            return
        call = self._own_call(connection, own, event.leg.id)
        if call is None:
            return
        if (own.attempt, own.nonce) == (call.attempt, call.nonce) and self.transfers.take_up(call):
            return
        reason = "media leg ended"
        if event.cause:
            reason = f"{reason}, cause {event.cause} {event.cause_text}".strip()
        is_refusal = call.state is State.CONNECTED and not self.inbound.runs.is_begun(call)
        if event.cause in _AGENT_DID and (is_refusal or call.state in _BEFORE_CONNECTED):
            causes = self.refusal_causes(call)
            reason = f"{reason}: {_AGENT_DID[event.cause]}" + (f" ({causes})" if causes else "")
        gone = facts.MediaGone(
            attempt=own.attempt,
            nonce=own.nonce,
            hangup_cause=event.cause,
            tech_cause=event.tech_cause,
            reason=reason,
            is_refusal=is_refusal,
        )
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

    def party_heard(self, *, connection: ConnectionVersion, at_ms: int, event: events.Event) -> None:
        """A leg has sent audio: a call's first leg, or its media leg. Any other one is left alone."""
        if self.talk_detection is None:
            return
        own = ids.parse(event.leg.id)
        call = self._call_of(connection, event) if own is None else self._own_call(connection, own, event.leg.id)
        if call is not None:
            self.talk_detection.heard(call, event.leg.id, age_ms=self.inbound.age_ms(at_ms))

    # ── the end of any leg ───────────────────────────────────────────────────────────────────────────────────────────

    def leg_ended(self, *, connection: ConnectionVersion, event: events.Event) -> None:
        """A leg left Stasis, is being hung up, or is gone."""
        own = ids.parse(event.leg.id)
        if own is not None:
            self._media_leg_ended(connection, own, event)
            return
        call = self._call_of(connection, event) or self._unknown_leg_ended(connection, event)
        if call is None or event.leg.id != call.leg_id:
            return
        if self._is_of_earlier_entry(call, event):
            self._end_earlier_call(connection, call, event)
            return
        # Of a leg that is hung up the cause is told before. One that is not was replaced, or goes on elsewhere.
        is_asked = event.type is EventType.STASIS_END and event.cause is None and not call.caller_left
        if is_asked and (leg := self.replacements.successor(call, event.leg.id)) is not None:
            self.replacements.follow(call, leg, replaced_id=event.leg.id)
        else:
            self.flow.report(call, *_caller_facts(event, is_up=is_asked and self.inbound.is_up(connection, event.leg)))

    def _call_of(self, connection: ConnectionVersion, event: events.Event) -> Call | None:
        store, connection_id = self.writer.store, connection.connection_id
        call = store.last_entry(connection_id, event.leg.id, event.leg.created)
        if call is None or call.state is State.ENDED:
            # It may have taken the place of another call's leg, before or since.
            other = store.replaced_by(connection_id, event.leg.id)
            if other is not None and (call is None or other.state is not State.ENDED):
                call = other
        if call is None and ids.is_originated(event.leg.id):
            call = store.originated(connection_id, event.leg.id)
            if call is not None and event.type is EventType.CHANNEL_DESTROYED and not event.dial_status:
                # Answered elsewhere, it was picked up: then the channel that has done so comes.
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
                self._destination_ended(transferred, event)
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

    def _destination_ended(self, call: Call, event: events.Event) -> None:
        """The leg that the caller was transferred to left Stasis, or is gone; or another one is there in its place."""
        is_asked = event.type is EventType.STASIS_END and event.cause is None
        if is_asked and (leg := self.replacements.successor(call, event.leg.id)) is not None:
            self.replacements.follow(call, leg, replaced_id=event.leg.id)
        else:
            self.flow.report(call, facts.DestinationGone(destination_id=event.leg.id, hangup_cause=event.cause))

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

    def _end_earlier_call(self, connection: ConnectionVersion, call: Call, event: events.Event) -> None:
        """End the call whose leg this one had replaced, before it left and came back as the caller of another call."""
        earlier = self.writer.store.replaced_by(connection.connection_id, event.leg.id)
        if earlier is None or earlier.leg_id != event.leg.id:
            return
        if earlier.call_id == call.call_id:
            # The other call may not be written yet. Of one that has ended this may be the end, told once more.
            own = self.writer.store.last_entry(connection.connection_id, event.leg.id, event.leg.created)
            if own is not None and own.state is State.ENDED:
                return
        self.flow.report(earlier, *_caller_facts(event, is_up=True))

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

        What the platform makes of a leg that it originated for a transfer is looked at by the same message.

        Args:
            looks: How often the run was looked for before.
        """
        if event.type is EventType.STASIS_START:
            self.inbound.transfer_legs.look(connection=connection, event=event, looks=looks)
            return
        is_gone = event.type is EventType.CHANNEL_DESTROYED
        if is_gone and self.inbound.transfer_legs.ended(connection=connection, event=event):
            return
        doubt = dialling.doubt(event.dial_status or None, event.cause)
        if doubt and looks < _LAST_LOOK:
            if self.inbound.is_awaited(connection, event.leg):
                # One that tells more finds the run with its next look, and gives way to another by one itself.
                next_looks = sum(_RUN_LOOKS_SECONDS[looks : looks + doubt])
                self._look_again(connection, event, _LAST_LOOK, next_looks + doubt * _DOUBT_SECONDS)
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


def _caller_facts(event: events.Event, *, is_up: bool) -> tuple[facts.Fact, ...]:
    leg: dict[str, Any] = {"leg_id": event.leg.id, "hangup_cause": event.cause, "tech_cause": event.tech_cause}
    match event.type:
        case EventType.STASIS_END:
            return (facts.CallerLeft(**leg, stamp=event.stamp or None, is_up=is_up),)
        case EventType.CHANNEL_DESTROYED:
            gone = facts.CallerGone(**leg)
            return (facts.Dialled(status=event.dial_status), gone) if event.dial_status else (gone,)
        case _:
            return (facts.CallerHangingUp(**leg),)
