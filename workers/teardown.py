"""The step `teardown`: end the run, remove the legs and the bridge of every attempt, verify that they are gone.

It works from the call's row alone, at any moment of the set-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared import errors
from shared.asterisk import ari
from shared.call import facts
from shared.call.calls import Call
from shared.call.legs import Naming
from shared.platform.ports import Runs
from shared.storage.call_store import CallStore
from workers.asterisks import Asterisks
from workers.claims import Claim, StepWork
from workers.parallel import InParallel

#: The pauses before each look for a channel that was hung up: it takes a few ms to go, and about 1 s while its media
#: still connects (measured).
_LOOKS = (0.0, 0.05, 0.2, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Teardown(StepWork):
    """Ends a call: its run, its legs, its bridges."""

    asterisks: Asterisks
    in_parallel: InParallel
    naming: Naming
    runs: Runs
    store: CallStore

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        call = claim.call
        # The run ends without waiting for an Asterisk, and the legs go without waiting for the run, whose row the
        # platform may have locked.
        pending = [self._end_run(call)]
        try:
            pending.append(self._remove_all(self.asterisks.of(call, claim), claim))
        except errors.PipelineError as exc:
            pending.append(str(exc))
        if reason := "; ".join(text for text in pending if text):
            return (facts.RemovalPending(reason=reason),)
        if call.in_doubt_until is not None and self.store.now() < call.in_doubt_until:
            reason = "a request of unknown outcome may still take effect"
            return (facts.RemovalPending(reason=reason, not_before=call.in_doubt_until),)
        return (facts.LegsRemoved(),)

    def _end_run(self, call: Call) -> str:
        """End the run; return why that failed."""
        try:
            self.runs.end(call, media_id=self.naming.media_id(call), bridge_id=self.naming.bridge_id(call))
        except errors.PipelineError as exc:
            return f"the run is not ended: {exc}"
        return ""

    def _remove_all(self, asterisk: ari.Ari, claim: Claim) -> str:
        """Remove everything the call may have left; return what could not be verified gone."""
        call = claim.call
        removals: list[Callable[[], None]] = []
        for attempt in self.naming.attempts(call):
            removals += [_Removal(asterisk, leg, claim) for leg in attempt.legs.values()]
            removals.append(_BridgeRemoval(asterisk, attempt.bridge_id))
        if not call.caller_left:
            removals.append(_caller_removal(asterisk, call, claim))
        if not removals:
            return ""
        failures = [result for result in self.in_parallel(*removals) if isinstance(result, errors.PipelineError)]
        return "; ".join(str(failure) for failure in failures)


def _caller_removal(asterisk: ari.Ari, call: Call, claim: Claim) -> Callable[[], None]:
    if call.is_unanswered:
        return _Removal(asterisk, call.channel_id, claim, call.hangup_cause)
    return (_ContinueInDialplan if call.continue_in_dialplan else _CallerRemoval)(asterisk, call, claim)


class _Removal:
    """Hangs a channel up and verifies that it is gone. Raises a PipelineError when it is not."""

    def __init__(self, asterisk: ari.Ari, channel_id: str, claim: Claim, cause: int | None = None) -> None:
        self._asterisk = asterisk
        self._channel_id = channel_id
        self._claim = claim
        self._cause = cause

    def __call__(self) -> None:
        if not self._asterisk.hang_up(self._channel_id, self._cause):
            return
        for pause in _LOOKS:
            self._claim.pause(pause)
            if self._asterisk.channel(self._channel_id) is None:
                return
        raise errors.TransientError(f"channel {self._channel_id} was hung up and is still there")


class _CallerRemoval(_Removal):
    """Hangs the caller up if its leg is still in the app: anywhere else it must not be touched."""

    def __init__(self, asterisk: ari.Ari, call: Call, claim: Claim) -> None:
        super().__init__(asterisk, call.channel_id, claim, call.hangup_cause)
        self._call = call

    def __call__(self) -> None:
        if self._is_in_app():
            super().__call__()

    def _is_in_app(self) -> bool:
        leg = self._asterisk.channel(self._channel_id)
        return leg is not None and leg.created == self._call.channel_created and leg.stasis_app == self._asterisk.app


class _ContinueInDialplan(_CallerRemoval):
    """Lets a refused caller continue in the dialplan, with the reason in channel variables; verifies that it left."""

    def __call__(self) -> None:
        if not self._is_in_app():
            return
        variables = {
            "AIP_OUTCOME": self._call.outcome,
            "AIP_REASON": self._call.reason,
            "AIP_CAUSE": self._call.hangup_cause,
        }
        for name, value in variables.items():
            self._asterisk.set_variable(self._channel_id, name, str(value))
        self._asterisk.continue_in_dialplan(self._channel_id)
        for pause in _LOOKS:
            self._claim.pause(pause)
            if not self._is_in_app():
                return
        raise errors.TransientError(f"channel {self._channel_id} was continued in the dialplan and is still in the app")


class _BridgeRemoval:
    """Removes a bridge; the answer is proof."""

    def __init__(self, asterisk: ari.Ari, bridge_id: str) -> None:
        self._asterisk = asterisk
        self._bridge_id = bridge_id

    def __call__(self) -> None:
        self._asterisk.remove_bridge(self._bridge_id)
