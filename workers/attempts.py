"""Attempts as ordered by message: begin one, check on its media leg, remove one that no longer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog

from shared import errors, messages
from shared.asterisk import ari_requests, events
from shared.asterisk.rest import Request
from shared.call import commands, facts, faults, transitions
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import State
from shared.call.steps import Step
from shared.storage.call_writer import CallWriter
from workers import media
from workers.asterisks import Asterisks
from workers.claims import TimedBudget, no_answer
from workers.flow import Flow
from workers.step_ports import SendLater

log = structlog.stdlib.get_logger(__name__)

#: Bounds the look at an attempt of unknown outcome, before the next one begins.
_LOOK_SECONDS = 2.0
#: After this an Asterisk whose circuit breaker is open is tried again for a call that waits.
_POSTPONE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """Carries out the commands about attempts."""

    flow: Flow
    writer: CallWriter
    asterisks: Asterisks
    naming: Naming
    send_later: SendLater

    def start(self, *, call_id: UUID, attempt: int) -> None:
        """Begin an attempt, unless it was begun before: its requests may have been made, and must not be repeated."""
        call = self.writer.store.load(call_id)
        if call is None or call.state is not State.PREPARED or attempt != call.attempt + 1:
            return
        try:
            self._require_answer(call)
        except errors.AsteriskUnreachable as exc:
            self._postpone(call, attempt, exc)
            return
        try:
            found = self._found(call) if attempt > 1 else ()
        except errors.AsteriskUnreachable as exc:
            # A new attempt would remove the legs of the one before, which may be joined.
            self._postpone(call, attempt, exc)
            return
        if found:
            # The attempt before took effect; only the answer, or the worker that waited for it, was lost.
            self.flow.report(call, *found)
            return
        nonce = self.writer.new_nonce(call)
        begun = transitions.media_leg.begin(call, self.writer.store.now(), self.writer.limits, nonce)
        self.flow.report(call, begun, ordered=Step.MEDIA)

    def check(self, *, call_id: UUID, attempt: int) -> None:
        """Ask whether the media leg is ready, still connecting, or gone: its StasisStart is overdue."""
        call = self.writer.store.load(call_id)
        if call is None or call.state is not State.PREPARED or call.attempt != attempt or not call.legs_created:
            return
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        asterisk = self.asterisks.of(call, budget)
        try:
            leg = asterisk.channel(self.naming.media_id(call))
        except errors.AsteriskUnreachable as exc:
            # The deadline orders another check, and ends the call when there have been enough.
            log.info("media leg not checked", call=str(call_id), reason=str(exc))
            self._hindered(call, no_answer(exc))
            return
        finally:
            self.writer.store.append_timeline(budget.timeline(), call=call)
        if leg is None:
            self.flow.report(
                call, facts.MediaGone(attempt=attempt, nonce=call.nonce, reason="media leg is gone", is_found=True)
            )
        elif leg.stasis_app == asterisk.app:
            self.flow.report(call, facts.MediaReady(attempt=attempt, nonce=call.nonce))
        else:
            self._hindered(call, faults.NOT_ACCEPTED)

    def _hindered(self, call: Call, obstacle: str) -> None:
        """Tell the call what it waits for, once; another process that has written it since knows better."""
        kind = obstacle.partition(":")[0]
        if kind != (call.obstacle or "").partition(":")[0]:
            hindered = facts.Hindered(state=call.state, obstacle=obstacle)
            self.writer.record(call, hindered, retry_on_conflict=False)

    def remove(self, *, call_id: UUID, attempt: int, nonce: str = "") -> None:
        """Remove what an attempt that does not count has left."""
        call = self.writer.store.load(call_id)
        if call is None:
            return
        budget = TimedBudget(self.writer, 2 * self.writer.limits.request_seconds)
        try:
            # What is not removed now is removed by the call's teardown, or by the resync.
            media.remove(self.asterisks.of(call, budget), self.naming.attempt(call, attempt, nonce))
        finally:
            self.writer.store.append_timeline(budget.timeline(), call=call)

    def _require_answer(self, call: Call) -> None:
        """Raise AsteriskUnreachable while the circuit breaker is open; probe with a GET when it is half-open.

        Raise PermanentError when the Asterisk is not known. Neither costs the call an attempt.
        """
        budget = TimedBudget(self.writer, self.writer.limits.request_seconds)
        asterisk = self.asterisks.of(call, budget)
        if asterisk.must_probe:
            try:
                asterisk.channel(call.leg_id)
            finally:
                self.writer.store.append_timeline(budget.timeline(), call=call)

    def _postpone(self, call: Call, attempt: int, failure: errors.AsteriskUnreachable) -> None:
        """Send the command again after a moment, unless the sweep does so by then: there is one, and not for ever."""
        log.info("media postponed", call=str(call.call_id), reason=str(failure))
        self._hindered(call, no_answer(failure))
        again_at = self.writer.store.now() + timedelta(seconds=_POSTPONE_SECONDS)
        if call.deadline_at is not None and again_at < call.deadline_at:
            command = commands.StartMedia(call_id=call.call_id, attempt=attempt)
            message = messages.of_command(command, connection_id=call.connection_id)
            self.send_later(message, timedelta(seconds=_POSTPONE_SECONDS))

    def _found(self, call: Call) -> Sequence[facts.Fact]:
        """Return what is there of the call's newest attempt, if both leg and bridge are; and if the leg is ready.

        Raises AsteriskUnreachable when that is not known.

        If only the bridge is missing it is created now: the agent is on the line, and would accept no second leg for
        the run. A second request for a bridge, unlike one for a leg, is answered 409.
        """
        budget = TimedBudget(self.writer, _LOOK_SECONDS)
        asterisk = self.asterisks.of(call, budget)
        media_id, bridge_id = self.naming.media_id(call), self.naming.bridge_id(call)
        looks: list[Request[object]] = [ari_requests.channel(media_id), ari_requests.bridge(bridge_id)]
        leg, bridge = asterisk.together(*looks)
        for result in (leg, bridge):
            if isinstance(result, errors.AsteriskUnreachable):
                self.writer.store.append_timeline(budget.timeline(), call=call)
                raise result
        if leg is None:
            # The next attempt begins, and its row says so: a look that found no leg has none.
            return ()
        has_bridge = is_complete = isinstance(bridge, ari_requests.Bridge)
        if isinstance(leg, events.Channel) and bridge is None:
            (created,) = asterisk.together(ari_requests.create_bridge(bridge_id))
            if isinstance(created, errors.AsteriskUnreachable):
                # It may be there: the next look tells.
                self.writer.store.append_timeline(budget.timeline(), call=call)
                raise created
            has_bridge = created is None
        self.writer.store.append_timeline(budget.timeline(), call=call)
        if not isinstance(leg, events.Channel) or not has_bridge:
            return ()
        # Its StasisStart may have been lost along with the worker.
        is_ready = leg.stasis_app == asterisk.app
        found = facts.LegsFound(attempt=call.attempt, nonce=call.nonce, is_complete=is_complete)
        return (found, facts.MediaReady(attempt=call.attempt, nonce=call.nonce)) if is_ready else (found,)
