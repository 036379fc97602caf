"""The steps `admission` and `runs`: a caller is admitted or refused; an admitted call gets its workflow run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared import errors
from shared.call import facts, ids, quota_rules, stasis_args
from shared.call.calls import Call
from shared.call.legs import Attempt, Naming
from shared.call.limits import Limits
from shared.call.states import Cause, Direction
from shared.call.steps import Step
from shared.platform.ports import NoRoute, Route, Routes, Runs
from shared.storage import quotas
from shared.storage.connections import InboundTarget
from workers.asterisks import Asterisks
from workers.claims import Claim, StepWork
from workers.step_ports import Connections, Quota, Slots

#: The states of a leg that is answered, or that rings here and is answered by this product.
_ANSWERABLE = frozenset({"Up", "Ring"})


@dataclass(frozen=True, kw_only=True)
class Admission(StepWork):
    """Admits a caller by tenant, route, quota and slots, and creates the run, in one transaction."""

    connections: Connections
    routes: Routes
    quota: Quota
    slots: Slots
    slot_count: quotas.SlotCount
    runs: Runs
    asterisks: Asterisks
    naming: Naming
    limits: Limits

    def is_quick(self, call: Call) -> bool:
        # The end of a later entry finds the entry before, while this one is not written: that one is written first.
        return call.direction is Direction.INBOUND and call.entry == 1 and not self.quota.asks_network

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        call = claim.call
        target = claim.arrival.target if claim.arrival is not None else self._target(call)
        if target.served_by is None:
            return (facts.Refused(reason=target.reason, hangup_cause=Cause.CONGESTION),)
        if call.direction is Direction.OUTBOUND:
            return self._attach_run(claim)
        route = claim.arrival.route if claim.arrival is not None else None
        if route is None:
            route = self.routes.inbound(target.organization_id)
        refusal = self._refusal(claim, route, target.quota)
        if refusal is not None or isinstance(route, NoRoute):
            assert refusal is not None, "without a route there is a refusal"
            return (replace(refusal, continue_in_dialplan=route.continue_in_dialplan),)
        slots = self.slots.among(target.quota.concurrent_calls, route.concurrent_calls)
        db = claim.begin()
        refusal = quotas.no_free_slot(self.slot_count, db, call.organization_id, slots)
        if refusal is not None:
            return (replace(refusal, continue_in_dialplan=route.continue_in_dialplan),)
        admitted = facts.Admitted(
            workflow_id=route.workflow_id,
            user_id=route.user_id,
            media_client=route.settings.media_client,
            call_seconds=route.settings.call_seconds,
        )
        if not claim.leads_to(Step.RUNS):
            return (admitted,)
        run_id = self.runs.create(
            db,
            claim.after(admitted),
            first_attempt=_first_attempt(self.naming, claim),
            reserved_id=route.reserved_run_id,
        )
        return admitted, facts.RunCreated(workflow_run_id=run_id)

    def _target(self, call: Call) -> InboundTarget:
        target = self.connections.inbound_target(call.connection)
        assert target is not None, "a call's connection version is never deleted"
        return target

    def _refusal(self, claim: Claim, route: Route | NoRoute, quota: quota_rules.Quota) -> facts.Refused | None:
        """Return why an inbound call may not be served, slots aside; None when it may."""
        waited_seconds = claim.arrival.waited_seconds if claim.arrival is not None else 0.0
        if waited_seconds > self.limits.stale_start_seconds:
            return facts.Refused(reason=f"received {waited_seconds:.1f} s late", hangup_cause=Cause.CONGESTION)
        if isinstance(route, NoRoute):
            return facts.Refused(reason=route.reason, hangup_cause=route.hangup_cause)
        user_id = route.user_id
        return claim.ask_once(
            "quota", lambda: self.quota.refusal(claim.call, user_id=user_id, budget=claim, quota=quota)
        )

    def _attach_run(self, claim: Claim) -> Sequence[facts.Fact]:
        """Serve a leg that the platform originated. It has passed the platform's quota, and its run waits for it."""
        try:
            args = stasis_args.read(claim.call.args)
        except errors.InvalidStasisArgs as exc:
            return (facts.Refused(reason=str(exc), hangup_cause=Cause.NOT_ALLOWED),)
        unserved = claim.ask_once("leg", lambda: self._leg_not_to_serve(claim))
        if unserved is not None:
            return (unserved,)
        db = claim.begin()
        route = self.runs.attach(db, claim.call, args)
        if isinstance(route, NoRoute):
            return (
                facts.Refused(
                    reason=route.reason,
                    hangup_cause=route.hangup_cause,
                    continue_in_dialplan=route.continue_in_dialplan,
                ),
            )
        return (
            facts.RunAttached(
                workflow_id=route.workflow_id,
                user_id=route.user_id,
                media_client=route.settings.media_client,
                call_seconds=route.settings.call_seconds,
                workflow_run_id=args.workflow_run_id,
            ),
        )

    def _leg_not_to_serve(self, claim: Claim) -> facts.Fact | None:
        """Return why a leg that the platform originated is not to be served; None when it is."""
        call = claim.call
        asterisk = self.asterisks.of(call, claim)
        leg, is_in_app = asterisk.channel_and_place(call.channel_id)
        if leg is None or leg.created != call.channel_created:
            return facts.CallerGone()
        if not is_in_app:
            return facts.CallerLeft()
        if leg.state not in _ANSWERABLE:
            # Ringing and early media are no answer: the agent would talk to an empty line.
            reason = f"the far end has not answered: {leg.state}"
            return facts.Refused(reason=reason, hangup_cause=Cause.NOT_ALLOWED)
        return None


@dataclass(frozen=True, kw_only=True)
class RunCreation(StepWork):
    """Creates the run of a call that was admitted by a pool that does not serve this step."""

    runs: Runs
    naming: Naming

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        run_id = self.runs.create(claim.begin(), claim.call, first_attempt=_first_attempt(self.naming, claim))
        return (facts.RunCreated(workflow_run_id=run_id),)


def _first_attempt(naming: Naming, claim: Claim) -> Attempt | None:
    """Return the ids of the first attempt; None if another worker will draw its nonce."""
    is_drawn_here = claim.leads_to(Step.MEDIA) or not ids.has_nonces(claim.call.id_prefix)
    return naming.attempt(claim.call, 1, claim.nonce) if is_drawn_here else None
