"""Channels that take the place of a leg: transfers, pick-ups, any masquerade in the tenant's PBX. The call follows.

A StasisStart names the channel that was replaced. Where it was lost, or comes after the end of that channel, Asterisk
is asked (`successors.py`).
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass

from shared import errors
from shared.asterisk import ari
from shared.asterisk.events import Channel
from shared.call import facts, ids
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming
from shared.call.states import State
from shared.platform.ports import Runs
from shared.storage.call_writer import CallWriter, Recorded
from workers import successors
from workers.asterisks import Asterisks
from workers.claims import TimedBudget
from workers.flow import Flow


@dataclass(frozen=True, kw_only=True)
class Replacements:
    """Lets a call follow its leg."""

    flow: Flow
    writer: CallWriter
    asterisks: Asterisks
    runs: Runs
    naming: Naming

    def call_of(self, connection: ConnectionVersion, replaced_id: str, leg_id: str) -> Call | None:
        """Return the call of a party's leg that was replaced by another one; None if it was a leg of none.

        A leg may have been of several calls, one after the other: it left Stasis, or was replaced, and came back.
        """
        store, connection_id = self.writer.store, connection.connection_id
        told = store.replaced_by(connection_id, leg_id)
        if told is not None and (replaced_id, leg_id) in itertools.pairwise((told.channel_id, *told.replacements)):
            # It is told again: that leg may have a newer call by now, which is not meant.
            return told
        looks = (
            # That one is told again, too.
            (store.transferred, leg_id),
            (store.replaced_by, replaced_id),
            (store.transferred, replaced_id),
            (store.of_channel, replaced_id),
        )
        calls = [call for look, leg in looks if (call := look(connection_id, leg)) is not None]
        return max(calls, key=lambda call: (call.state is not State.ENDED, call.received_at), default=None)

    def follow(self, call: Call, leg: Channel, *, replaced_id: str, retry_on_conflict: bool = True) -> Recorded:
        """Record that a channel has taken the place of a leg of this call, however often it is told."""
        own = ids.parse(replaced_id)
        if own is None and call.leg_id == replaced_id and successors.has_own_call(self.writer.store, call, leg.id):
            # It has an agent of its own.
            return self.flow.report(call, facts.CallerGone(leg_id=replaced_id), retry_on_conflict=retry_on_conflict)
        if own is None:
            fact: facts.Fact = facts.LegReplaced(replaced_id=replaced_id, channel_id=leg.id, channel_name=leg.name)
        else:
            # A party of the PBX is there in place of the agent, as after a transfer by the platform.
            fact = facts.Transferred(attempt=own.attempt, nonce=own.nonce, destination_id=leg.id)
        recorded = self.flow.report(call, fact, retry_on_conflict=retry_on_conflict)
        call = recorded.call
        # What follows is also done for a try that was broken off.
        if call.state is State.CONNECTED and call.leg_id == leg.id:
            media_id, bridge_id = self.naming.media_id(call), self.naming.bridge_id(call)
            self.runs.note_media(call, media_id=media_id, bridge_id=bridge_id)
        if call.state is State.CONNECTED and own is not None and call.destination_id == leg.id:
            # It stays up, and its agent would hear silence (measured).
            self._asterisk(call).hang_up(replaced_id)
        if own is None and call.leg_id == leg.id:
            self._judge_again(call, leg)
        elif call.state is State.CONNECTED and leg.id in (call.leg_id, call.destination_id):
            self._end_if_gone(call, leg)
        return recorded

    def _judge_again(self, call: Call, leg: Channel) -> None:
        """Look whether a channel that a call has followed its leg to is another call's, or was gone before."""
        if successors.has_own_call(self.writer.store, call, leg.id):
            # Both were written at once.
            self.flow.report(call, facts.CallerLeft(leg_id=leg.id, is_up=True))
        elif call.state is State.CONNECTED or successors.own_call(self.writer.store, call, leg.id) is not None:
            self._end_if_gone(call, leg)

    def remove_replaced(self, call: Call, replaced_id: str) -> None:
        """Hang up the channels before that are still up, in silence: Asterisk leaves them in Stasis (measured).

        Args:
            replaced_id: May have been the leg that the caller was transferred to: of those the row has the last alone.
        """
        asterisk = self._asterisk(call)
        for leg_id in successors.left_over(asterisk, call, replaced_id):
            asterisk.hang_up(leg_id)

    def successor(self, call: Call, leg_id: str) -> Channel | None:
        """Ask Asterisk for the channel that has taken the place of a party's leg of a connected call; None if none has.

        None, too, if it gives no answer.
        """
        if call.state is not State.CONNECTED:
            return None
        try:
            return successors.in_bridge(self._asterisk(call), self.naming, call, leg_id)
        except errors.NO_ANSWER:
            return None

    def _end_if_gone(self, call: Call, leg: Channel) -> None:
        """End the call if the channel has gone already: its end may have been told before it was known."""
        with contextlib.suppress(*errors.NO_ANSWER):
            found, is_in_app = self._asterisk(call).channel_and_place(leg.id)
            if is_in_app:
                return
            is_bridged = call.state is State.CONNECTED
            again = successors.in_bridge(self._asterisk(call), self.naming, call, leg.id) if is_bridged else None
            if again is not None:
                # It was replaced as well.
                self.follow(call, again, replaced_id=leg.id)
            elif leg.id == call.destination_id:
                self.flow.report(call, facts.DestinationGone(destination_id=leg.id))
            elif found is None:
                self.flow.report(call, facts.CallerGone(leg_id=leg.id))
            else:
                self.flow.report(call, facts.CallerLeft(leg_id=leg.id, is_up=True))

    def _asterisk(self, call: Call) -> ari.Ari:
        return self.asterisks.of(call, TimedBudget(self.writer, 2 * self.writer.limits.request_seconds))
