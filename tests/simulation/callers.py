"""The other ends of an environment's calls: callers, requests for outbound calls, and calls that the platform makes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from shared import messages
from shared.call.call_requests import CallRequest
from simulator import bridges, channels
from simulator import originates as simulator_originates
from tests.simulation import asterisks
from tests.simulation.brokers import Broker
from tests.simulation.platform_redis import PlatformSlots
from tests.simulation.platforms import Run, Runs, Tenant
from tests.simulation.transfer_events import TransferEvents
from tests.simulation.world import World

_PATIENCE_SECONDS = 5.0
_TRY_SECONDS = 0.1
#: The `systemname` of an Asterisk begins the ids that it chooses.
_SYSTEM_NAMES = ('Haus "2", ', "")
#: Without faults no destination is left in silence for so long.
_ALONE_SECONDS = 40.0
#: The platform's API waits so long for a destination to answer.
_WAIT_SECONDS = 20.0


@dataclass(slots=True, eq=False)
class Caller:
    """One caller."""

    tenant: Tenant
    channel: channels.Channel
    #: Called after the last fault: must get an agent.
    is_probe: bool = False
    #: Hangs up only at the end of the history.
    stays: bool = True


class Callers:
    """Starts calls, and keeps the callers."""

    def __init__(
        self,
        world: World,
        broker: Broker,
        runs: Runs,
        news: TransferEvents,
        tenants: list[Tenant],
        *,
        slots: PlatformSlots | None,
    ) -> None:
        self._world = world
        self._news = news
        self._broker = broker
        self._runs = runs
        self._tenants = tenants
        self._slots = slots
        self.all: list[Caller] = []
        self._requests = 0

    def call_in(self, tenant: Tenant, *, is_probe: bool = False) -> Caller:
        """Let a caller call a tenant."""
        world, asterisk = self._world, tenant.asterisk
        number = len(self.all) + 1
        channel = channels.Channel(
            id=f"{_SYSTEM_NAMES[number % 2]}{number}.{tenant.connection_id}",
            name=f"PJSIP/trunk-{number:08x}",
            kind=channels.Kind.CALLER,
            state="Ring",
            caller_number=f"+4930{number}",
            extension="5551234",
        )
        caller = Caller(tenant, channel, is_probe)
        self.all.append(caller)
        if asterisk.is_running:
            asterisk.add(channel)
            world.tell(asterisk.name, "caller %s calls %s", channel.id, tenant.app)
            self.enter(caller)
        return caller

    def request_call(self, tenant: Tenant, number: str, *, ring_seconds: float = 20.0) -> CallRequest:
        """Request that a tenant calls a number: `busy`, `reject` and the like, or one that is answered."""
        self._requests += 1
        request = CallRequest(
            organization_id=tenant.organization_id, number=number, request_id=f"request-{self._requests}",
            workflow_id=tenant.organization_id, ring_seconds=ring_seconds,
        )  # fmt: skip
        self._world.tell("", "%s is to call %s", tenant.app, number)
        self._broker.put(messages.of_request(request))
        return request

    def platform_calls(self, tenant: Tenant, number: str, *, run: Run | None = None) -> Run:
        """Let the platform call a number through a tenant's Asterisk, for a new run, or for another tenant's."""
        run = self._begun(tenant) if run is None else run
        self._world.after(0.0, lambda: self._dial(tenant, number, run))
        return run

    def _begun(self, tenant: Tenant) -> Run:
        run = self._runs.begin(tenant.organization_id)
        if self._slots is not None:
            self._slots.begin(run.organization_id, run.run_id)
        return run

    def platform_creates(self, tenant: Tenant, *, answers_after_seconds: float) -> Run:
        """Let the platform create a leg first and dial it then (`POST /channels/create`): it rings in Stasis."""
        run = self._begun(tenant)
        self._world.after(0.0, lambda: self._create(tenant, run, answers_after_seconds))
        return run

    def _create(self, tenant: Tenant, run: Run, answers_after_seconds: float) -> None:
        asterisk, channel_id = tenant.asterisk, f"platform-{run.run_id}-{tenant.connection_id}"
        if not asterisk.is_running:
            return
        leg = channels.Channel(
            id=channel_id, name=f"PJSIP/100-{run.run_id:08x}", kind=channels.Kind.ORIGINATED, state="Ringing"
        )
        run.channel_id = channel_id
        self._world.tell(asterisk.name, "the platform creates a leg for run %s, which rings in Stasis", run.run_id)
        asterisk.add(leg)
        args = [f"workflow_run_id={run.run_id}", f"workflow_id={run.organization_id}"]
        if not asterisk.enter_stasis(leg, tenant.app, args):
            asterisk.hang_up(leg, 16, soft=False)
        self._world.after(answers_after_seconds, lambda: asterisk.answer(leg) if asterisk.is_alive(leg) else None)

    def _dial(self, tenant: Tenant, number: str, run: Run) -> None:
        asterisk, channel_id = tenant.asterisk, f"platform-{run.run_id}-{tenant.connection_id}"
        if not asterisk.is_running or asterisk.is_id_in_use(channel_id):
            return
        args = [f"workflow_run_id={run.run_id}", f"workflow_id={run.organization_id}"]
        simulator_originates.originate(
            asterisk, endpoint=f"PJSIP/{number}", app=tenant.app, args=args, caller="", channel_id=channel_id,
            other_channel_id=None, timeout_seconds=10.0,
        )  # fmt: skip
        self._world.tell(asterisk.name, "the platform calls %s for run %s", number, run.run_id)
        if run.organization_id == tenant.organization_id:
            # The platform learns the channel id only from Asterisk's answer, and writes it when it likes.
            seconds = self._world.choices.spread(0.001, 0.5)
            self._world.after(seconds, lambda: setattr(run, "channel_id", channel_id))

    def transfer(
        self,
        caller: Caller,
        number: str,
        *,
        hangs_up_after_seconds: float | None = None,
        api_dies_after: int | None = None,
        forgotten_after_seconds: float = 0.01,
    ) -> str:
        """Let the platform transfer a caller: dial a number, and swap the legs when it hears that it was answered.

        Args:
            hangs_up_after_seconds: When the destination hangs up; None if it stays.
            api_dies_after: How many steps of the swap its API makes before it dies with its agent; None for all.
            forgotten_after_seconds: How long after the swap the API removes what it has written down.

        Returns:
            The id of the destination's leg.
        """
        self._requests += 1
        channel_id = f"{asterisks.DESTINATION}{self._requests}"
        swap = functools.partial(
            self._swap, caller, api_dies_after=api_dies_after, forgotten_after_seconds=forgotten_after_seconds
        )
        self._world.after(0.0, lambda: self._transfer(caller, number, channel_id, swap))
        if hangs_up_after_seconds is not None:
            self._world.after(hangs_up_after_seconds, lambda: self._hang_up(caller.tenant.asterisk, channel_id))
        return channel_id

    def _transfer(self, caller: Caller, number: str, channel_id: str, swap: Callable[[channels.Channel], None]) -> None:
        asterisk = caller.tenant.asterisk
        if not asterisk.is_running or not asterisk.is_with_agent(caller.channel):
            return
        self._news.begin(channel_id, caller.channel.id)
        destination = simulator_originates.originate(
            asterisk, endpoint=f"PJSIP/{number}", app=caller.tenant.app, args=["transfer", channel_id], caller="",
            channel_id=channel_id, other_channel_id=None, timeout_seconds=10.0,
        )  # fmt: skip
        self._world.tell(asterisk.name, "the platform transfers %s: %s", caller.channel.id, channel_id)
        # It listens only after Asterisk has answered: an answer of the destination may be told before.
        self._world.after(self._world.choices.spread(0.0005, 0.3), lambda: self._listen(destination, swap))
        self._world.after(_WAIT_SECONDS, lambda: self._news.end(channel_id))
        self._world.after(_ALONE_SECONDS, lambda: self._look_at(asterisk, destination))

    def _listen(self, destination: channels.Channel, swap: Callable[[channels.Channel], None]) -> None:
        def answered() -> None:
            self._world.after(0.0005, lambda: swap(destination))

        self._news.listen(destination.id, destination.id, answered)

    @staticmethod
    def _hang_up(asterisk: asterisks.Asterisk, channel_id: str) -> None:
        leg = asterisk.channels.get(channel_id)
        if leg is not None:
            asterisk.caller_hangs_up(leg)

    def _swap(
        self,
        caller: Caller,
        destination: channels.Channel,
        *,
        api_dies_after: int | None,
        forgotten_after_seconds: float,
    ) -> None:
        """Do what the API does when it has heard that a destination has answered; or a part of it, and then die."""
        asterisk = caller.tenant.asterisk
        media = [leg for leg in asterisk.others_in_bridge(caller.channel) if leg.kind is channels.Kind.MEDIA]
        bridge = asterisk.bridges.get(caller.channel.bridge_id or "")
        if bridge is None or len(media) != 1:
            self._news.end(destination.id)
            return
        self._runs.transferred.add(caller.channel.id)

        def add() -> None:
            if asterisk.is_alive(destination) and asterisk.bridges.get(bridge.id) is bridge:
                asterisk.add_to_bridge(bridge, [destination.id])

        def hang_up() -> None:
            if asterisk.is_alive(media[0]):
                asterisk.hang_up(media[0], 16, soft=True)

        def forget() -> None:
            self._world.after(forgotten_after_seconds, lambda: self._news.end(destination.id))

        steps = [add, lambda: self._take_out(asterisk, bridge, media[0]), hang_up, forget]
        if api_dies_after is not None and api_dies_after < len(steps):
            # The media socket breaks with it.
            steps = [*steps[:api_dies_after], hang_up]
        at = 0.0
        for step in steps:
            self._world.after(at, step)
            at += self._world.choices.spread(0.0005, 0.02)

    @staticmethod
    def _take_out(asterisk: asterisks.Asterisk, bridge: bridges.Bridge, leg: channels.Channel) -> None:
        if asterisk.is_alive(leg) and leg.bridge_id == bridge.id:
            asterisk.remove_from_bridge(bridge, [leg.id])

    def _look_at(self, asterisk: asterisks.Asterisk, destination: channels.Channel) -> None:
        """See that a destination is not left in silence: it would stay for ever."""
        if not asterisk.is_alive(destination):
            return
        is_alone = destination.app is not None and not asterisk.is_with_agent(destination)
        if is_alone and self._world.is_calm_for(_ALONE_SECONDS):
            self._world.violation(f"destination {destination.id} was left alone for {_ALONE_SECONDS:.0f} s")
        self._world.after(_ALONE_SECONDS, lambda: self._look_at(asterisk, destination))

    def enter(self, caller: Caller, since: float | None = None) -> None:
        """Run the recommended dialplan: ring, and try again while no event socket is connected."""
        asterisk, channel = caller.tenant.asterisk, caller.channel
        since = self._world.now if since is None else since
        if not asterisk.is_alive(channel) or asterisk.enter_stasis(channel, caller.tenant.app, []):
            return
        if self._world.now > since + _PATIENCE_SECONDS:
            asterisk.caller_hangs_up(channel)
        else:
            self._world.after(_TRY_SECONDS, lambda: self.enter(caller, since))

    def come_back(self, caller: Caller, after_seconds: float) -> None:
        """Let the caller leave Stasis and enter it again."""
        if caller.tenant.asterisk.caller_leaves_stasis(caller.channel):
            self._world.after(after_seconds, lambda: self.enter(caller))

    def move_back(self, caller: Caller) -> None:
        """Let another program move the caller to our app, as soon as that is connected."""
        asterisk = caller.tenant.asterisk
        is_there = asterisk.is_alive(caller.channel) and caller.channel.app == asterisks.OTHER_APP
        if is_there and not asterisk.caller_is_moved(caller.channel, caller.tenant.app):
            self._world.after(_TRY_SECONDS, lambda: self.move_back(caller))

    def hang_up_all(self) -> None:
        """Let every caller hang up, except those whom another controller serves."""
        self._world.tell("", "all callers hang up")
        for asterisk in dict.fromkeys(tenant.asterisk for tenant in self._tenants):
            for leg in list(asterisk.channels.values()):
                if leg.kind is not channels.Kind.MEDIA and not leg.id.startswith("other."):
                    asterisk.caller_hangs_up(leg)
