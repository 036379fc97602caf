"""The step `bridge`: the media leg is ready, so the caller is answered and every leg is joined, in parallel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from shared import errors
from shared.asterisk import ari, ari_requests
from shared.asterisk.rest import Request
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.call.states import State
from shared.platform.ports import NO_PLATFORM_SLOTS, PlatformSlots, Runs
from shared.storage.call_store import CallStore
from workers import successors
from workers.asterisks import Asterisks
from workers.claims import Claim, StepWork


@dataclass(frozen=True, kw_only=True)
class Join(StepWork):
    """Answers the caller, puts the call's legs into its bridge, and verifies that they are there."""

    asterisks: Asterisks
    naming: Naming
    runs: Runs
    store: CallStore
    platform_slots: PlatformSlots = NO_PLATFORM_SLOTS
    #: Has Asterisk tell when the parties of a connected call send audio; None if it is not to.
    detect_talking: Callable[[Call], None] | None = None

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        call = claim.call
        if call.replacements and successors.has_own_call(self.store, call, call.leg_id):
            # Both were written at once, and its own call may have joined it.
            return (facts.CallerLeft(leg_id=call.leg_id, is_up=True),)
        asterisk = self.asterisks.of(call, claim)
        try:
            return (self._join(asterisk, call, look_first=not claim.is_continued),)
        except errors.TransientError as exc:
            claim.give_up(exc)
            return ()

    def recorded(self, call: Call, named: Collection[str] = ()) -> None:
        if call.state is State.CONNECTED:
            media_id, bridge_id = self.naming.media_id(call), self.naming.bridge_id(call)
            if call.destination_id is None:
                # After a transfer, when this is repeated, the platform counts the call no more.
                self.platform_slots.bind(call, media_ids=(media_id,))
            if not {call.leg_id, media_id, bridge_id} <= set(named):
                self.runs.note_media(call, media_id=media_id, bridge_id=bridge_id)
            if self.detect_talking is not None:
                # Last: it is nothing that the call needs.
                self.detect_talking(call)

    def _join(self, asterisk: ari.Ari, call: Call, *, look_first: bool) -> facts.Fact:
        # The caller's leg is added last, and its answer is asked for after that: Asterisk adds one leg after the other,
        # and would have the media leg wait for the answer. That takes half a millisecond (measured, 22.10).
        bridge_id, legs = self.naming.bridge_id(call), list(self.naming.legs(call).values())[::-1]
        missing = legs
        if look_first:
            bridge = asterisk.bridge(bridge_id)
            if bridge is None:
                return facts.JoinRefused(attempt=call.attempt, nonce=call.nonce, reason="the bridge is gone")
            # A leg that is in the bridge already would leave and come back, which is heard.
            missing = [leg for leg in legs if leg not in bridge.channels]
        requests: list[Request[bool | None]] = [ari_requests.answer(call.leg_id)]
        if missing:
            requests.insert(0, ari_requests.add_legs(bridge_id, missing))
        # The answer's result first: it tells that the caller is gone.
        for result in reversed(asterisk.together(*requests)):
            if isinstance(result, errors.TransientError):
                raise result
            if isinstance(result, errors.PermanentError):
                return self._fault(asterisk, call, str(result))
            if result is False:
                return facts.CallerGone(leg_id=call.leg_id)
        return self._verify(asterisk, call)

    def _verify(self, asterisk: ari.Ari, call: Call) -> facts.Fact:
        """Both requests succeeding does not mean that every leg is in the bridge: one may have left meanwhile."""
        bridge = asterisk.bridge(self.naming.bridge_id(call))
        if bridge is not None and bridge.channels >= set(self.naming.legs(call).values()):
            return facts.Joined(attempt=call.attempt, nonce=call.nonce)
        return self._fault(asterisk, call, "a leg is not in the bridge")

    def _fault(self, asterisk: ari.Ari, call: Call, answer: str) -> facts.Fact:
        """Return why the legs are not joined, by what is still there."""
        caller, is_in_app = asterisk.channel_and_place(call.leg_id)
        if caller is None:
            return facts.CallerGone(leg_id=call.leg_id)
        if not is_in_app:
            return facts.CallerLeft(leg_id=call.leg_id, is_up=True)
        if asterisk.channel(self.naming.media_id(call)) is None:
            return facts.MediaGone(attempt=call.attempt, nonce=call.nonce, reason="media leg ended while being joined")
        return facts.JoinRefused(attempt=call.attempt, nonce=call.nonce, reason=answer)
