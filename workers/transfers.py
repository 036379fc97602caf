"""Transfers that the platform makes: it originates a leg, puts it into our bridge, and takes the media leg away.

Asterisk is asked whether it has done so, once the media leg is gone: no event tells. If Asterisk gives no answer, the
call's run tells whether there is a transfer at all: the platform writes it there before it begins. From then on the
caller and that leg are the call.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared import errors
from shared.asterisk import ari
from shared.call import facts, ids, stasis_args
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import State
from shared.platform.ports import Runs
from shared.storage.call_writer import CallWriter
from workers.asterisks import Asterisks
from workers.claims import TimedBudget
from workers.flow import Flow

#: Most legs of one bridge that are looked at: a PBX may put in any number.
_LOOKED_AT = 5


@dataclass(frozen=True, kw_only=True)
class Transfers:
    """Tells a transferred call from one that has lost its agent."""

    flow: Flow
    writer: CallWriter
    asterisks: Asterisks
    runs: Runs
    naming: Naming

    def take_up(self, call: Call) -> bool:
        """Record that a call which has lost its media leg was transferred; return False if it was not.

        Raises:
            AsteriskUnreachable: The platform transfers the caller, and what has come of it is not known.
        """
        if call.state is not State.CONNECTED:
            return False
        if call.destination_id is None and not self._is_found(call):
            return False
        # Also after a resync, or a try that was broken off, has found it.
        self.runs.note_transfer(call)
        return True

    def _is_found(self, call: Call) -> bool:
        """Ask Asterisk for the leg that the caller was transferred to, and record it."""
        asterisk = self.asterisks.of(call, TimedBudget(self.writer, 2 * self.writer.limits.request_seconds))
        try:
            destination_id = destination(asterisk, self.naming, call)
        except errors.NO_ANSWER:
            # An agent that hangs up must end the call while Asterisk is away, too: for hours, perhaps.
            if self.runs.has_transfer(call):
                raise
            return False
        if destination_id is None:
            return False
        self.flow.report(call, facts.Transferred(attempt=call.attempt, nonce=call.nonce, destination_id=destination_id))
        # Its end may have been reported before it was known as the destination.
        if not _is_here(asterisk, destination_id):
            self.flow.report(call, facts.DestinationGone(destination_id=destination_id))
        return True


def destination(asterisk: ari.Ari, naming: Naming, call: Call) -> str | None:
    """Return the leg in a call's bridge that the platform has transferred the caller to; None if there is none."""
    bridge = asterisk.bridge(naming.bridge_id(call))
    if bridge is None or call.leg_id not in bridge.channels:
        return None
    others = sorted(leg for leg in bridge.channels - {call.leg_id} if ids.parse(leg) is None)
    return next((leg for leg in others[:_LOOKED_AT] if _is_here(asterisk, leg)), None)


def _is_here(asterisk: ari.Ari, leg_id: str) -> bool:
    """True if a leg is in the app, and came for a transfer."""
    leg = asterisk.channel(leg_id)
    return leg is not None and leg.stasis_app == asterisk.app and stasis_args.is_transfer(leg.stasis_args)
