"""What must hold: checked at each change of a call, after the last fault, and at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

import greenlet

from shared.asterisk import rest
from shared.call import facts, ids
from shared.call.calls import Call, Change
from shared.call.legs import Role
from shared.call.limits import Limits
from shared.call.states import Direction, Outcome, State
from simulator import channels
from tests.simulation import blame
from tests.simulation.asterisks import NAMING, PREFIX, Asterisk, has_stalled
from tests.simulation.callers import Caller
from tests.simulation.platform_redis import PlatformSlots
from tests.simulation.platform_slots import SlotInvariants
from tests.simulation.platforms import Quota, Runs, Tenant, first_of
from tests.simulation.rows import Row
from tests.simulation.stores import MemoryStore
from tests.simulation.world import EPOCH, Fiber, World
from workers.claims import Claim

#: After the last fault every caller has an agent, or has been hung up, within this time.
RECOVERY_SECONDS = 110.0
#: Once all callers have hung up, nothing is left after this time, without help from a sweep or a resync.
ENDING_SECONDS = 3.0
_LIMITS = Limits()
#: From entering Stasis to the agent, with a good agent and without faults.
_PROMPT_SECONDS = 1.0
#: Number dialled and hang-up cause → how the call of a leg came out that was not answered.
_UNANSWERED = {
    ("busy", 0): (Outcome.BUSY, "busy"),
    ("congestion", 0): (Outcome.FAILED, "congestion"),
    ("reject", 21): (Outcome.FAILED, "rejected"),
    ("ring", 19): (Outcome.NO_ANSWER, "not answered"),
}
#: The events that are stored although another worker has claimed the call.
_EVENTS = frozenset({"caller_entered", "far_end_answered", "media_leg_ready", "leg_ended", "dial_ended"})
#: The channel states of a caller or far end who may get an agent: answered, or a caller whom the product answers.
_ON_THE_LINE = frozenset({"Up", "Ring"})


class Invariants:
    """Checks an environment, and reports violations to the world.

    Args:
        slots: Each tenant's slots; None for any number.
    """

    def __init__(
        self,
        world: World,
        store: MemoryStore,
        runs: Runs,
        tenants: list[Tenant],
        quota: Quota,
        *,
        slots: int | None,
    ) -> None:
        self._world = world
        self._quota = quota
        self._store = store
        self._runs = runs
        self._tenants = tenants
        self._slots = slots
        self._by_connection = {tenant.connection_id: tenant for tenant in tenants}
        self._names: dict[UUID, str] = {}
        #: Calls that the platform has begun, and when the run of each was attached.
        self._run_attached: dict[UUID, datetime] = {}
        #: The ids of legs and bridges that were stored, and of those the legs that were dialled.
        self._stored: set[str] = set()
        self._dialled: set[str] = set()
        #: Legs of which a fail-over has forgotten that they were about to be dialled: a request that is under way, and
        #: that no row knows of, may yet take effect.
        self._forgotten_dials: set[str] = set()
        #: Of each request of an organization, the leg that was dialled first.
        self._dialled_for: dict[tuple[int, str | None], str] = {}
        #: Leg → the channel that has taken its place.
        self._successors: dict[str, str] = {}
        #: Of the slots at the platform, if it counts our calls with its own.
        self.slots: SlotInvariants | None = None
        #: The history has no fault: each call must be prompt, and complete at each moment.
        self.is_prompt = False
        #: Called when a call enters a state.
        self.entered: Callable[[Call], None] = lambda _call: None
        for asterisk in dict.fromkeys(tenant.asterisk for tenant in tenants):
            asterisk.named = self.named
            asterisk.agent_lost = self._agent_lost
            asterisk.agent_not_reached = self._agent_not_reached
            asterisk.unanswered = functools.partial(self._unanswered, asterisk)
            asterisk.created = functools.partial(self._created, asterisk)
            asterisk.requested = self._requested
            asterisk.replaced = self._replaced
            asterisk.destination_hung_up = functools.partial(self._destination_hung_up, asterisk)
        store.overruled = self._overruled

    def follow_slots(self, slots: PlatformSlots, limit: int) -> None:
        """Check the slots at the platform, too."""
        self.slots = SlotInvariants(
            self._world, self._store, slots, limit=limit, named=lambda call: self._names[call.call_id],
            check_own=lambda call, slots: self._check_slots(self._names[call.call_id], call, slots),
        )  # fmt: skip

    def own(self, call: Call) -> list[str]:
        """Return the legs and bridges of a call that exist."""
        names = self._by_connection[first_of(call.connection_id)].asterisk.created_by_product()
        return [name for name in names if (own := ids.parse(name)) is not None and own.call_id == call.call_id]

    def named(self, name: str) -> str:
        """Return the name of a channel or bridge in the story."""
        own = ids.parse(name)
        if ids.is_originated(name):
            return f"<leg {name[len(PREFIX) : len(PREFIX) + 4]}>"
        if own is None:
            return name
        kind = "media leg" if own.kind is ids.Kind.MEDIA else "bridge"
        return f"<{kind} {own.attempt} of {self._names.get(own.call_id, '?')}>"

    def changed(self, before: Call | None, after: Call, fact: facts.Fact | None) -> None:
        """Check a change of a call as it is written."""
        world = self._world
        if before is None:
            self._names[after.call_id] = f"call {len(self._names) + 1}"
            self._check_only_call(after)
            self._check_followed(self._names[after.call_id], after)
        name, fiber = self._names[after.call_id], greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        fiber.call_id = after.call_id
        if world.keeps_story:
            came_from = "new" if before is None else before.state
            moved = after.state if before is not None and came_from is after.state else f"{came_from} → {after.state}"
            world.tell(fiber.process.name, "%s: %s by %s", name, moved, fact or fiber.what)
        if fiber.connection_id is not None and first_of(fiber.connection_id) != first_of(after.connection_id):
            world.violation(f"{fiber.what} of connection {fiber.connection_id} changed {name} of another")
        ends = before is not None and before.state is State.CONNECTED and after.state is State.ENDING
        if ends and self._is_healthy(after):
            world.violation(f"{name} is healthy and was ended: {after.reason}")
        entries = self._by_connection[first_of(after.connection_id)].asterisk.entries[after.channel_id]
        if before is None and after.entry > max(1, entries):
            world.violation(f"{name} is entry {after.entry} of {after.channel_id}, which has entered {entries} times")
        if after.request_id is not None:
            self._stored.add(after.channel_id)
        if isinstance(fact, facts.AttemptBegun):
            self._stored |= {NAMING.media_id(after), NAMING.bridge_id(after)}
            self._check_authorized(name, after)
        if isinstance(fact, facts.RunAttached):
            self._run_attached[after.call_id] = self._store.now()
        if isinstance(fact, facts.AttemptBegun) and not has_stalled(fiber):
            self._check_attempt_before(name, after)
        if isinstance(fact, facts.Admitted):
            self._check_admitted(name, after)
        if self.is_prompt:
            self._check_prompt(name, after)
        self._check_fault(name, before, after)
        if before is None or before.state is not after.state:
            self.entered(after)

    def forgotten(self, before: Call, after: Call | None) -> None:
        """Note what a fail-over has made of a call.

        If it has lost that the leg was about to be dialled, nothing but a leg that is still there keeps a worker from
        dialling it again.
        """
        if after is None or (after.state is State.ORIGINATING and not after.is_dial_begun):
            self._dialled.discard(before.channel_id)
            self._forgotten_dials.add(before.channel_id)
            self._dialled_for.pop((before.organization_id, before.request_id), None)

    def _check_fault(self, name: str, before: Call | None, call: Call) -> None:
        """Check that a call that does not end well is told as a fault that there was."""
        if call.outcome is None or (before is not None and before.outcome is not None):
            return
        asterisk = self._by_connection[first_of(call.connection_id)].asterisk
        is_good = call.call_id not in asterisk.badly_served
        if said := blame.objection(call, self._world.inflicted, agent_is_good=is_good):
            self._world.violation(f"{name}: {said}")

    def _check_authorized(self, name: str, call: Call) -> None:
        """Check that a quota that is asked about runs was asked about this one. The platform's calls passed its own."""
        asked = call.workflow_run_id in self._quota.authorized or call.call_id in self._run_attached
        if self._quota.is_about_runs() and not asked:
            self._world.violation(f"{name} gets an agent, and the quota was not asked about its run")

    def _check_only_call(self, call: Call) -> None:
        """Check that there is no other call of the same entry, by whichever connection it came."""
        for row in self._store.rows.values():
            other = row.call
            if other.call_id != call.call_id and _entry(other) == _entry(call):
                name, another = self._names[call.call_id], self._names[other.call_id]
                self._world.violation(f"{name} is another call of the entry of {another}")

    def _check_attempt_before(self, name: str, call: Call) -> None:
        """Check that no attempt begins while the agent of the one before is on the line: it takes no second leg."""
        asterisk = self._by_connection[first_of(call.connection_id)].asterisk
        attempt = NAMING.attempt(call, call.attempt - 1)
        leg = asterisk.channels.get(attempt.legs[Role.MEDIA])
        if leg is None or leg.app is None or attempt.bridge_id not in asterisk.bridges:
            return
        # It may have come since the look for it.
        seconds = self._world.now - asterisk.added_at[leg.id]
        if seconds > _PROMPT_SECONDS:
            self._world.violation(f"{name} begins attempt {call.attempt}, and has an agent for {seconds:.1f} s")

    def _check_admitted(self, name: str, call: Call) -> None:
        if self._slots is not None:
            self._check_slots(name, call, self._slots)
        if self.slots is not None:
            self.slots.admitted(call)

    def _check_slots(self, name: str, call: Call, slots: int) -> None:
        """Check the slots after an admission. The platform's calls are never refused, and may come after the count."""
        counted_at = self._store.counted_at[call.organization_id]
        since = {call_id for call_id, at in self._run_attached.items() if at >= counted_at}
        taken = self._store.slots_used_now(call.organization_id, besides=since)
        if taken > slots:
            self._world.violation(f"{name} is admitted, and {taken} of {slots} slots are in use")

    def _check_prompt(self, name: str, call: Call) -> None:
        asterisk = self._by_connection[first_of(call.connection_id)].asterisk
        if call.state is State.ENDED:
            for left in self.own(call):
                self._world.violation(f"{name} has ended, and {self.named(left)} still exists")
        is_inbound = call.direction is Direction.INBOUND
        if is_inbound and call.connected_at is not None and call.state is State.CONNECTED:
            seconds = (call.connected_at - call.received_at).total_seconds()
            pauses = sum(_LIMITS.reach_pause(number).total_seconds() for number in range(1, call.attempt))
            if seconds > _PROMPT_SECONDS + call.attempt * asterisk.agent_seconds + pauses:
                self._world.violation(f"{name} took {seconds:.1f} s to be connected")

    def _agent_lost(self, leg_id: str) -> None:
        """Check soon that a call that has lost its agent is over.

        Of an agent that comes and leaves within milliseconds, the end may be told before the beginning. Then it counts
        as not reached, and is tried again before the call is over.
        """
        own = ids.parse(leg_id)
        if self.is_prompt and own is not None:
            call = self._store.rows[own.call_id].call
            is_known = call.media_ready or call.state is not State.PREPARED
            wait = _PROMPT_SECONDS + (0.0 if is_known else _LIMITS.reach_wait().total_seconds())
            self._world.after(wait, lambda: self._check_over(own.call_id))

    def _agent_not_reached(self, leg_id: str) -> None:
        """Check soon that a call whose agent was not reached has another attempt, or is over."""
        own = ids.parse(leg_id)
        if self.is_prompt and own is not None:
            wait = _PROMPT_SECONDS + _LIMITS.reach_pause(own.attempt).total_seconds()
            self._world.after(wait, lambda: self._check_tried_again(own))

    def _unanswered(self, asterisk: Asterisk, channel: channels.Channel, cause: int) -> None:
        """Check soon that the call of a leg that was not answered is over, its run with it, and how they came out."""
        if self.is_prompt:
            number = channel.name.partition("/")[2].rpartition("-")[0]
            expected = _UNANSWERED.get((number, cause))
            self._world.after(_PROMPT_SECONDS + 0.5, lambda: self._check_unanswered(asterisk, channel.id, expected))

    def _check_unanswered(self, asterisk: Asterisk, channel_id: str, expected: tuple[Outcome, str] | None) -> None:
        for row in self._store.rows.values():
            is_here = self._by_connection[first_of(row.call.connection_id)].asterisk is asterisk
            if not is_here or row.call.channel_id != channel_id:
                continue
            name, came_to = self._names[row.call.call_id], (row.call.outcome, row.call.reason)
            if row.call.state is not State.ENDED:
                self._world.violation(f"{name} was not answered, and is {row.call.state}")
            elif expected not in (None, came_to):
                self._world.violation(f"{name} came to {came_to}, and not to {expected}")
        for run in self._runs.rows.values():
            if run.channel_id == channel_id and not run.is_completed:
                self._world.violation(f"run {run.run_id} was not answered, and still waits")
            elif run.channel_id == channel_id and expected not in (None, run.came_to):
                self._world.violation(f"run {run.run_id} came to {run.came_to}, and not to {expected}")

    def _created(self, asterisk: Asterisk, name: str) -> None:
        """Check that what the product has just created was stored before, and is still wanted."""
        own, call = ids.parse(name), self._call_of(asterisk, name)
        if name not in self._stored:
            self._world.violation(f"{self.named(name)} is created, and that is not stored")
        if own is None:
            if name in self._dialled - self._forgotten_dials:
                self._world.violation(f"{self.named(name)} is dialled again")
            self._dialled.add(name)
        if own is None and call is not None:
            first = self._dialled_for.setdefault((call.organization_id, call.request_id), name)
            if first != name:
                self._world.violation(f"{self.named(name)} is dialled for the request of {self.named(first)}")
        if call is None or name in self._forgotten_dials or (own is not None and not NAMING.is_known(call, own)):
            # A fail-over has forgotten it.
            return
        # A step that stalled for longer than its claim does not know. Teardown and resync remove what it creates.
        if call.state is State.ENDED and not has_stalled(greenlet.getcurrent()):
            self._world.violation(f"{self._names[call.call_id]} has ended, and {self.named(name)} is created")
        if own is not None and own.kind is ids.Kind.MEDIA:
            self._check_far_end(asterisk, call)

    def _call_of(self, asterisk: Asterisk, name: str) -> Call | None:
        """Return the call that a media leg, a bridge or a dialled leg is of."""
        own = ids.parse(name)
        if own is not None:
            row = self._store.rows.get(own.call_id)
            return row.call if row is not None else None
        found = (self._store.request_of(at.connection_id, name) for at in self._tenants if at.asterisk is asterisk)
        return next((call for call in found if call is not None), None)

    def _check_far_end(self, asterisk: Asterisk, call: Call) -> None:
        """Check that the agent is not connected before the far end is on the line."""
        name, leg = self._names[call.call_id], asterisk.channels.get(call.channel_id)
        if not asterisk.entries[call.channel_id]:
            self._world.violation(f"{name} has no far end yet, and connects its agent")
        elif leg is not None and leg.state not in _ON_THE_LINE:
            self._world.violation(f"{name} connects its agent, and its far end has not answered: {leg.state}")

    def _requested(self, budget: rest.RequestBudget) -> None:
        """Check that a step makes no request after its claim, even if it stalled before.

        Nor after its worker counted as dead, unless it lived on all the while and cannot know.
        """
        row = self._store.rows.get(budget.call.call_id) if isinstance(budget, Claim) else None
        if row is None or not isinstance(budget, Claim):
            return
        until = row.owners.get(budget.request().owner)
        if until is not None and self._store.now() > until:
            self._world.violation(f"{self._names[row.call.call_id]}: a request of {budget.step} comes after its claim")
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        if budget.request().owner in row.broken and not fiber.process.is_misjudged:
            self._world.violation(f"{self._names[row.call.call_id]}: a request of {budget.step} comes from the dead")

    def _overruled(self, row: Row, changes: Sequence[Change], owner: str) -> None:
        """Check who writes a call that another worker has claimed: an event, or what requests have come to."""
        fiber, fact = greenlet.getcurrent(), changes[0].fact
        assert isinstance(fiber, Fiber)
        is_found = fiber.what == "start_media" and isinstance(fact, facts.LegsCreated)
        is_said = isinstance(fact, facts.Hindered)
        if fiber.what not in _EVENTS and owner not in row.owners and not is_found and not is_said:
            name = self._names[row.call.call_id]
            self._world.violation(f"{name} is claimed, and {fiber.what} writes {type(fact).__name__}")

    def _destination_hung_up(self, asterisk: Asterisk, leg: channels.Channel) -> None:
        """Check that no destination is hung up while its caller talks to it."""
        parties = asterisk.others_in_bridge(leg)
        for row in self._store.rows.values():
            call = row.call
            is_here = self._by_connection[first_of(call.connection_id)].asterisk is asterisk
            talks = any(party.id == call.leg_id for party in parties) and self._is_healthy(call)
            if is_here and call.state is State.CONNECTED and talks:
                self._world.violation(f"{self._names[call.call_id]} talks to {leg.id}, which is hung up")

    def _check_over(self, call_id: UUID) -> None:
        if self._store.rows[call_id].call.state not in (State.ENDING, State.ENDED):
            self._world.violation(f"{self._names[call_id]} goes on without its agent")

    def _check_tried_again(self, own: ids.OwnId) -> None:
        call = self._store.rows[own.call_id].call
        if call.attempt == own.attempt and call.state not in (State.ENDING, State.ENDED):
            self._world.violation(f"{self._names[own.call_id]} neither tries its agent again nor ends")

    def _replaced(self, leg: channels.Channel, successor: channels.Channel, *, is_told_late: bool) -> None:
        """Note that a channel takes the place of a leg. If that has hung up before, its call may be over by then."""
        if not is_told_late:
            self._successors[leg.id] = successor.id

    def _check_followed(self, name: str, call: Call) -> None:
        """Check that no call begins with a channel that has taken the place of the leg of one that goes on."""
        if call.state is State.ENDED:
            # Only recorded: its end was told before its beginning.
            return
        replaced = next((old for old, new in self._successors.items() if new == call.channel_id), None)
        tenant = self._by_connection[first_of(call.connection_id)]
        for row in self._store.rows.values():
            # Another Asterisk may have a channel of the same name.
            is_here = self._by_connection[first_of(row.call.connection_id)] is tenant
            if replaced is not None and is_here and row.call.state is State.CONNECTED and row.call.leg_id == replaced:
                self._world.violation(f"{name} begins with a leg that {self._names[row.call.call_id]} goes on with")

    def _is_healthy(self, call: Call) -> bool:
        """True if caller and agent hear each other in the call's bridge, and the caller has not left since.

        One who was moved to another app hears the agent still, and is not ours any more.
        """
        tenant, leg_id = self._by_connection[first_of(call.connection_id)], call.leg_id
        while leg_id in self._successors:
            leg_id = self._successors[leg_id]
        asterisk, caller = tenant.asterisk, tenant.asterisk.channels.get(leg_id)
        if caller is None or not asterisk.is_with_agent(caller):
            return False
        if leg_id == call.leg_id and not call.is_leg(caller.id, caller.creationtime):
            return False
        if caller.app != tenant.app or caller.bridge_id != NAMING.bridge_id(call):
            return False
        received_at = (call.received_at - EPOCH).total_seconds()
        entered_at = asterisk.entered_at.get((call.channel_id, call.entered_stamp), received_at)
        return entered_at > asterisk.left_at.get(leg_id, -1.0)

    def is_recovered(self) -> bool:
        """True if every caller has an agent, no call is being set up, and nothing is left of those that have ended."""
        calls = [row.call for row in self._store.rows.values()]
        if any(call.state not in (State.CONNECTED, State.ENDED) for call in calls):
            return False
        if self.slots is not None and self.slots.lacking():
            return False
        if self._unknown() or any(self.own(call) for call in calls if call.state is State.ENDED):
            return False
        return all(
            tenant.asterisk.is_with_agent(leg)
            for tenant in self._tenants
            for leg in tenant.asterisk.callers_in(tenant.app)
        )

    def _unknown(self) -> list[str]:
        """Return the legs and bridges that no row knows: a fail-over has lost the commit of their attempt."""
        names = {name for tenant in self._tenants for name in tenant.asterisk.created_by_product()}
        known = [(name, own, self._store.rows.get(own.call_id)) for name in names if (own := ids.parse(name))]
        return sorted(name for name, own, row in known if row is None or not NAMING.is_known(row.call, own))

    def check_recovered(self, callers: list[Caller], *, is_faultless: bool) -> None:
        """Check that every caller has an agent, and that callers without faults around them got one."""
        world = self._world
        if world.violations:
            return
        for tenant in self._tenants:
            for leg in tenant.asterisk.callers_in(tenant.app):
                if not tenant.asterisk.is_with_agent(leg):
                    heard = "hears silence" if leg.state == "Up" else "hears ringing"
                    world.violation(
                        f"caller {leg.id} is in {tenant.app} and {heard}, {RECOVERY_SECONDS:.0f} s after the last fault"
                    )
        if self.slots is not None:
            self.slots.check_recovered()
        for name in self._unknown():
            world.violation(f"{self.named(name)} is in no row, and still there")
        for row in self._store.rows.values():
            # Where that was never known, it cannot be told from a channel that another program has bridged since.
            asterisk = self._by_connection[first_of(row.call.connection_id)].asterisk
            for leg_id in {row.call.channel_id, *row.call.replacements} - {row.call.leg_id}:
                if (replaced := asterisk.channels.get(leg_id)) is not None and replaced.transferred_from is not None:
                    world.violation(f"{leg_id} was replaced, and is still up in silence")
            if row.call.state not in (State.CONNECTED, State.ENDED):
                world.violation(f"{self._names[row.call.call_id]} is still {row.call.state}")
        for caller in callers:
            must = (caller.is_probe or (caller.stays and is_faultless)) and self._slots is None and self.slots is None
            if must and not caller.tenant.asterisk.is_with_agent(caller.channel):
                world.violation(f"caller {caller.channel.id} got no agent without any fault")

    def left(self) -> list[str]:
        """Return whatever is left of the calls."""
        left = [self.named(name) for tenant in self._tenants for name in tenant.asterisk.created_by_product()]
        for row in self._store.rows.values():
            if row.call.state is not State.ENDED:
                left.append(f"{self._names[row.call.call_id]} ({row.call.state})")
        taken = {row.call.workflow_run_id for row in self._store.rows.values()}
        # A run that the platform began and whose call no process learned of is left to the platform.
        left += [
            f"run {run.run_id}"
            for run in self._runs.rows.values()
            if not run.is_completed and (run.is_ours or run.run_id in taken)
        ]
        return left

    def check_end(self) -> None:
        """Check that nothing is left, and that each run belongs to one call."""
        world = self._world
        if world.violations:
            return
        for left in dict.fromkeys(self.left()):
            world.violation(f"left over: {left}")
        for tenant in self._tenants:
            if taken := self._store.slots_used_now(tenant.organization_id):
                world.violation(f"{tenant.app} uses {taken} slots, and has no call")
        calls = [row.call for row in self._store.rows.values()]
        used = [call.workflow_run_id for call in calls if call.workflow_run_id is not None]
        for run in self._runs.rows.values():
            if used.count(run.run_id) > 1 or (run.is_ours and run.run_id not in used):
                world.violation(f"run {run.run_id} is of {used.count(run.run_id)} calls")
        for call in calls:
            run_of = self._runs.rows.get(call.workflow_run_id or 0)
            if run_of is not None and run_of.organization_id != call.organization_id:
                world.violation(f"{self._names[call.call_id]} has a run of another tenant")


def _entry(call: Call) -> tuple[int, str, str, int]:
    """Return what identifies the entry of a channel into an app instance."""
    return first_of(call.connection_id), call.channel_id, call.channel_created, call.entry
