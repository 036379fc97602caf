"""The other ends of an environment's calls: callers, requests for outbound calls, and calls that the platform makes."""

from __future__ import annotations

from dataclasses import dataclass

from shared import messages
from shared.call.call_requests import CallRequest
from simulator import bridges, channels
from simulator import originates as simulator_originates
from tests.simulation import asterisks
from tests.simulation.brokers import Broker
from tests.simulation.platforms import Run, Runs, Tenant
from tests.simulation.world import World

_PATIENCE_SECONDS = 5.0
_TRY_SECONDS = 0.1
#: The `systemname` of an Asterisk begins the ids that it chooses.
_SYSTEM_NAMES = ('Haus "2", ', "")
#: For so long a destination bears silence.
_ALONE_SECONDS = 2.0


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

    def __init__(self, world: World, broker: Broker, runs: Runs, tenants: list[Tenant]) -> None:
        self._world = world
        self._broker = broker
        self._runs = runs
        self._tenants = tenants
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
        run = self._runs.begin(tenant.organization_id) if run is None else run
        self._world.after(0.0, lambda: self._dial(tenant, number, run))
        return run

    def platform_creates(self, tenant: Tenant, *, answers_after_seconds: float) -> Run:
        """Let the platform create a leg first and dial it then (`POST /channels/create`): it rings in Stasis."""
        run = self._runs.begin(tenant.organization_id)
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

    def transfer(self, caller: Caller, number: str, *, hangs_up_after_seconds: float | None = None) -> str:
        """Let the platform transfer a caller: dial a number, and swap the legs when it is answered.

        Args:
            hangs_up_after_seconds: When the destination hangs up; None if it stays.

        Returns:
            The id of the destination's leg.
        """
        self._requests += 1
        channel_id = f"{asterisks.DESTINATION}{self._requests}"
        self._world.after(0.0, lambda: self._transfer(caller, number, channel_id))
        if hangs_up_after_seconds is not None:
            self._world.after(hangs_up_after_seconds, lambda: self._hang_up(caller.tenant.asterisk, channel_id))
        return channel_id

    def _transfer(self, caller: Caller, number: str, channel_id: str) -> None:
        asterisk = caller.tenant.asterisk
        if not asterisk.is_running or not asterisk.is_with_agent(caller.channel):
            return
        destination = simulator_originates.originate(
            asterisk, endpoint=f"PJSIP/{number}", app=caller.tenant.app, args=["transfer", channel_id], caller="",
            channel_id=channel_id, other_channel_id=None, timeout_seconds=10.0,
        )  # fmt: skip
        self._world.tell(asterisk.name, "the platform transfers %s: %s", caller.channel.id, channel_id)
        self._await_destination(caller, destination)

    @staticmethod
    def _hang_up(asterisk: asterisks.Asterisk, channel_id: str) -> None:
        leg = asterisk.channels.get(channel_id)
        if leg is not None:
            asterisk.caller_hangs_up(leg)

    def _await_destination(self, caller: Caller, destination: channels.Channel) -> None:
        asterisk = caller.tenant.asterisk
        if not asterisk.is_alive(destination):
            return
        if destination.app is None:
            self._world.after(_TRY_SECONDS, lambda: self._await_destination(caller, destination))
            return
        media = [leg for leg in asterisk.others_in_bridge(caller.channel) if leg.kind is channels.Kind.MEDIA]
        bridge = asterisk.bridges.get(caller.channel.bridge_id or "")
        if bridge is not None and len(media) == 1:
            self._runs.transferred.add(caller.channel.id)
            asterisk.add_to_bridge(bridge, [destination.id])
            pauses = [self._world.choices.spread(0.0005, 0.02) for _ in range(2)]
            self._world.after(pauses[0], lambda: self._take_out(asterisk, bridge, media[0]))
            self._world.after(sum(pauses), lambda: asterisk.hang_up(media[0], 16, soft=True))
        self._world.after(_ALONE_SECONDS, lambda: self._leave_if_alone(asterisk, destination))

    @staticmethod
    def _take_out(asterisk: asterisks.Asterisk, bridge: bridges.Bridge, leg: channels.Channel) -> None:
        if asterisk.is_alive(leg) and leg.bridge_id == bridge.id:
            asterisk.remove_from_bridge(bridge, [leg.id])

    def _leave_if_alone(self, asterisk: asterisks.Asterisk, destination: channels.Channel) -> None:
        """Let a destination that hears silence hang up."""
        if not asterisk.is_alive(destination):
            return
        if not asterisk.is_with_agent(destination):
            asterisk.caller_hangs_up(destination)
        else:
            self._world.after(_ALONE_SECONDS, lambda: self._leave_if_alone(asterisk, destination))

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
