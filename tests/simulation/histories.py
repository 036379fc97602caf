"""One history: a site, its callers and agents, a time in which things go wrong, and the quiet after it.

What a history is like follows from its seed alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from shared.call import ids
from shared.call.states import State
from simulator import bridges, channels
from tests.simulation import faults
from tests.simulation.asterisks import PREFIX, AgentPlan, EventSocket
from tests.simulation.chances import Chances
from tests.simulation.faults import NO_CALL, Fault
from tests.simulation.invariants import ENDING_SECONDS, RECOVERY_SECONDS
from tests.simulation.parties import Caller
from tests.simulation.platforms import Tenant
from tests.simulation.sites import Site
from tests.simulation.world import World

_LOOK_SECONDS = 5.0
#: What was frozen before the last fault goes on within this time.
_FROZEN_SECONDS = 42.0
_TARGETS = faults.targets()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a history."""

    seed: int
    violations: tuple[str, ...]
    tally: faults.Tally
    chances: tuple[float, ...]
    story: tuple[tuple[float, str, str], ...]


def live(seed: int, given: Sequence[float] | None = None, *, telling: bool = False) -> Outcome:
    """Lives through the history of a seed.

    Args:
        given: The chances of an earlier life, or a simpler form of them; instead of the seed's own.
    """
    history = History(seed, Chances(seed, given), telling=telling)
    world = history.world
    try:
        history.run()
    finally:
        world.end()
    return Outcome(seed, tuple(world.violations), world.tally, tuple(world.chances.drawn), tuple(world.story))


class History:
    """One history, going for one pair of state and fault."""

    def __init__(self, seed: int, chances: Chances, *, telling: bool) -> None:
        self.chances = chances
        target = _TARGETS[seed % len(_TARGETS)]
        rate = chances.one_of([0.0, 0.0, 0.0, 0.003, 0.01, 0.03])
        #: Nothing goes wrong in it, so all has to be as fast as ever.
        self.is_faultless = chances.happens(0.12)
        if self.is_faultless:
            self.world = World(chances, telling=telling)
            self.world.tell("", "nothing goes wrong")
        else:
            self.world = World(chances, fault_rate=rate, target=target, telling=telling)
            told = "goes for: %s, %s; %.1f %% of port calls go wrong"
            self.world.tell("", told, target.state, target.fault, rate * 100)
        shape = chances.one_of([("pbx1",), ("pbx1", "pbx2"), ("pbx1", "pbx1")])
        self.site = Site(
            self.world,
            asterisks=shape,
            plan_agent=self._plan_agent,
            answer_after_seconds=chances.spread(0.02, 5.0),
            continue_in_dialplan=chances.happens(0.3),
            slots=chances.one_of([None, None, 4, 1]),
            refuses=chances.one_of([0.0, 0.0, 0.5]),
        )
        self.aims_outbound = not self.is_faultless and target.state in (State.ORIGINATING, State.RINGING)
        self.dials = self.aims_outbound or chances.happens(0.4)
        if target.state is State.ADMITTED and not self.is_faultless:
            # A call is seen to be admitted only where the next step is another worker's.
            self.site.workers.always_alone = True
        self.site.invariants.entered = self._aim
        self.site.invariants.is_prompt = self.is_faultless
        self._agents_are_good = True
        self._is_aimed = False

    def run(self) -> None:
        """From the first connect to the last invariant."""
        world, chances, site = self.world, self.chances, self.site
        others = OthersCall(site) if chances.happens(0.25) else None
        site.open()
        self._aim(NO_CALL)
        for tenant in site.tenants:
            for _ in range(chances.one_of([1, 1, 2]) if tenant is site.tenants[0] else 1):
                world.after(chances.between(0.3, 2.0), functools.partial(self._call_in, tenant))
        if self.dials:
            for _ in range(chances.one_of([1, 2])):
                world.after(chances.between(0.3, 2.0), self._call_out)
        if len(site.asterisks) > 1:
            world.after(chances.between(0.5, 8.0), self._forge)
        for _ in range(0 if self.is_faultless else chances.one_of([0, 0, 1, 2])):
            outage = chances.one_of(faults.OUTAGES)
            world.after(chances.spread(0.3, 20.0), functools.partial(self._break, outage))
        world.run(chances.spread(6.0, 40.0))
        site.calm_down()
        calm_since = world.now
        world.after(chances.between(20.0, 25.0), lambda: site.parties.call_in(site.tenants[0], is_probe=True))
        while world.now < calm_since + RECOVERY_SECONDS and not world.violations:
            world.run(world.now + _LOOK_SECONDS)
            if world.now > calm_since + _FROZEN_SECONDS and site.invariants.is_recovered():
                break
        site.invariants.check_recovered(site.parties.callers, is_faultless=self.is_faultless and self._agents_are_good)
        if others is not None:
            others.check()
        site.parties.hang_up_all()
        world.run(world.now + ENDING_SECONDS)
        site.invariants.check_end()

    # ── the parties ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _call_in(self, tenant: Tenant) -> None:
        chances, world, asterisk = self.chances, self.world, tenant.asterisk
        caller = self.site.parties.call_in(tenant)
        does = chances.one_of(["stays", "stays", "hangs up", "hangs up soon", "goes on", "comes back"])
        caller.stays = does == "stays"
        match does:
            case "hangs up":
                world.after(chances.spread(0.3, 30.0), lambda: asterisk.caller_hangs_up(caller.channel))
            case "hangs up soon":
                world.after(chances.spread(0.001, 0.3), lambda: asterisk.caller_hangs_up(caller.channel))
            case "goes on":
                world.after(chances.spread(0.003, 30.0), lambda: asterisk.caller_goes_on(caller.channel))
            case "comes back":
                away = chances.spread(0.0005, 10.0)
                world.after(chances.spread(0.003, 30.0), lambda: self.site.parties.come_back(caller, away))

    def _call_out(self) -> None:
        """Somebody wants a call to be placed, or the platform places one, perhaps for a run of another tenant."""
        chances, site = self.chances, self.site
        number = chances.one_of(["100", "100", "100", "busy", "congestion", "reject", "ring"])
        tenant = chances.one_of(site.tenants)
        if self.aims_outbound or chances.happens(0.6):
            site.parties.request_call(tenant, number, ring_seconds=round(chances.spread(2.0, 15.0)))
            return
        run = site.parties.platform_calls(tenant, number)
        for other in site.tenants:
            if other is not tenant and chances.happens(0.5):
                steal = functools.partial(site.parties.platform_calls, other, "100", run=run)
                self.world.after(chances.spread(0.01, 5.0), steal)

    def _plan_agent(self, _channel_id: str) -> AgentPlan:
        chances = self.chances
        if self.world.is_calm:
            return AgentPlan(accepts_after_seconds=0.01)
        does = chances.one_of(["good", "good", "good", "slow", "leaves", "away"])
        self._agents_are_good &= does == "good"
        match does:
            case "slow":
                return AgentPlan(accepts_after_seconds=chances.spread(0.01, 12.0))
            case "leaves":
                return AgentPlan(accepts_after_seconds=0.01, hangs_up_after_seconds=chances.spread(0.001, 20.0))
            case "away":
                return AgentPlan(accepts_after_seconds=None)
        return AgentPlan(accepts_after_seconds=chances.spread(0.002, 0.03))

    def _forge(self) -> None:
        """The second tenant's owner makes channels named like the first one's legs, and lets them end."""
        victims = [row.call for row in self.site.store.rows.values() if row.call.connection_id == 1]
        if not victims:
            return
        call, tenant = self.chances.one_of(victims), self.site.tenants[1]
        asterisk = tenant.asterisk
        name = self.chances.one_of([ids.media_id(PREFIX, call.call_id, max(1, call.attempt)), call.channel_id])
        if asterisk.is_id_in_use(name) or not asterisk.is_running:
            return
        forged = channels.Channel(id=name, name="PJSIP/forged", kind=channels.Kind.CALLER, state="Up")
        forged.creationtime = call.channel_created or forged.creationtime
        asterisk.add(forged)
        self.world.tell(asterisk.name, "its owner makes a channel named %s", self.site.invariants.named(name))
        asterisk.enter_stasis(forged, tenant.app, [])
        if ids.parse(PREFIX, name) is not None:
            self.world.after(self.chances.spread(0.001, 5.0), lambda: asterisk.caller_hangs_up(forged))
        else:
            self.site.parties.callers.append(Caller(tenant, forged))

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────

    def _aim(self, state: str) -> None:
        """Brings about what this history goes for, now that a call is in that state."""
        world, target = self.world, self.world.target
        if target is None or target.state != state or self._is_aimed or world.is_calm:
            return
        self._is_aimed = True
        # The state lasts a little, and things happen meanwhile at which something can go wrong.
        seconds = self.chances.spread(0.01, 0.5)
        if target.fault in faults.OUTAGES:
            world.target = None
            world.after(seconds * self.chances.draw(), lambda: self._break(target.fault))
        else:
            self.site.ask_resyncs("a look in between", full=True)
            if target.fault in faults.OF_EVENTS:
                world.after(seconds * self.chances.draw(), self.site.parties.hang_up_all)
                for caller in self.site.parties.callers:
                    caller.stays = False
            if state in (State.ENDED, State.ORIGINATING):
                for tenant in self.site.tenants:
                    self._call_in(tenant)
        world.linger(seconds)

    def _break(self, outage: Fault) -> None:
        """Something big goes wrong."""
        world, chances, site = self.world, self.chances, self.site
        if world.is_calm:
            return
        tenant = chances.one_of(site.tenants)
        concerned = tenant.connection_id if outage in (
            Fault.SOCKET_CUT, Fault.ASTERISK_RESTARTED, Fault.ASTERISK_AWAY
        ) else None  # fmt: skip
        states = site.states_of(None, concerned) if concerned else site.all_states()
        world.struck(outage, states)
        world.tell("", "FAULT: %s", outage)
        seconds = chances.spread(0.2, 25.0)
        match outage:
            case Fault.SOCKET_CUT:
                site.listeners[site.tenants.index(tenant)].cut()
            case Fault.ASTERISK_RESTARTED:
                tenant.asterisk.restart_after(seconds)
            case Fault.ASTERISK_AWAY:
                tenant.asterisk.is_away = True
                world.after(seconds, lambda: setattr(tenant.asterisk, "is_away", False))
            case Fault.POSTGRES_AWAY:
                site.postgres.is_away = True
                world.after(seconds, lambda: setattr(site.postgres, "is_away", False))
            case Fault.REDIS_AWAY:
                site.broker.is_away = True
                world.after(seconds, lambda: setattr(site.broker, "is_away", False))
            case Fault.REDIS_FLUSHED:
                site.flush_redis()
            case Fault.WORKERS_KILLED:
                for worker in list(site.workers.processes):
                    worker.kill()
            case Fault.WORKER_FROZEN:
                chances.one_of(site.workers.processes).frozen_until = world.now + seconds


class OthersCall:
    """A caller in the first tenant's app whom another controller has bridged with media of its own."""

    def __init__(self, site: Site) -> None:
        self._site = site
        tenant = site.tenants[0]
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
        self._asterisk.add_to_bridge(self._bridge, [leg.id for leg in self._legs])
        self._life = self._asterisk.life

    def check(self) -> None:
        """Nobody has touched it, unless its Asterisk has died."""
        is_whole = self._asterisk.bridges.get("other") is self._bridge and self._bridge.channel_ids == [
            "other.1",
            "other.2",
        ]
        if self._asterisk.life == self._life and not is_whole:
            self._site.world.violation("another controller's call was harmed")
