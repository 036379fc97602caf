"""The steps `admission` and `runs`: a caller is admitted or refused; an admitted call gets its workflow run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from shared import errors
from shared.call import facts, ids, quota_rules, stasis_args
from shared.call.calls import Call
from shared.call.legs import Attempt, Naming, Role
from shared.call.limits import Limits
from shared.call.states import Cause, Direction
from shared.call.steps import Step
from shared.platform.ports import NO_PLATFORM_SLOTS, NoRoute, PlatformSlots, Route, Routes, Runs, SlotAnswer
from shared.storage import database, quotas
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
    platform_slots: PlatformSlots = NO_PLATFORM_SLOTS
    #: A caller is refused while the platform's count of calls gives no answer.
    refuses_uncounted: bool = False

    def is_quick(self, call: Call) -> bool:
        # The end of a later entry finds the entry before, while this one is not written: that one is written first.
        return call.direction is Direction.INBOUND and call.entry == 1 and not self.quota.asks_network

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        happened = self._judged(claim)
        if isinstance(happened[0], facts.Refused) and claim.arrival is not None and claim.arrival.check is not None:
            raise errors.RowChanged("what is assumed refuses nobody")
        return happened

    def _judged(self, claim: Claim) -> Sequence[facts.Fact]:
        call = claim.call
        target = claim.arrival.target if claim.arrival is not None else self._target(call)
        if target.served_by is None:
            return (facts.Refused(reason=target.reason, hangup_cause=Cause.CONGESTION),)
        if call.direction is Direction.OUTBOUND:
            return self._attach_run(claim)
        route = claim.arrival.route if claim.arrival is not None else None
        if route is None:
            route = self.routes.inbound(target.served_by.connection_id, call.called_number)
        about_run = self.quota.is_about_runs()
        refusal = self._refusal(claim, route, target.quota, about_run=about_run)
        if refusal is not None or isinstance(route, NoRoute):
            assert refusal is not None, "without a route there is a refusal"
            return (replace(refusal, continue_in_dialplan=route.continue_in_dialplan),)
        return self._admit(claim, route, target.quota.concurrent_calls, about_run=about_run)

    def _admit(self, claim: Claim, route: Route, own_limit: int | None, *, about_run: bool) -> Sequence[facts.Fact]:
        """Take a slot, and create the run."""
        slots = self._slots(claim, route, own_limit)
        if isinstance(slots, facts.Refused):
            return (replace(slots, continue_in_dialplan=route.continue_in_dialplan),)
        db = claim.begin()
        if claim.arrival is not None and claim.arrival.check is not None:
            claim.arrival.check(db)
        refusal = quotas.no_free_slot(self.slot_count, db, claim.call.organization_id, slots)
        if refusal is not None:
            return (replace(refusal, continue_in_dialplan=route.continue_in_dialplan),)
        admitted = facts.Admitted(
            workflow_id=route.workflow_id,
            user_id=route.user_id,
            media_client=route.settings.media_client,
            call_seconds=route.settings.call_seconds,
        )
        return self._with_run(claim, db, admitted, route, about_run=about_run)

    def _with_run(
        self, claim: Claim, db: database.Connection, admitted: facts.Admitted, route: Route, *, about_run: bool
    ) -> Sequence[facts.Fact]:
        """Create the run in the admitting transaction, unless that is for another pool; return all facts.

        Args:
            about_run: The next step asks the quota about the run, and finds it: it makes no second one, however often
                it is begun.
        """
        if about_run:
            run_id = self.runs.create(db, claim.after(admitted), reserved_id=route.reserved_run_id)
            return (replace(admitted, workflow_run_id=run_id),)
        if not claim.leads_to(Step.RUNS):
            return (admitted,)
        admitted_call, reserved_id = claim.after(admitted), route.reserved_run_id
        run_id = _create_run(self.runs, self.naming, claim, db, admitted_call, reserved_id=reserved_id)
        return admitted, facts.RunCreated(workflow_run_id=run_id)

    def _target(self, call: Call) -> InboundTarget:
        target = self.connections.inbound_target(call.connection)
        assert target is not None, "a call's connection version is never deleted"
        return target

    def _refusal(
        self, claim: Claim, route: Route | NoRoute, quota: quota_rules.Quota, *, about_run: bool
    ) -> facts.Refused | None:
        """Return why an inbound call may not be served, slots aside; None when it may."""
        waited_seconds = claim.arrival.waited_seconds if claim.arrival is not None else 0.0
        if waited_seconds > self.limits.stale_start_seconds:
            # Of a channel that has a call already, the Asterisk is asked first, until it answers.
            asked = ", its Asterisk was asked first" if claim.call.entry > 1 else ""
            return facts.Refused(reason=f"received {waited_seconds:.1f} s late{asked}", hangup_cause=Cause.CONGESTION)
        if isinstance(route, NoRoute):
            return facts.Refused(reason=route.reason, hangup_cause=route.hangup_cause)
        if about_run:
            return None
        user_id = route.user_id
        refusal = claim.ask_once(
            "quota", lambda: self.quota.refusal(claim.call, user_id=user_id, budget=claim, quota=quota)
        )
        return replace(refusal, limit="quota") if refusal is not None else None

    def _slots(self, claim: Claim, route: Route, own: int | None) -> int | facts.Refused | None:
        """Return by how many slots our own calls are counted, once the platform has given this one a slot; or why not.

        No lock is held meanwhile. What the platform does not count, we do.
        """
        if not route.shares_slots:
            return self.slots.among(own, route.concurrent_calls)
        match claim.ask_once("slot", lambda: self._take_slot(claim, route)):
            case SlotAnswer.TAKEN:
                return own if route.concurrent_calls is not None else self.slots.among(own, None)
            case SlotAnswer.FULL:
                reason = f"too many concurrent calls: the platform's {route.concurrent_calls} slots are in use"
                return facts.Refused(reason=reason, hangup_cause=Cause.BUSY, limit="platform-slots")
            case _ if self.refuses_uncounted:
                reason = "the platform's Redis gives no answer (PLATFORM_SLOTS_UNREACHABLE)"
                return facts.Refused(reason=reason, hangup_cause=Cause.CONGESTION)
        return self.slots.among(own, route.concurrent_calls)

    def _take_slot(self, claim: Claim, route: Route) -> SlotAnswer:
        attempt = _first_attempt(self.naming, claim) if route.reserved_run_id is not None else None
        return self.platform_slots.take(
            claim.call,
            limit=route.concurrent_calls,
            run_id=route.reserved_run_id,
            media_id=attempt.legs[Role.MEDIA] if attempt is not None else None,
        )

    def recorded(self, call: Call, named: Collection[str] = ()) -> None:
        # Only now is it known that the run which the leg names is its organization's.
        if call.direction is Direction.OUTBOUND and call.workflow_run_id is not None:
            self.platform_slots.bind(call, media_ids=())

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
                caller_number=route.caller_number,
                called_number=route.called_number,
            ),
        )

    def _leg_not_to_serve(self, claim: Claim) -> facts.Fact | None:
        """Return why a leg that the platform originated is not to be served; None when it is."""
        call = claim.call
        asterisk = self.asterisks.of(call, claim)
        leg, is_in_app = asterisk.channel_and_place(call.leg_id)
        if leg is None or not call.is_leg(leg.id, leg.created):
            return facts.CallerGone(leg_id=call.leg_id)
        if not is_in_app:
            return facts.CallerLeft(leg_id=call.leg_id, is_up=True)
        if leg.state not in _ANSWERABLE:
            # Ringing and early media are no answer: the agent would talk to an empty line.
            reason = f"the far end has not answered: {leg.state}"
            return facts.Refused(reason=reason, hangup_cause=Cause.NOT_ALLOWED)
        return None


@dataclass(frozen=True, kw_only=True)
class RunCreation(StepWork):
    """Creates the run of a call that was admitted by a pool that does not serve this step; or asks the quota about it.

    A call that has its run was admitted under a quota that is asked about runs, whatever it is like by now.
    """

    runs: Runs
    naming: Naming
    quota: Quota
    routes: Routes

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        run_id = claim.call.workflow_run_id
        if run_id is not None:
            refusal = claim.ask_once("quota", lambda: self._refusal(claim))
            return (refusal or facts.RunCreated(workflow_run_id=run_id),)
        run_id = _create_run(self.runs, self.naming, claim, claim.begin(), claim.call)
        return (facts.RunCreated(workflow_run_id=run_id),)

    def _refusal(self, claim: Claim) -> facts.Refused | None:
        call = claim.call
        refusal = self.quota.authorization(call, budget=claim)
        if refusal is None:
            return None
        route = self.routes.inbound(call.connection_id, call.called_number)
        return replace(refusal, continue_in_dialplan=route.continue_in_dialplan, limit="quota")


def _create_run(
    runs: Runs, naming: Naming, claim: Claim, db: database.Connection, call: Call, *, reserved_id: int | None = None
) -> int:
    """Create the run of a call in the claim's transaction, with the ids of the first attempt if they are known."""
    attempt = _first_attempt(naming, claim)
    if attempt is not None:
        claim.named = (call.leg_id, *attempt.legs.values(), attempt.bridge_id)
    return runs.create(db, call, first_attempt=attempt, reserved_id=reserved_id)


def _first_attempt(naming: Naming, claim: Claim) -> Attempt | None:
    """Return the ids of the first attempt; None if another worker will draw its nonce."""
    is_drawn_here = claim.leads_to(Step.MEDIA) or not ids.has_nonces(claim.call.id_prefix)
    return naming.attempt(claim.call, 1, claim.nonce) if is_drawn_here else None
