"""The step `originate`: ask Asterisk for the leg to the far end of an outbound call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared import errors
from shared.call import calls, facts
from shared.call.limits import Limits
from shared.call.stasis_args import RunArgs
from workers.asterisks import Asterisks
from workers.claims import Claim, StepWork
from workers.step_ports import Quota


@dataclass(frozen=True, kw_only=True)
class Origination(StepWork):
    """Originates the leg. Its id derives from the request: a second request for it is answered 409."""

    asterisks: Asterisks
    quota: Quota
    limits: Limits

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        try:
            return (self._originate(claim),)
        except errors.TransientError as exc:
            claim.give_up(str(exc))
            return ()

    def _originate(self, claim: Claim) -> facts.Fact:
        call = claim.call
        assert call.dial_endpoint is not None
        assert call.workflow_run_id is not None
        assert call.workflow_id is not None
        assert call.user_id is not None
        args = RunArgs(workflow_run_id=call.workflow_run_id, workflow_id=call.workflow_id, user_id=call.user_id)
        asterisk = self.asterisks.of(call, claim)
        if call.step_retries and asterisk.channel(call.channel_id) is not None:
            # An earlier worker made the request and did not report back.
            return facts.Originated()
        refusal = self.quota.refusal(call, user_id=call.user_id, budget=claim)
        if refusal is not None:
            return refusal
        try:
            asterisk.originate(
                call.channel_id,
                endpoint=call.dial_endpoint,
                args=str(args),
                caller_id=call.caller_number if call.caller_number != calls.UNKNOWN_NUMBER else None,
                ring_seconds=call.ring_seconds or self.limits.ring_seconds,
            )
        except errors.PermanentError as exc:
            return facts.OriginateRefused(reason=str(exc))
        return facts.Originated()
