"""Whether the parties of a connected call send audio, as Asterisk tells it: the function TALK_DETECT on both legs.

It is set once the call is connected and stored, so no caller waits for it. What goes wrong with it changes nothing of
the call: then nothing is claimed of its audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from shared import errors
from shared.asterisk import ari, ari_requests, events
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.legs import Naming, Role
from shared.process import metrics
from shared.storage.call_writer import CallWriter
from shared.storage.timeline import HEARD, TALK_DETECTION, TimelineEntry
from workers.asterisks import Asterisks
from workers.claims import TimedBudget

log = structlog.stdlib.get_logger(__name__)

#: Bounds the requests for one call.
_SECONDS = 1.0
#: The most connection versions of which it is remembered that their filter lets the event through.
_KNOWN = 10_000
_PARTIES = {Role.CALLER: "caller", Role.MEDIA: "agent"}


@dataclass(frozen=True, kw_only=True)
class TalkDetection:
    """Asks for the events, and notes the first one of each leg."""

    writer: CallWriter
    asterisks: Asterisks
    naming: Naming
    #: Whose filter was seen to let the event through. Each is asked for once, then only resyncs change it.
    _known: set[ConnectionVersion] = field(default_factory=set)

    def begin(self, call: Call) -> None:
        """Set the function on the legs of a call that has just been connected, and note on whose it is set.

        Raises nothing of an Asterisk or of Postgres: without the note nothing is claimed.
        """
        if call.destination_id is not None:
            # After a transfer there is no agent.
            return
        budget = TimedBudget(self.writer, _SECONDS)
        try:
            parties = self._set(self.asterisks.of(call, budget), call)
            note = TimelineEntry(kind="note", name=TALK_DETECTION, detail=", ".join(parties), attempt=call.attempt)
            self.writer.store.append_timeline([*budget.timeline(), *([note] if parties else [])], call=call)
        except errors.PipelineError as exc:
            log.info("talk detection not set", reason=str(exc))

    def heard(self, call: Call, leg_id: str, *, age_ms: float) -> None:
        """Note that a leg of a call has sent audio, so long ago; a repeated message changes nothing."""
        if call.connected_at is None or call.destination_id is not None:
            # Set by another client, or on another call's behalf.
            return
        party = next((party for role, party in _PARTIES.items() if self.naming.legs(call).get(role) == leg_id), None)
        if party is None:
            return
        heard_at = self.writer.store.now() - timedelta(milliseconds=age_ms)
        seconds = max(0.0, (heard_at - call.connected_at).total_seconds())
        entry = TimelineEntry(kind="note", name=HEARD[party], detail=f"after {seconds:.3f} s", attempt=call.attempt)
        if self.writer.store.append_once(entry, call=call):
            metrics.FIRST_AUDIO.observe(seconds, party)

    def _set(self, asterisk: ari.Ari, call: Call) -> Sequence[str]:
        """Return the parties on whose legs the function is set."""
        if not self._is_let_through(asterisk, call.connection):
            return ()
        legs = {_PARTIES[role]: leg for role, leg in self.naming.legs(call).items() if role in _PARTIES}
        results = asterisk.together(*(ari_requests.detect_talking(leg) for leg in legs.values()))
        for result in results:
            if isinstance(result, errors.PipelineError):
                log.info("talk detection refused", reason=str(result))
        return sorted(party for party, result in zip(legs, results, strict=True) if result is True)

    def _is_let_through(self, asterisk: ari.Ari, connection: ConnectionVersion) -> bool:
        """True if the app's event filter lets the event through. One of before the setting was changed does not."""
        if connection in self._known:
            return True
        application = asterisk.application()
        if application is None:
            return False
        if not application.allowed:
            # Asterisk was started just now: there is no filter yet.
            return True
        is_let_through = events.EventType.CHANNEL_TALKING_STARTED in application.allowed
        if is_let_through:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known.add(connection)
        return is_let_through
