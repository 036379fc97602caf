"""One installation in virtual time: tenants' Asterisks, our processes around the real steps, and what must hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import greenlet

from scheduler import sweeps
from shared import ari, circuits, errors, messages, originates, rest
from shared.core import facts, ids
from shared.core.call_requests import CallRequest
from shared.core.calls import Call, Direction, State
from shared.core.deadlines import Limits, Step
from shared.ledger import Ledger
from simulator import channels, events
from simulator import originates as simulator_originates
from tests.simulation.asterisks import PREFIX, AgentPlan, Asterisk, Requests
from tests.simulation.brokers import Broker, SideBySide, Workers
from tests.simulation.faults import NO_CALL
from tests.simulation.listeners import Listener
from tests.simulation.platforms import Entrances, Leases, Postgres, Quota, Routes, Run, Runs, Tenant
from tests.simulation.stores import MemoryStore
from tests.simulation.world import EPOCH, Hand, Process, World
from workers.steps import Tools

LIMITS = Limits()
_SWEEP_SECONDS = 1.0
_RESYNC_SECONDS = 15.0
_FULL_EVERY = 4
_PATIENCE_SECONDS = 5.0
_TRY_SECONDS = 0.1
#: After the last fault every caller has an agent, or has been hung up, within this time.
RECOVERY_SECONDS = 110.0
#: And once all parties have hung up, nothing is left after this time: no sweep and no resync has to help.
ENDING_SECONDS = 3.0
#: From entering Stasis to the agent, with a good agent and nothing going wrong.
_PROMPT_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Caller:
    """Somebody who calls."""

    tenant: Tenant
    channel: channels.Channel
    #: Came when nothing went wrong any more: has to get an agent.
    is_probe: bool = False
    #: Hangs up only at the end.
    stays: bool = True


def good_agent(_channel_id: str) -> AgentPlan:
    """An agent who is there."""
    return AgentPlan(accepts_after_seconds=0.01)


class Site:
    """Two workers, a scheduler, a listener, and any number of tenants.

    Args:
        asterisks: Whose Asterisk each tenant has, by name; the same one may serve several.
        plan_agent: What the voice agent does with a media leg.
        answer_after_seconds: How long the far end of an outbound call rings.
        goes_on: A refused caller goes on in the dialplan.
        slots: How many calls a tenant may have at a time.
        refuses: Of how many calls that we begin the quota refuses, from 0 to 1.
    """

    def __init__(
        self,
        world: World,
        *,
        asterisks: tuple[str, ...] = ("pbx1",),
        plan_agent: Callable[[str], AgentPlan] = good_agent,
        answer_after_seconds: float = 0.02,
        goes_on: bool = False,
        slots: int | None = None,
        refuses: float = 0.0,
    ) -> None:
        self.world = world
        self._slots_each = slots
        events.clock = world.wall
        self.postgres = Postgres(world)
        self.leases = Leases(self.postgres)
        self.store = MemoryStore(self.postgres, self._changed)
        self.routes = Routes(self.postgres, goes_on=goes_on)
        self.quota = Quota(world, refuses=refuses)
        self.runs = Runs(self.postgres, self.store, self.routes)
        self.workers = Workers(world, 2)
        self.broker = Broker(world, self.workers, self._call_of)
        self.asterisks = {name: Asterisk(world, name, plan_agent, answer_after_seconds) for name in asterisks}
        for asterisk in self.asterisks.values():
            asterisk.named = self.named
            asterisk.agent_lost = self._agent_lost
            asterisk.unanswered = functools.partial(self._unanswered, asterisk)
            asterisk.media_begun = self._media_begun
        self.tenants = [
            Tenant(
                connection_id=number, organization_id=100 + number, app=f"app{number}", asterisk=self.asterisks[name]
            )
            for number, name in enumerate(asterisks, start=1)
        ]
        self._by_connection = {tenant.connection_id: tenant for tenant in self.tenants}
        self.listeners = [Listener(world, self.broker, tenant) for tenant in self.tenants]
        self.callers: list[Caller] = []
        #: Nothing goes wrong: each call has to be prompt, and whole at each moment.
        self.is_prompt = False
        #: Told when a call enters a state.
        self.entered: Callable[[str], None] = lambda _state: None
        self._names: dict[UUID, str] = {}
        self._requests = 0
        self._scheduler = Process("scheduler")
        self._ticks = 0
        self._is_sweeping = False
        world.states_of = self.states_of
        self.tools = self.workers.tools = self._make_tools("worker")
        self.workers.lone_tools = replace(self.tools, serves=frozenset())
        self._sweeper = self._make_tools("scheduler").ledger

    def open(self) -> None:
        """Every process starts."""
        for listener in self.listeners:
            listener.open()
        self._tick_sweep()
        self._tick_resync()

    def do(self, what: str, work: Callable[[Tools], object]) -> None:
        """Lets a process of its own do something, to the end."""
        self.world.start(Process("test"), what, lambda: work(self.tools))

    def call_in(self, tenant: Tenant, *, is_probe: bool = False) -> Caller:
        """Somebody calls a tenant."""
        world, asterisk = self.world, tenant.asterisk
        number = len(self.callers) + 1
        channel = channels.Channel(
            id=f"{number}.{tenant.connection_id}",
            name=f"PJSIP/trunk-{number:08x}",
            kind=channels.Kind.CALLER,
            state="Ring",
            caller_number=f"+4930{number}",
            extension="5551234",
        )
        caller = Caller(tenant, channel, is_probe)
        self.callers.append(caller)
        if asterisk.is_running:
            asterisk.add(channel)
            world.tell(asterisk.name, "caller %s calls %s", channel.id, tenant.app)
            self.enter(caller)
        return caller

    def request_call(self, tenant: Tenant, number: str, *, ring_seconds: float = 20.0) -> CallRequest:
        """Somebody wants a tenant to call a number: `busy`, `reject` and the like, or one that is answered."""
        self._requests += 1
        request = CallRequest(
            organization_id=tenant.organization_id, number=number, request_id=f"request-{self._requests}",
            workflow_id=tenant.organization_id, ring_seconds=ring_seconds,
        )  # fmt: skip
        self.world.tell("", "%s is to call %s", tenant.app, number)
        self.broker.put(messages.of_request(request))
        return request

    def platform_calls(self, tenant: Tenant, number: str, *, run: Run | None = None) -> Run:
        """The platform calls a number through a tenant's Asterisk, for a run of its own, or for another tenant's."""
        run = self.runs.begin(tenant.organization_id) if run is None else run
        self.world.after(0.0, lambda: self._dial(tenant, number, run))
        return run

    def _dial(self, tenant: Tenant, number: str, run: Run) -> None:
        asterisk, channel_id = tenant.asterisk, f"platform-{run.run_id}-{tenant.connection_id}"
        if not asterisk.is_running or asterisk.is_taken(channel_id):
            return
        args = [f"workflow_run_id={run.run_id}", f"workflow_id={run.organization_id}"]
        simulator_originates.originate(
            asterisk, endpoint=f"PJSIP/{number}", app=tenant.app, args=args, caller="", channel_id=channel_id,
            other_channel_id=None, timeout_seconds=10.0,
        )  # fmt: skip
        self.world.tell(asterisk.name, "the platform calls %s for run %s", number, run.run_id)
        if run.organization_id == tenant.organization_id:
            # It knows only once Asterisk has answered.
            self.world.after(0.01, lambda: setattr(run, "channel_id", channel_id))

    def enter(self, caller: Caller, since: float | None = None) -> None:
        """The recommended dialplan: rings and tries again while no socket is there."""
        asterisk, channel = caller.tenant.asterisk, caller.channel
        since = self.world.now if since is None else since
        if not asterisk.is_alive(channel) or asterisk.enter_stasis(channel, caller.tenant.app, []):
            return
        if self.world.now > since + _PATIENCE_SECONDS:
            asterisk.caller_hangs_up(channel)
        else:
            self.world.after(_TRY_SECONDS, lambda: self.enter(caller, since))

    def own(self, call: Call) -> list[str]:
        """The legs and bridges of a call that are there."""
        names = self._by_connection[call.connection_id].asterisk.ours()
        return [name for name in names if (own := ids.parse(PREFIX, name)) is not None and own.call_id == call.call_id]

    def come_back(self, caller: Caller, after_seconds: float) -> None:
        """The caller leaves Stasis and enters it again."""
        if caller.tenant.asterisk.caller_goes_on(caller.channel):
            self.world.after(after_seconds, lambda: self.enter(caller))

    def hang_up_all(self) -> None:
        """Every caller hangs up but those whom another controller serves."""
        self.world.tell("", "everybody hangs up")
        for asterisk in self.asterisks.values():
            for leg in list(asterisk.channels.values()):
                if leg.kind is not channels.Kind.MEDIA and not leg.id.startswith("other."):
                    asterisk.caller_hangs_up(leg)

    def flush_redis(self) -> None:
        """The scheduler finds the sentinel gone and has everything resynced."""
        self.broker.flush()
        self.world.after(self.world.chances.between(0.5, 2.0), lambda: self.ask_resyncs("Redis was emptied", full=True))

    def calm_down(self) -> None:
        """Nothing goes wrong any more, and what was broken works again."""
        self.world.is_calm = True
        self.world.tell("", "nothing goes wrong any more")
        self.postgres.is_away = self.broker.is_away = False
        for worker in self.workers.processes:
            worker.frozen_until = 0.0
        for asterisk in self.asterisks.values():
            asterisk.is_away = False
            if not asterisk.is_running:
                asterisk.restart()

    # ── wiring ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_tools(self, who: str) -> Tools:
        ledger = Ledger(self.store, self.broker, LIMITS, who=who, clock=self.world, new_id=self.world.new_id)
        entrances = Entrances(self.postgres, self.tenants)
        return Tools(
            ledger=ledger,
            serves=frozenset(Step),
            originates=originates.Originates(
                ledger, self.routes, self.runs, entrances, slots=self._slots, prefix=PREFIX
            ),
            asterisks=_Asterisks(self.postgres, self._by_connection, self.world.monotonic),
            routes=self.routes,
            runs=self.runs,
            quota=self.quota,
            slots=self._slots,
            entrances=entrances,
            leases=self.leases,
            side_by_side=SideBySide(self.world),
            send_later=self.broker.send,
            redis_ms=self.broker.redis_ms,
            prefix=PREFIX,
            token_secret=None,
        )

    def _slots(self, _organization_id: int) -> int | None:
        return self._slots_each

    # ── the scheduler ────────────────────────────────────────────────────────────────────────────────────────────────

    def _tick_sweep(self) -> None:
        self.world.after(_SWEEP_SECONDS, self._tick_sweep)
        # A sweep that finds nothing changes nothing.
        if self._is_sweeping or not self.store.overdue_now():
            return
        if self._scheduler.is_dead:
            self._scheduler = Process("scheduler")
        self._is_sweeping = True
        self._scheduler.at_death.append(self._swept)
        self.world.start(self._scheduler, "sweep", self._sweep)

    def _sweep(self) -> None:
        try:
            sweeps.sweep(self._sweeper, self.store, batch=200)
        except errors.TransientError as exc:
            self.world.tell("scheduler", "sweep not possible: %s", exc)
        self._swept()

    def _swept(self) -> None:
        self._is_sweeping = False

    def _tick_resync(self) -> None:
        self.world.after(_RESYNC_SECONDS, self._tick_resync)
        self.ask_resyncs(messages.RESYNC_CLOCK, full=self._ticks % _FULL_EVERY == 0)
        self._ticks += 1

    def ask_resyncs(self, reason: str, *, full: bool) -> None:
        """Asks for a resync of every connection."""
        if not self.broker.is_away:
            for tenant in self.tenants:
                self.broker.put(
                    messages.of_resync(
                        connection_id=tenant.connection_id, connection_version=1, reason=reason, full=full
                    )
                )

    # ── what concerns whom ───────────────────────────────────────────────────────────────────────────────────────────

    def states_of(self, call_id: UUID | None, connection_id: int | None) -> list[str]:
        """The state of the call, or of the connection's calls: of the liveliest, if there are any."""
        rows = self.store.rows
        if call_id is not None and call_id in rows:
            return [rows[call_id].call.state]
        if call_id is None and connection_id is not None:
            states = [str(row.call.state) for row in rows.values() if row.call.connection_id == connection_id]
            if states:
                return states
        return [NO_CALL]

    def all_states(self) -> list[str]:
        return [str(row.call.state) for row in self.store.rows.values()] or [NO_CALL]

    def _call_of(self, connection_id: int, channel_id: str) -> UUID | None:
        found = [
            row.call.call_id
            for row in self.store.rows.values()
            if row.call.connection_id == connection_id and row.call.channel_id == channel_id
        ]
        return found[-1] if found else None

    def named(self, name: str) -> str:
        """How the story calls a channel or a bridge."""
        own = ids.parse(PREFIX, name)
        if ids.is_originated(PREFIX, name):
            return f"<leg {name[len(PREFIX) : len(PREFIX) + 4]}>"
        if own is None:
            return name
        kind = "media leg" if own.kind is ids.Kind.MEDIA else "bridge"
        return f"<{kind} {own.attempt} of {self._names.get(own.call_id, '?')}>"

    # ── invariants ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _changed(self, before: Call | None, after: Call, fact: facts.Fact | None) -> None:
        """Looks at each change of a call as it is written."""
        world = self.world
        if before is None:
            self._names[after.call_id] = f"call {len(self._names) + 1}"
        name, hand = self._names[after.call_id], greenlet.getcurrent()
        assert isinstance(hand, Hand)
        hand.call_id = after.call_id
        if world.telling:
            came_from = "new" if before is None else before.state
            moved = after.state if before is not None and came_from is after.state else f"{came_from} → {after.state}"
            world.tell(hand.process.name, "%s: %s by %s", name, moved, fact or hand.what)
        if hand.connection_id not in (None, after.connection_id):
            world.violation(f"{hand.what} of connection {hand.connection_id} changed {name}, which is another's")
        ends = before is not None and before.state is State.CONNECTED and after.state is State.ENDING
        if ends and self._is_healthy(after):
            world.violation(f"{name} is well and was ended: {after.reason}")
        entries = self._by_connection[after.connection_id].asterisk.entries[after.channel_id]
        if before is None and after.entry > max(1, entries):
            world.violation(f"{name} is entry {after.entry} of {after.channel_id}, which has entered {entries} times")
        if isinstance(fact, facts.Admitted) and self._slots_each is not None:
            taken = self.store.taken_now(after.organization_id)
            if taken > self._slots_each:
                world.violation(f"{name} is admitted, and {taken} of {self._slots_each} slots are taken")
        if self.is_prompt:
            self._check_prompt(name, after)
        if before is None or before.state is not after.state:
            self.entered(after.state)

    def _check_prompt(self, name: str, call: Call) -> None:
        asterisk = self._by_connection[call.connection_id].asterisk
        if call.state is State.ENDED:
            for left in self.own(call):
                self.world.violation(f"{name} has ended, and {self.named(left)} is there")
        is_inbound = call.direction is Direction.INBOUND
        if is_inbound and call.connected_at is not None and call.state is State.CONNECTED:
            seconds = (call.connected_at - call.received_at).total_seconds()
            if seconds > _PROMPT_SECONDS + asterisk.agent_seconds:
                self.world.violation(f"{name} took {seconds:.1f} s to be connected")

    def _agent_lost(self, leg_id: str) -> None:
        """A call that has lost its agent is over, at once."""
        own = ids.parse(PREFIX, leg_id)
        if self.is_prompt and own is not None:
            self.world.after(_PROMPT_SECONDS, lambda: self._check_over(own.call_id))

    def _unanswered(self, asterisk: Asterisk, channel: channels.Channel) -> None:
        """A leg that was dialled in vain is over, and its run with it, within moments."""
        if self.is_prompt:
            self.world.after(_PROMPT_SECONDS + 0.5, lambda: self._check_unanswered(asterisk, channel.id))

    def _check_unanswered(self, asterisk: Asterisk, channel_id: str) -> None:
        for row in self.store.rows.values():
            is_here = self._by_connection[row.call.connection_id].asterisk is asterisk
            if is_here and row.call.channel_id == channel_id and row.call.state is not State.ENDED:
                self.world.violation(f"{self._names[row.call.call_id]} was not answered, and is {row.call.state}")
        for run in self.runs.rows.values():
            if run.channel_id == channel_id and not run.is_completed:
                self.world.violation(f"run {run.run_id} was not answered, and still waits")

    def _media_begun(self, leg_id: str) -> None:
        """The agent is called when the far end is on the line, and not before."""
        own = ids.parse(PREFIX, leg_id)
        row = self.store.rows.get(own.call_id) if own is not None else None
        if row is None:
            return
        call = row.call
        if not self._by_connection[call.connection_id].asterisk.entries[call.channel_id]:
            self.world.violation(f"{self._names[call.call_id]} has no far end yet, and calls its agent")

    def _check_over(self, call_id: UUID) -> None:
        if self.store.rows[call_id].call.state not in (State.ENDING, State.ENDED):
            self.world.violation(f"{self._names[call_id]} goes on without its agent")

    def _is_healthy(self, call: Call) -> bool:
        """Whether caller and agent hear each other and the caller has not left since: whatever we think of the call."""
        asterisk = self._by_connection[call.connection_id].asterisk
        caller = asterisk.channels.get(call.channel_id)
        if caller is None or caller.creationtime != call.channel_created or not asterisk.is_with_agent(caller):
            return False
        entered_at = datetime.fromisoformat(call.entered_stamp) if call.entered_stamp else call.received_at
        return (entered_at - EPOCH).total_seconds() > asterisk.left_at.get(call.channel_id, -1.0)

    def is_recovered(self) -> bool:
        """Whether every caller has an agent, no call is under way, and nothing is left of those that have ended."""
        calls = [row.call for row in self.store.rows.values()]
        if any(call.state not in (State.CONNECTED, State.ENDED) for call in calls):
            return False
        if any(self.own(call) for call in calls if call.state is State.ENDED):
            return False
        return all(
            tenant.asterisk.is_with_agent(leg)
            for tenant in self.tenants
            for leg in tenant.asterisk.callers_in(tenant.app)
        )

    def check_recovered(self, *, is_faultless: bool) -> None:
        """Every caller has an agent; who called when all was well has got one."""
        world = self.world
        if world.violations:
            return
        for tenant in self.tenants:
            for leg in tenant.asterisk.callers_in(tenant.app):
                if not tenant.asterisk.is_with_agent(leg):
                    heard = "hears nobody" if leg.state == "Up" else "hears it ring"
                    world.violation(
                        f"caller {leg.id} is in {tenant.app} and {heard}, {RECOVERY_SECONDS:.0f} s after the last fault"
                    )
        for row in self.store.rows.values():
            if row.call.state not in (State.CONNECTED, State.ENDED):
                world.violation(f"{self._names[row.call.call_id]} is still {row.call.state}")
        for caller in self.callers:
            must = (caller.is_probe or (caller.stays and is_faultless)) and self._slots_each is None
            if must and not caller.tenant.asterisk.is_with_agent(caller.channel):
                world.violation(f"caller {caller.channel.id} got no agent though nothing was wrong")

    def left(self) -> list[str]:
        """Whatever is left of the calls."""
        left = [self.named(name) for tenant in self.tenants for name in tenant.asterisk.ours()]
        for row in self.store.rows.values():
            if row.call.state is not State.ENDED:
                left.append(f"{self._names[row.call.call_id]} ({row.call.state})")
        taken = {row.call.workflow_run_id for row in self.store.rows.values()}
        # One that the platform began and whose call nobody heard of is the platform's.
        left += [
            f"run {run.run_id}"
            for run in self.runs.rows.values()
            if not run.is_completed and (run.is_ours or run.run_id in taken)
        ]
        return left

    def check_end(self) -> None:
        """Nothing is left, and every call has had its run."""
        world = self.world
        if world.violations:
            return
        for left in dict.fromkeys(self.left()):
            world.violation(f"left over: {left}")
        for tenant in self.tenants:
            if taken := self.store.taken_now(tenant.organization_id):
                world.violation(f"{tenant.app} has {taken} slots taken, and no call")
        calls = [row.call for row in self.store.rows.values()]
        used = [call.workflow_run_id for call in calls if call.workflow_run_id is not None]
        for run in self.runs.rows.values():
            if used.count(run.run_id) > 1 or (run.is_ours and run.run_id not in used):
                world.violation(f"run {run.run_id} is of {used.count(run.run_id)} calls")
        for call in calls:
            run_of = self.runs.rows.get(call.workflow_run_id or 0)
            if run_of is not None and run_of.organization_id != call.organization_id:
                world.violation(f"{self._names[call.call_id]} has a run of another tenant's")


class _Asterisks:
    """Where the steps get at an Asterisk."""

    def __init__(self, postgres: Postgres, tenants: dict[int, Tenant], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._postgres = postgres
        self._tenants = tenants

    def of(self, call: Call, witness: rest.Witness) -> ari.Ari:
        return self.at(call.connection_id, call.connection_version, witness)

    def at(self, connection_id: int, version: int, witness: rest.Witness) -> ari.Ari:
        tenant = self._postgres.statement("look up the connection", lambda: self._tenants[connection_id])
        hand = greenlet.getcurrent()
        assert isinstance(hand, Hand)
        known = hand.process.circuits
        circuit = known.get(tenant.app) or known.setdefault(tenant.app, circuits.Circuit(clock=self._clock))
        requests = Requests(
            tenant.asterisk,
            tenant.app,
            circuit,
            connect_seconds=LIMITS.connect_seconds,
            read_seconds=LIMITS.read_seconds,
        )
        return ari.Ari(requests, witness)
