"""One history: an environment, its callers and agents, a time with faults, and the calm after it.

A history follows from its seed alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shared.asterisk import events
from shared.call import ids
from shared.call.calls import Call
from shared.call.legs import Role
from shared.call.limits import Limits
from shared.call.states import State
from simulator import bridges, channels
from simulator import events as simulated_events
from tests.simulation import faults
from tests.simulation.asterisks import NAMING, OTHER_APP, AgentPlan, EventSocket
from tests.simulation.brokers import Broker
from tests.simulation.callers import Caller
from tests.simulation.choices import Choices
from tests.simulation.environment import LIMITS, Environment
from tests.simulation.faults import NO_CALL, Fault
from tests.simulation.invariants import ENDING_SECONDS, RECOVERY_SECONDS
from tests.simulation.platform_redis import PlatformRedis
from tests.simulation.platform_slots import SLOT_SECONDS
from tests.simulation.platforms import Postgres, Tenant, first_of
from tests.simulation.world import World

_LOOK_SECONDS = 5.0
#: A step or worker that was frozen before the last fault goes on within this time.
_FROZEN_SECONDS = 42.0
_TARGETS = faults.targets()
#: In some histories with faults a teardown is given up after a second, and the resync removes what it has left.
_IMPATIENT = Limits(teardown_seconds=1.0)
_IMPATIENT_EVERY = 4
#: Slots at the platform of an organization that no history uses up.
_MANY_SLOTS = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a history."""

    seed: int
    violations: tuple[str, ...]
    tally: faults.Tally
    #: How often each fast way was taken.
    ways: Counter[str]
    choices: tuple[float, ...]
    story: tuple[tuple[float, str, str], ...]


def play(seed: int, given: Sequence[float] | None = None, *, keeps_story: bool = False) -> Outcome:
    """Play the history of a seed.

    Args:
        given: The choices to use instead of the seed's: those of an earlier play, or a simpler form of them.
    """
    history = History(seed, Choices(seed, given), keeps_story=keeps_story)
    world = history.world
    try:
        history.run()
    finally:
        world.end()
    return Outcome(
        seed,
        tuple(world.violations),
        world.tally,
        history.environment.ways(),
        tuple(world.choices.drawn),
        tuple(world.story),
    )


class History:
    """One history, aimed at one pair of state and fault."""

    def __init__(self, seed: int, choices: Choices, *, keeps_story: bool) -> None:
        self.choices = choices
        target = _TARGETS[seed % len(_TARGETS)]
        rate = choices.one_of([0.0, 0.0, 0.0, 0.003, 0.01, 0.03])
        #: It has no fault, so every call must be prompt.
        self.is_faultless = choices.happens(0.12)
        if self.is_faultless:
            self.world = World(choices, keeps_story=keeps_story)
            self.world.tell("", "no faults")
        else:
            self.world = World(choices, fault_rate=rate, target=target, keeps_story=keeps_story)
            line = "aims at: %s, %s; %.1f %% of port calls fail"
            self.world.tell("", line, target.state, target.fault, rate * 100)
        shape = choices.one_of([("pbx1",), ("pbx1", "pbx2"), ("pbx1", "pbx1")])
        slots = choices.one_of([None, None, 4, 1])
        is_shared = choices.happens(0.3) or target.fault in faults.OF_THE_PLATFORM_S_REDIS
        self.environment = Environment(
            self.world,
            asterisks=shape,
            plan_agent=self._plan_agent,
            answer_after_seconds=choices.spread(0.02, 5.0),
            continue_in_dialplan=choices.happens(0.3),
            slots=None if is_shared else slots,
            platform_limit=(slots or _MANY_SLOTS) if is_shared else None,
            refuses=choices.one_of([0.0, 0.0, 0.5]),
            # A quick admission leaves no call in this state.
            is_quota_remote=choices.happens(0.3) or (not self.is_faultless and target.state is State.RECEIVED),
            is_quota_about_runs=choices.happens(0.15),
            limits=_IMPATIENT if seed % _IMPATIENT_EVERY == 0 and not self.is_faultless else LIMITS,
        )
        loses_commits = target.fault is faults.Fault.COMMITS_LOST and not self.is_faultless
        self.aims_outbound = not self.is_faultless and target.state in (State.ORIGINATING, State.RINGING)
        self.aims_outbound |= loses_commits and choices.happens(0.5)
        self.dials = self.aims_outbound or choices.happens(0.4)
        if target.state is State.ADMITTED and not self.is_faultless:
            # A call stays in this state only if another worker does the next step.
            self.environment.workers.always_alone = True
        if target.state is State.JOINING and not self.is_faultless:
            # A call stays in this state only if its media leg was not awaited.
            self.environment.awaited_legs.capacity = 0
        if loses_commits:
            # So that more of its states are stored.
            self.environment.workers.always_alone |= choices.happens(0.5)
            self.environment.awaited_legs.capacity *= not choices.happens(0.5)
        if target in faults.UNHEARD_DIALS and not self.is_faultless:
            for listener in self.environment.listeners:
                listener.passes = _is_not_of_a_dial
        self.environment.invariants.entered = self._entered
        self.environment.invariants.is_prompt = self.is_faultless
        self._agents_are_good = True
        self._is_aimed = False
        #: Another process's call is bridged so long after its app was taken over, or was before. Seconds.
        self._foreign_after = seed % 4 * 2.5

    def run(self) -> None:
        """Play from the first connect to the last invariant."""
        world, choices, environment = self.world, self.choices, self.environment
        foreign = ForeignCall(environment, bridged_after=self._foreign_after) if choices.happens(0.25) else None
        environment.open()
        self._aim(NO_CALL)
        for tenant in environment.tenants:
            for _ in range(choices.one_of([1, 1, 2]) if tenant is environment.tenants[0] else 1):
                world.after(choices.between(0.3, 2.0), functools.partial(self._call_in, tenant))
        if self.dials:
            for _ in range(choices.one_of([1, 2])):
                world.after(choices.between(0.3, 2.0), self._call_out)
        if len(environment.asterisks) > 1:
            world.after(choices.between(0.5, 8.0), self._forge)
        for _ in range(0 if self.is_faultless else choices.one_of([0, 0, 1, 2])):
            outage = choices.one_of(faults.OUTAGES)
            world.after(choices.spread(0.3, 20.0), functools.partial(self._break, outage))
        world.run(choices.spread(6.0, 40.0))
        environment.calm_down()
        for listener in environment.listeners:
            listener.passes = lambda _event: True
        calm_since = world.now
        world.after(
            choices.between(20.0, 25.0), lambda: environment.callers.call_in(environment.tenants[0], is_probe=True)
        )
        while world.now < calm_since + RECOVERY_SECONDS and not world.violations:
            world.run(world.now + _LOOK_SECONDS)
            if world.now > calm_since + _FROZEN_SECONDS and environment.invariants.is_recovered():
                break
        environment.invariants.check_recovered(
            environment.callers.all, is_faultless=self.is_faultless and self._agents_are_good
        )
        if foreign is not None:
            foreign.check()
        environment.callers.hang_up_all()
        world.run(world.now + ENDING_SECONDS)
        environment.invariants.check_end()
        if environment.invariants.slots is not None:
            world.run(world.now + SLOT_SECONDS)
            environment.invariants.slots.check_left()

    # ── callers and agents ────────────────────────────────────────────────────────────────────────────────────────────

    def _call_in(self, tenant: Tenant) -> None:
        choices, world, asterisk = self.choices, self.world, tenant.asterisk
        caller = self.environment.callers.call_in(tenant)
        does = choices.one_of([
            "stays", "stays", "hangs up", "hangs up soon", "leaves Stasis", "comes back", "transferred", "is moved",
            "is moved back", "is replaced", "is replaced twice",
        ])  # fmt: skip
        caller.stays = does == "stays"
        match does:
            case "hangs up":
                world.after(choices.spread(0.3, 30.0), lambda: asterisk.caller_hangs_up(caller.channel))
            case "hangs up soon":
                world.after(choices.spread(0.001, 0.3), lambda: asterisk.caller_hangs_up(caller.channel))
            case "leaves Stasis":
                world.after(choices.spread(0.003, 30.0), lambda: asterisk.caller_leaves_stasis(caller.channel))
            case "transferred":
                world.after(choices.spread(0.5, 10.0), lambda: self._transfer(caller))
            case "comes back":
                away = choices.spread(0.0005, 10.0)
                world.after(choices.spread(0.003, 30.0), lambda: self.environment.callers.come_back(caller, away))

            case "is replaced" | "is replaced twice":
                for _ in range(1 + (does == "is replaced twice")):
                    world.after(choices.spread(0.003, 30.0), lambda: self._replace(caller))
            case "is moved" | "is moved back":
                world.after(choices.spread(0.003, 30.0), lambda: asterisk.caller_is_moved(caller.channel, OTHER_APP))
                if does == "is moved back":
                    world.after(choices.spread(0.01, 35.0), lambda: self.environment.callers.move_back(caller))

    def _replace(self, caller: Caller, *, is_told_late: bool = False) -> None:
        """Let another channel take the place of a caller's leg: from then on it is the caller."""
        successor = caller.tenant.asterisk.leg_is_replaced(caller.channel, is_told_late=is_told_late)
        caller.channel = successor or caller.channel

    def _transfer(self, caller: Caller) -> None:
        """Let the platform transfer a caller, to a destination that may not answer, or may hang up first."""
        choices = self.choices
        number = choices.one_of(["100", "100", "100", "busy", "ring"])
        seconds = choices.spread(0.01, 20.0) if choices.happens(0.5) else None
        dies = choices.one_of([0, 1, 2, 3]) if not self.is_faultless and choices.happens(0.3) else None
        self.environment.callers.transfer(
            caller, number, hangs_up_after_seconds=seconds, api_dies_after=dies,
            forgotten_after_seconds=choices.spread(0.0005, 2.0),
        )  # fmt: skip
        if not self.is_faultless and choices.happens(0.2):
            self._break(Fault.PLATFORM_REDIS_AWAY)

    def _call_out(self) -> None:
        """Request an outbound call, or let the platform make one, perhaps for a run of another tenant."""
        choices, environment = self.choices, self.environment
        number = choices.one_of(["100", "100", "100", "busy", "congestion", "reject", "ring"])
        tenant = choices.one_of(environment.tenants)
        if self.aims_outbound or choices.happens(0.6):
            environment.callers.request_call(tenant, number, ring_seconds=round(choices.spread(2.0, 15.0)))
            return
        if choices.happens(0.2):
            environment.callers.platform_creates(tenant, answers_after_seconds=choices.spread(0.1, 10.0))
            return
        run = environment.callers.platform_calls(tenant, number)
        for other in environment.tenants:
            if other is not tenant and choices.happens(0.5):
                steal = functools.partial(environment.callers.platform_calls, other, "100", run=run)
                self.world.after(choices.spread(0.01, 5.0), steal)

    def _plan_agent(self, _channel_id: str) -> AgentPlan:
        choices = self.choices
        if self.world.is_calm:
            return AgentPlan(accepts_after_seconds=0.01)
        does = choices.one_of(["good", "good", "good", "slow", "leaves", "away", "refuses"])
        self._agents_are_good &= does == "good"
        match does:
            case "slow":
                return AgentPlan(accepts_after_seconds=choices.spread(0.01, 12.0))
            case "leaves":
                return AgentPlan(accepts_after_seconds=0.01, hangs_up_after_seconds=choices.spread(0.001, 20.0))
            case "away":
                return AgentPlan(accepts_after_seconds=None)
            case "refuses":
                return AgentPlan(accepts_after_seconds=None, refuses_after_seconds=choices.spread(0.0003, 0.5))
        return AgentPlan(accepts_after_seconds=choices.spread(0.002, 0.03))

    def _forge(self) -> None:
        """Let the second tenant's owner create a channel named like the first one's leg, and end it."""
        victims = [row.call for row in self.environment.store.rows.values() if first_of(row.call.connection_id) == 1]
        if not victims:
            return
        call, tenant = self.choices.one_of(victims), self.environment.tenants[1]
        asterisk = tenant.asterisk
        leg = NAMING.attempt(call, max(1, call.attempt)).legs[Role.MEDIA]
        name = self.choices.one_of([leg, call.channel_id])
        if asterisk.is_id_in_use(name) or not asterisk.is_running:
            return
        forged = channels.Channel(id=name, name="PJSIP/forged", kind=channels.Kind.CALLER, state="Up")
        forged.creationtime = call.channel_created or forged.creationtime
        asterisk.add(forged)
        self.world.tell(asterisk.name, "its owner creates a channel named %s", self.environment.invariants.named(name))
        asterisk.enter_stasis(forged, tenant.app, [])
        if ids.parse(name) is not None:
            self.world.after(self.choices.spread(0.001, 5.0), lambda: asterisk.caller_hangs_up(forged))
        else:
            self.environment.callers.all.append(Caller(tenant, forged))

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _entered(self, call: Call) -> None:
        """A call has entered a state."""
        self._aim(call.state)
        if call.state is State.CONNECTED and call.attempt > 1 and not self.world.is_calm and self.choices.happens(0.5):
            # The first attempt's requests may still take effect, when nothing is left of the call.
            (tenant,) = (
                one for one in self.environment.tenants if first_of(one.connection_id) == first_of(call.connection_id)
            )
            if (leg := tenant.asterisk.channels.get(call.channel_id)) is not None:
                self.world.after(self.choices.spread(0.01, 3.0), lambda: tenant.asterisk.caller_hangs_up(leg))

    def _aim(self, state: str) -> None:
        """Bring about the fault that this history aims at, now that a call is in that state."""
        world, target = self.world, self.world.target
        if target is None or target.state != state or self._is_aimed or world.is_calm:
            return
        self._is_aimed = True
        # The state lasts a little, and requests are made meanwhile that can fail.
        seconds = self.choices.spread(0.01, 0.5)
        if target.fault in faults.OUTAGES:
            world.target = None
            world.after(seconds * self.choices.draw(), lambda: self._break(target.fault, state))
        else:
            self.environment.ask_resyncs("a resync in between", full=True)
            if target.fault in faults.OF_EVENTS:
                # Early: a hang-up is one event, which has to come while the state lasts.
                world.after(seconds * self.choices.draw() / 4, self.environment.callers.hang_up_all)
                for caller in self.environment.callers.all:
                    caller.stays = False
            if state in (State.ENDED, State.ORIGINATING):
                for tenant in self.environment.tenants:
                    self._call_in(tenant)
        world.linger(seconds)

    def _break(self, outage: Fault, state: str | None = None) -> None:
        """Begin an outage.

        Args:
            state: Its victim is a call in this state, or that call's tenant, if there is one.
        """
        world, choices, environment = self.world, self.choices, self.environment
        if world.is_calm:
            return
        if outage is Fault.COMMITS_LOST and self._lose_commits(state):
            return
        hit = [one for one in environment.tenants if state in environment.states_of(None, one.connection_id)]
        tenant = choices.one_of(hit or environment.tenants)
        concerned = tenant.connection_id if outage in (
            Fault.SOCKET_CUT, Fault.ASTERISK_RESTARTED, Fault.ASTERISK_AWAY, Fault.SAVED_ANEW, Fault.LEG_REPLACED,
            Fault.LEG_REPLACED_LATE,
        ) else None  # fmt: skip
        states = environment.states_of(None, concerned) if concerned else environment.all_states()
        world.count_fault(outage, states)
        world.tell("", "FAULT: %s", outage)
        seconds = choices.spread(0.2, 25.0)
        match outage:
            case Fault.SOCKET_CUT:
                environment.listeners[environment.tenants.index(tenant)].cut()
            case Fault.ASTERISK_RESTARTED:
                tenant.asterisk.restart_after(seconds)
            case Fault.ASTERISK_CLOCK_SET:
                simulated_events.ahead_seconds = choices.one_of([-3600.0, -2.0, 2.0, 3600.0])
            case Fault.ASTERISK_AWAY:
                tenant.asterisk.is_away = True
                world.after(seconds, lambda: setattr(tenant.asterisk, "is_away", False))
            case Fault.LEG_REPLACED | Fault.LEG_REPLACED_LATE:
                self._replace_one(tenant, state, is_told_late=outage is Fault.LEG_REPLACED_LATE)
            case Fault.SAVED_ANEW:
                environment.save_anew(tenant)
            case _ if outage in faults.OF_SERVERS:
                self._break_server(outage, seconds)
            case _:
                self._break_workers(outage, seconds)

    def _break_server(self, outage: Fault, seconds: float) -> None:
        environment = self.environment
        match outage:
            case Fault.REDIS_FLUSHED:
                environment.flush_redis()
            case Fault.PLATFORM_REDIS_FLUSHED:
                if environment.platform_slots is not None:
                    environment.platform_slots.flush()
            case _:
                servers: dict[Fault, Postgres | Broker | PlatformRedis] = {
                    Fault.POSTGRES_AWAY: environment.postgres, Fault.REDIS_AWAY: environment.broker,
                    Fault.PLATFORM_REDIS_AWAY: environment.platform_redis,
                }  # fmt: skip
                server = servers[outage]
                server.is_away = True
                self.world.after(seconds, lambda: setattr(server, "is_away", False))

    def _replace_one(self, tenant: Tenant, state: str | None, *, is_told_late: bool) -> None:
        """Replace the leg of a tenant's call, of one in this state if there is one."""
        rows = self.environment.store.rows.values()
        calls = [row.call for row in rows if first_of(row.call.connection_id) == first_of(tenant.connection_id)]
        calls = [call for call in calls if call.state == state] or calls
        leg = tenant.asterisk.channels.get(self.choices.one_of(calls).leg_id) if calls else None
        if leg is None:
            return
        caller = next((one for one in self.environment.callers.all if one.channel is leg), None)
        self._replace(caller or Caller(tenant, leg), is_told_late=is_told_late)

    def _lose_commits(self, state: str | None) -> bool:
        """Fail over without the last commits of a call, of one in this state if there is one; False without any."""
        calls = [row.call for row in self.environment.store.rows.values()]
        if calls := [call for call in calls if call.state == state] or calls:
            self.environment.fail_over(self.choices.one_of(calls))
        return bool(calls)

    def _break_workers(self, outage: Fault, seconds: float) -> None:
        world, choices, environment = self.world, self.choices, self.environment
        match outage:
            case Fault.WORKERS_KILLED:
                for worker in list(environment.workers.processes):
                    worker.kill(world.now)
            case Fault.WORKER_FROZEN:
                # Often for longer than it counts as alive, and shorter than its claims last.
                seconds = choices.one_of([choices.between(4.6, 9.0), seconds])
                choices.one_of(environment.workers.processes).freeze(world.now, seconds)
            case Fault.WORKER_DECLARED_DEAD:
                environment.workers.declare_dead(choices.one_of(environment.workers.processes))


def _is_not_of_a_dial(event: events.Event) -> bool:
    of_end = event.type in (events.EventType.DIAL, events.EventType.CHANNEL_DESTROYED)
    return not (of_end and ids.is_originated(event.leg.id))


class ForeignCall:
    """A caller in the first tenant's app whom another controller bridges with its own media.

    Args:
        bridged_after: If above 0, the app is taken over from that controller now, and it bridges the caller so many
            seconds later.
    """

    def __init__(self, environment: Environment, *, bridged_after: float) -> None:
        self._environment = environment
        tenant = environment.tenants[0]
        self._asterisk, self._app = tenant.asterisk, tenant.app
        old = EventSocket(lambda _text: None, lambda: None)
        self._asterisk.applications.connect([self._app], old, subscribe_all=False)  # type: ignore[arg-type]
        self._legs = [
            channels.Channel(id="other.1", name="PJSIP/trunk-other", kind=channels.Kind.CALLER, state="Up"),
            channels.Channel(id="other.2", name="WebSocket/other/0x1", kind=channels.Kind.MEDIA, state="Up"),
        ]
        self._bridge = bridges.Bridge(id="other")
        self._asterisk.create_bridge(self._bridge)
        for leg in self._legs:
            self._asterisk.add(leg)
            self._asterisk.enter_stasis(leg, self._app, [])
        self._life = self._asterisk.life
        if bridged_after:
            environment.app_holders.displaced[tenant.connection_id] = environment.postgres.moment()
            environment.world.after(bridged_after, self._join)
        else:
            self._join()

    def _join(self) -> None:
        """Bridge the legs, unless the Asterisk was restarted since, or they were harmed, which `check` reports."""
        if self._asterisk.life == self._life and all(map(self._asterisk.is_alive, self._legs)):
            self._asterisk.add_to_bridge(self._bridge, [leg.id for leg in self._legs])

    def check(self) -> None:
        """Report a violation if it was touched; not if its Asterisk was restarted."""
        is_whole = self._asterisk.bridges.get("other") is self._bridge and self._bridge.channel_ids == [
            "other.1",
            "other.2",
        ]
        if self._asterisk.life == self._life and not is_whole:
            self._environment.world.violation("another controller's call was harmed")
