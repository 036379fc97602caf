"""One installation in virtual time: the tenants' Asterisks, and the product's processes around the real steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from uuid import UUID

import greenlet

from scheduler import sweep
from scheduler.dead_workers import DeadWorkers
from shared import errors, messages
from shared.asterisk import ari, circuit_breaker, rest
from shared.call.calls import Call
from shared.call.ids import ConnectionVersion
from shared.call.limits import Limits
from shared.call.states import State
from shared.outbound_calls import OutboundCalls
from shared.platform import dograh
from shared.platform.ports import NO_PLATFORM_SLOTS
from shared.storage.call_writer import CallWriter
from simulator import events
from tests.simulation.asterisks import NAMING, PREFIX, AgentPlan, Asterisk
from tests.simulation.brokers import Broker, Workers
from tests.simulation.callers import Callers
from tests.simulation.faults import NO_CALL, Fault
from tests.simulation.invariants import Invariants
from tests.simulation.listeners import Listener
from tests.simulation.lookups import Lookup
from tests.simulation.platform_redis import PlatformRedis, PlatformSlots
from tests.simulation.platform_slots import Comparisons
from tests.simulation.platforms import (
    AppHolders,
    Connections,
    Leases,
    Postgres,
    Quota,
    Routes,
    Runs,
    Tenant,
    first_of,
    organization_of,
)  # fmt: skip
from tests.simulation.requests import Requests
from tests.simulation.stores import MemoryStore
from tests.simulation.transfer_events import TransferEvents
from tests.simulation.world import Fiber, Process, World
from workers import awaited_legs, pools, wiring
from workers.asterisks import is_of_others
from workers.awaited_legs import AwaitedLegs
from workers.call_allowance import CallAllowance
from workers.claims import Claim
from workers.wiring import Adapters

LIMITS = Limits()
_SWEEP_SECONDS = 1.0
_WATCH_SECONDS = 0.5
_RESYNC_SECONDS = 15.0
_FULL_EVERY = 4


def good_agent(_channel_id: str) -> AgentPlan:
    """An agent that accepts at once and stays."""
    return AgentPlan(accepts_after_seconds=0.01)


class Environment:
    """Two workers, a scheduler, a listener, and any number of tenants.

    Args:
        asterisks: The name of each tenant's Asterisk; one Asterisk may serve several tenants.
        plan_agent: Returns what the voice agent does with a media leg.
        answer_after_seconds: How long the far end of an outbound call rings.
        continue_in_dialplan: A refused caller continues in the dialplan.
        slots: Each tenant's slots; None for any number.
        platform_limit: Each tenant's slots in which the platform counts its calls with ours; None if it counts none.
        refuses: The share of outbound calls that the quota refuses, from 0 to 1.
        is_quota_remote: The quota is another service: a caller is stored as `received` before it is asked.
        is_quota_about_runs: It is another service, and asked about a run, once there is one.
        limits: The bounds of a call.
    """

    def __init__(
        self,
        world: World,
        *,
        asterisks: tuple[str, ...] = ("pbx1",),
        plan_agent: Callable[[str], AgentPlan] = good_agent,
        answer_after_seconds: float = 0.02,
        continue_in_dialplan: bool = False,
        slots: int | None = None,
        platform_limit: int | None = None,
        refuses: float = 0.0,
        is_quota_remote: bool = False,
        is_quota_about_runs: bool = False,
        limits: Limits = LIMITS,
    ) -> None:
        self.world = world
        self._limits = limits
        self._slots_each = slots
        events.clock, events.ahead_seconds = world.wall, 0.0
        self.postgres = Postgres(world)
        self.leases = Leases(self.postgres)
        self.app_holders = AppHolders(self.postgres)
        self.awaited_legs = _AwaitedLegs(world)
        self.store = MemoryStore(
            self.postgres,
            lambda *change: self.invariants.changed(*change),  # noqa: PLW0108 - the invariants are made later
            app_of=lambda connection_id: (first_of(connection_id), first_of(connection_id)),
        )
        self.routes = Routes(self.postgres, continue_in_dialplan=continue_in_dialplan, platform_limit=platform_limit)
        self.quota = Quota(world, refuses=refuses, asks_network=is_quota_remote, about_runs=is_quota_about_runs)
        self.runs = Runs(self.postgres, self.store, self.routes)
        self.platform_redis = PlatformRedis(world)
        self.platform_slots = PlatformSlots(world, self.platform_redis) if platform_limit is not None else None
        self.transfer_events = TransferEvents(self.platform_redis)
        self.workers = Workers(world, 2)
        self.broker = Broker(world, self.workers, self._call_of)
        self.asterisks = {name: Asterisk(world, name, plan_agent, answer_after_seconds) for name in asterisks}
        self.tenants = [
            Tenant(
                connection_id=number,
                organization_id=organization_of(number),
                app=f"app{number}",
                asterisk=self.asterisks[name],
            )
            for number, name in enumerate(asterisks, start=1)
        ]
        self._by_connection = {tenant.connection_id: tenant for tenant in self.tenants}
        self.listeners = [Listener(world, self.broker, tenant) for tenant in self.tenants]
        self.callers = Callers(
            world, self.broker, self.runs, self.transfer_events, self.tenants, slots=self.platform_slots
        )
        self.invariants = Invariants(world, self.store, self.runs, self.tenants, self.quota, slots=slots)
        self._scheduler = Process("scheduler")
        self._ticks = 0
        self._is_sweeping = False
        self._is_watching = False
        #: The states that calls were in by the row that a fail-over has left.
        self.went_back_to: Counter[str] = Counter()
        self.looked_up: Counter[str] = Counter()
        world.states_of = self.states_of
        self.adapters = self._make_adapters("worker")
        pooled = {
            name: wiring.handlers(self.adapters, serves=pools.served_steps(q), tag=self._tag)
            for name, q in pools.POOLS.items()
        }
        self.workers.pooled = {queue: pooled[name] for name, q in pools.POOLS.items() for queue in q}
        self.workers.alone = {
            queue: wiring.handlers(self.adapters, serves=pools.served_steps({queue}), tag=self._tag)
            for queue in messages.QUEUES
        }
        self._sweeper = self._writer("scheduler")
        self._dead_workers = DeadWorkers(
            self._sweeper, self.store, self.leases, self._live_workers, besides="scheduler", batch=200
        )
        if self.platform_slots is not None and platform_limit is not None:
            self.invariants.follow_slots(self.platform_slots, platform_limit)
            for asterisk in self.asterisks.values():
                asterisk.pipeline_ended = self.platform_slots.release

    def open(self) -> None:
        """Start every process."""
        for listener in self.listeners:
            listener.open()
        self._tick_sweep()
        self._tick_watch()
        self._tick_resync()
        if self.platform_slots is not None:
            Comparisons(self.world, self.platform_slots, self.postgres, self.store).tick()

    def handle(self, actor: str, **arguments: object) -> None:
        """Handle a message in a process of its own, to the end."""
        handler = self.workers.pooled[messages.ACTORS[actor]][actor]
        self.do(actor, lambda: handler(**arguments))

    def do(self, what: str, work: Callable[[], object]) -> None:
        """Run a function in a process of its own, to the end."""
        self.world.start(Process("test"), what, work)

    def flush_redis(self) -> None:
        """Empty Redis: the scheduler finds the boot marker missing, and asks for a resync of everything."""
        self.broker.flush()
        self.world.after(self.world.choices.between(0.5, 2.0), lambda: self.ask_resyncs("Redis was emptied", full=True))

    def fail_over(self, call: Call, lost: int | None = None) -> None:
        """Let a standby take over that lacks the last commits of a call, and everything since the first of these.

        Args:
            lost: How many; None to draw it, up to all of them.
        """
        choices, store = self.world.choices, self.store
        if lost is None:
            commits = range(1, store.log.number_of(call.call_id) + 1)
            # A standby mostly lacks little.
            lost = choices.one_of((choices.one_of(commits[:3]), choices.one_of(commits)))
        self.world.count_fault(Fault.COMMITS_LOST, [call.state])
        self.world.tell("", "FAULT: %s: %s of %s", Fault.COMMITS_LOST, lost, call.channel_id)
        self.world.stall_all()
        for before in store.lose(call.call_id, lost):
            row = store.rows.get(before.call_id)
            after = row.call if row is not None else None
            self.invariants.forgotten(before, after)
            self.went_back_to[after.state if after is not None else NO_CALL] += 1
        self.postgres.is_away = True
        self.world.after(choices.spread(0.001, 5.0), lambda: setattr(self.postgres, "is_away", False))

    def calm_down(self) -> None:
        """End all faults: from here on nothing fails, and what was broken works again."""
        self.world.is_calm, self.world.calm_since = True, self.world.now
        self.world.tell("", "no more faults")
        self.postgres.is_away = self.broker.is_away = self.platform_redis.is_away = False
        for worker in self.workers.processes:
            # Not 0: it was frozen, and what it is about to do may be out of date.
            worker.frozen_until = min(worker.frozen_until, self.world.now)
        for asterisk in self.asterisks.values():
            asterisk.is_away = False
            if not asterisk.is_running:
                asterisk.restart()

    # ── wiring ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _writer(self, who: str) -> CallWriter:
        return _Writer(
            self.store,
            self.broker,
            self._limits,
            who=who,
            lives_since=self._lives_since,
            clock=self.world,
            new_id=self.world.new_id,
        )

    def _make_adapters(self, who: str) -> Adapters:
        writer = self._writer(who)
        connections = Connections(self.postgres, self.tenants)
        slots = self.platform_slots if self.platform_slots is not None else NO_PLATFORM_SLOTS
        return Adapters(
            writer=writer,
            outbound_calls=OutboundCalls(
                writer, self.routes, self.runs, connections, slots=self._slots, prefix=PREFIX, platform_slots=slots
            ),
            asterisks=_Asterisks(self.postgres, self._by_connection, self.world.monotonic),
            routes=self.routes,
            runs=self.runs,
            quota=self.quota,
            slots=self,
            connections=connections,
            lookup=Lookup(self.postgres, connections, self.routes, self.runs, self.looked_up),
            leases=self.leases,
            app_holders=self.app_holders,
            awaited_legs=self.awaited_legs,
            send_later=self.broker.send,
            age_ms=self.broker.age_ms,
            naming=NAMING,
            allowance=CallAllowance(10_000_000),
            media_url=dograh.MediaUrl(None),
            platform_slots=slots,
            transfer_events=self.transfer_events,
            refusal_causes=lambda _call: "",
        )

    def _tag(self) -> str:
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        return self.workers.tag_of(fiber.process)

    def among(self, own: int | None, platform: int | None) -> int | None:
        """Return the number of slots: the environment is the port `Slots`."""
        return min((limit for limit in (self._slots_each, platform) if limit is not None), default=None)

    def _slots(self, _organization_id: int) -> int | None:
        return self._slots_each

    # ── the scheduler ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _tick_sweep(self) -> None:
        self.world.after(_SWEEP_SECONDS, self._tick_sweep)
        # A sweep that finds nothing changes nothing: not run.
        if self._is_sweeping or not self.store.overdue_now():
            return
        if self._scheduler.is_dead:
            self._scheduler = Process("scheduler")
        self._is_sweeping = True
        self._scheduler.at_death.append(self._swept)
        self.world.start(self._scheduler, "sweep", self._sweep)

    def _tick_watch(self) -> None:
        self.world.after(_WATCH_SECONDS, self._tick_watch)
        live = self.workers.live()
        # As above.
        if (
            self._is_watching
            or self.broker.is_away
            or not (self.store.claims_of_others(live) or self.leases.of_others_now(live))
        ):
            return
        if self._scheduler.is_dead:
            self._scheduler = Process("scheduler")
        self._is_watching = True
        self._scheduler.at_death.append(self._watched)
        self.world.start(self._scheduler, "watch", self._watch)

    def _watch(self) -> None:
        try:
            self._dead_workers.clean_up()
        except errors.TransientError as exc:
            self.world.tell("scheduler", "watch failed: %s", exc)
        self._watched()

    def _watched(self) -> None:
        self._is_watching = False

    def _live_workers(self) -> set[str] | None:
        return None if self.broker.is_away else self.workers.live()

    def _lives_since(self, moment: float) -> bool:
        fiber = greenlet.getcurrent()
        return not isinstance(fiber, Fiber) or self.workers.lives_since(fiber.process, moment)

    def _sweep(self) -> None:
        try:
            sweep.dispatch_overdue(self._sweeper, self.store, batch=200)
        except errors.TransientError as exc:
            self.world.tell("scheduler", "sweep failed: %s", exc)
        self._swept()

    def _swept(self) -> None:
        self._is_sweeping = False

    def _tick_resync(self) -> None:
        self.world.after(_RESYNC_SECONDS, self._tick_resync)
        self.ask_resyncs(messages.RESYNC_CLOCK, full=self._ticks % _FULL_EVERY == 0)
        self._ticks += 1

    def ask_resyncs(self, reason: str, *, full: bool) -> None:
        """Ask for a resync of every connection."""
        if self.broker.is_away:
            return
        with_calls = {row.call.connection for row in self.store.rows.values() if row.call.state is not State.ENDED}
        for connection in sorted(with_calls | {tenant.connection for tenant in self.tenants}, key=str):
            self.broker.put(messages.of_resync(connection=connection, reason=reason, full=full))

    def save_anew(self, tenant: Tenant) -> None:
        """Remove a tenant's configuration and add it again; the socket of the new connection replaces the old one."""
        tenant.save_anew()
        if not self.broker.is_away:
            self.broker.put(messages.of_resync(connection=tenant.connection, reason="connected", full=True))

    # ── the ways that were taken ──────────────────────────────────────────────────────────────────────────────────────

    def ways(self) -> Counter[str]:
        """Return how often each fast way was taken."""
        lost = Counter({f"commits lost: {state}": count for state, count in self.went_back_to.items()})
        return (
            self.awaited_legs.ends
            + lost
            + self.looked_up
            + Counter(
                {
                    "a call written with its admission": self.store.quick_admissions,
                    "a call that ended unverified": self.store.unverified_ends,
                    "a claim of a dead worker broken": self.store.broken_claims,
                }
            )
        )

    # ── the states that a fault hits ──────────────────────────────────────────────────────────────────────────────────

    def states_of(self, call_id: UUID | None, connection_id: int | None) -> list[str]:
        """Return the state of the call, or those of the connection's calls; `NO_CALL` when there is none."""
        rows = self.store.rows
        if call_id is not None and call_id in rows:
            return [rows[call_id].call.state]
        if call_id is None and connection_id is not None:
            found = (row.call for row in rows.values() if first_of(row.call.connection_id) == first_of(connection_id))
            states = [str(call.state) for call in found]
            if states:
                return states
        return [NO_CALL]

    def all_states(self) -> list[str]:
        return [str(row.call.state) for row in self.store.rows.values()] or [NO_CALL]

    def _call_of(self, connection_id: int, channel_id: str) -> UUID | None:
        found = [
            row.call.call_id
            for row in self.store.rows.values()
            if first_of(row.call.connection_id) == first_of(connection_id)
            and channel_id in (row.call.channel_id, *row.call.replacements)
        ]
        return found[-1] if found else None


class _Writer(CallWriter):
    """Signs the claims of each process with its name."""

    def new_owner(self) -> str:
        fiber = greenlet.getcurrent()
        who = fiber.process.name if isinstance(fiber, Fiber) else "test"
        return f"{who}/{self.new_id().hex[:8]}"


class _Asterisks:
    """Gives the steps their Asterisk: the adapter of `workers.asterisks.Asterisks`."""

    def __init__(self, postgres: Postgres, tenants: dict[int, Tenant], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._postgres = postgres
        self._tenants = tenants

    def of(self, call: Call, budget: rest.RequestBudget) -> ari.Ari:
        return self.at(call.connection, budget)

    def at(self, connection: ConnectionVersion, budget: rest.RequestBudget) -> ari.Ari:
        tenant = self._postgres.statement(
            "look up the connection", lambda: self._tenants[first_of(connection.connection_id)]
        )
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        known = fiber.process.circuits
        circuit = known.get(tenant.app) or known.setdefault(
            tenant.app, circuit_breaker.CircuitBreaker(clock=self._clock)
        )
        requests = Requests(
            tenant.asterisk,
            tenant.app,
            circuit,
            connect_seconds=LIMITS.connect_seconds,
            read_seconds=LIMITS.read_seconds,
        )
        return ari.Ari(requests, budget, doubts=is_of_others)


class _AwaitedLegs:
    """The awaited legs of the current fiber's process: the adapter of `workers.awaited_legs.Awaited`."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: Most legs that each process waits for.
        self.capacity = awaited_legs.CAPACITY
        #: What ended the waits, and how often.
        self.ends: Counter[str] = Counter()

    def expect(self, claim: Claim) -> None:
        self._here(self._process()).expect(claim)

    def keep(self, claim: Claim) -> bool:
        process = self._process()
        is_kept = self._here(process).keep(claim)
        if is_kept:
            self._world.after(awaited_legs.WAIT_SECONDS, lambda: self._expire(process))
        return is_kept

    def forget(self, claim: Claim) -> None:
        self._here(self._process()).forget(claim)

    def take(self, call_id: UUID, attempt: int, nonce: str = "", *, connection_id: int) -> Claim | None:
        claim = self._here(self._process()).take(call_id, attempt, nonce, connection_id=connection_id)
        if claim is not None:
            fiber = greenlet.getcurrent()
            assert isinstance(fiber, Fiber)
            self.ends[f"an awaited leg: {fiber.what}"] += 1
        return claim

    def _expire(self, process: Process) -> None:
        if not process.is_dead:
            self._world.start(process, "wait over", lambda: self._store(process))

    def _store(self, process: Process) -> None:
        here = self._here(process)
        claims = here.expired()
        self.ends["an awaited leg: wait over"] += len(claims)
        for claim in awaited_legs.store(claims):
            self._keep_again(process, claim)

    def keep_again(self, claim: Claim) -> None:
        self._keep_again(self._process(), claim)

    def _keep_again(self, process: Process, claim: Claim) -> None:
        self._here(process).keep_again(claim)
        self._world.after(awaited_legs.WAIT_SECONDS, lambda: self._expire(process))

    def _here(self, process: Process) -> AwaitedLegs[Claim]:
        if process.awaited_legs is None:
            process.awaited_legs = AwaitedLegs(capacity=self.capacity, monotonic=self._world.monotonic)
        return process.awaited_legs

    @staticmethod
    def _process() -> Process:
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        return fiber.process
