"""The step `originate`: ask Asterisk for the leg to the far end of an outbound call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared import errors
from shared.asterisk import ari
from shared.call import calls, facts, stasis_args
from shared.call.limits import Limits
from shared.call.stasis_args import RunArgs
from shared.storage.call_store import CallStore
from workers.asterisks import Asterisks
from workers.claims import Claim, StepWork, obstacle_of
from workers.step_ports import Quota


@dataclass(frozen=True, kw_only=True)
class Origination(StepWork):
    """Asks for the leg once: that it is about to ask is stored before the request.

    If the outcome stays unknown, the leg is looked for, and never asked for again: the far end may have been rung. The
    id derives from the request. So if a fail-over has lost what was stored, a leg that is there is not dialled again:
    the second request is answered 409.
    """

    asterisks: Asterisks
    quota: Quota
    limits: Limits
    store: CallStore

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        asterisk = self.asterisks.of(claim.call, claim)
        try:
            return (
                self._looked_for(claim, asterisk) if claim.call.is_dial_begun else self._originate(claim, asterisk),
            )
        except errors.TransientError as exc:
            claim.give_up(exc)
            return ()

    def _looked_for(self, claim: Claim, asterisk: ari.Ari) -> facts.Fact:
        """An earlier worker was about to make the request, and did not report back.

        A leg that comes later is hung up by the teardown.
        """
        leg = asterisk.channel(claim.call.channel_id)
        return facts.Originated() if leg is not None else facts.DialLost()

    def _originate(self, claim: Claim, asterisk: ari.Ari) -> facts.Fact:
        call = claim.call
        assert call.dial_endpoint is not None
        assert call.workflow_run_id is not None
        assert call.workflow_id is not None
        assert call.user_id is not None
        args = RunArgs(workflow_run_id=call.workflow_run_id, workflow_id=call.workflow_id, user_id=call.user_id)
        refusal = self._refusal(claim, call.user_id)
        if refusal is not None:
            return replace(refusal, limit="quota")
        begun = facts.DialBegun(in_doubt_until=self.store.now() + self.limits.originate_wait())
        if not claim.note(begun):
            raise errors.TransientError("the call is over, or another worker dials")
        try:
            asterisk.originate(
                call.channel_id,
                endpoint=call.dial_endpoint,
                args=stasis_args.of_leg(args, call.channel_id),
                caller_id=call.caller_number if call.caller_number != calls.UNKNOWN_NUMBER else None,
                ring_seconds=call.ring_seconds or self.limits.ring_seconds,
            )
        except errors.PermanentError as exc:
            return facts.OriginateRefused(reason=str(exc))
        except errors.TransientError as exc:
            if not _was_not_made(exc):
                raise
            return facts.DialUnsent(in_doubt_until=begun.in_doubt_until, reason=obstacle_of(exc) or str(exc))
        return facts.Originated()

    def _refusal(self, claim: Claim, user_id: int) -> facts.Refused | None:
        """Return why the call may not be placed. Its run was created with it."""
        if self.quota.is_about_runs():
            return self.quota.authorization(claim.call, budget=claim)
        return self.quota.refusal(claim.call, user_id=user_id, budget=claim)


def _was_not_made(failure: errors.TransientError) -> bool:
    """True if a request has certainly had no effect, and will have none."""
    if isinstance(failure, errors.AsteriskUnreachable):
        return not failure.may_have_acted
    return isinstance(failure, errors.OutOfTime)
