"""The Asterisks: the switch of `simulator/`, which the contract suite compares with a real one, in virtual time.

Only its outside is replaced: HTTP, websockets, and the voice agent at the end of a media leg.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import greenlet

from shared.asterisk import rest
from shared.call import ids
from shared.call.legs import Naming
from simulator import (
    bridges,
    channels,
    dialplan,
    events,
    settings,
    switch,
)
from simulator import media as simulator_media
from tests.simulation.world import Fiber, World

#: Begins the ids of legs that the platform originates for transfers.
DESTINATION = "transfer-"
#: Begins the ids of channels that take the place of a leg.
SUCCESSOR = "successor-"
PREFIX = "aip-s4m7t2-"
NAMING = Naming(PREFIX)
CLIENT = "media"
#: The app of another program.
OTHER_APP = "ivr"
#: Asterisk gives up a voice agent that does not answer after this (connection_timeout, and one attempt).
_AGENT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """What the voice agent does with one media leg."""

    #: None: it refuses, or cannot be reached.
    accepts_after_seconds: float | None
    #: When it refuses, or Asterisk gives up.
    refuses_after_seconds: float = _AGENT_SECONDS
    #: None: it stays until the call ends.
    hangs_up_after_seconds: float | None = None

    @property
    def is_good(self) -> bool:
        """True if it accepts soon, and stays."""
        accepts = self.accepts_after_seconds
        return accepts is not None and accepts <= _AGENT_SECONDS and self.hangs_up_after_seconds is None


class MediaLegs(simulator_media.MediaLegs):
    """Media legs without sockets."""

    def __init__(self, owner: Asterisk) -> None:
        super().__init__(owner)
        self._owner = owner
        self._connecting: dict[str, asyncio.Event] = {}

    def start(self, channel: channels.Channel, url: str, app: str, args: list[str], *, dialstring: str) -> None:
        self._connecting[channel.id] = asyncio.Event()
        self._owner.created(channel.id)
        plan = self._owner.plan_agent(channel.id)
        if _run_of(url) in self._owner.served_runs:
            # It serves a run once.
            plan = AgentPlan(accepts_after_seconds=None, refuses_after_seconds=0.01)
        own = ids.parse(channel.id)
        if own is not None and not plan.is_good:
            self._owner.badly_served.add(own.call_id)
        wait = plan.refuses_after_seconds if plan.accepts_after_seconds is None else plan.accepts_after_seconds
        self._owner.agent_seconds = max(self._owner.agent_seconds, wait)
        self._owner.world.after(wait, lambda: self._connected(channel, app, args, dialstring, plan, url=url))

    def is_connecting(self, channel_id: str) -> bool:
        return channel_id in self._connecting

    async def wait_connected(self, channel_id: str) -> None:
        if channel_id in self._connecting:
            await self._connecting[channel_id].wait()

    def close(self, channel_id: str) -> None:
        if (connecting := self._connecting.pop(channel_id, None)) is not None:
            connecting.set()

    def wipe(self) -> None:
        for channel_id in list(self._connecting):
            self.close(channel_id)

    def _connected(
        self, channel: channels.Channel, app: str, args: list[str], dialstring: str, plan: AgentPlan, *, url: str
    ) -> None:
        owner = self._owner
        if not owner.is_alive(channel):
            return
        if plan.accepts_after_seconds is None:
            if channel.doomed:
                self.close(channel.id)
            else:
                owner.world.tell(owner.name, "the agent of %s cannot be reached", owner.named(channel.id))
                owner.destroy(channel, 3)
                owner.agent_not_reached(channel.id)
            return
        owner.applications.publish(channel.id, events.dial(channel.snapshot(), "", dialstring))
        owner.answer(channel)
        owner.applications.publish(channel.id, events.dial(channel.snapshot(), "ANSWER", dialstring))
        entered = owner.enter_stasis(channel, app, args)
        self.close(channel.id)
        own = ids.parse(channel.id)
        if own is not None and entered:
            owner.served.add(own.call_id)
            owner.served_runs.add(_run_of(url))
            owner.agent_came(channel.id, int(_run_of(url)))
        if not entered:
            owner.destroy(channel, 16)
        elif plan.hangs_up_after_seconds is not None:
            owner.world.after(plan.hangs_up_after_seconds, lambda: owner.agent_hangs_up(channel))


class EventSocket:
    """The Asterisk's end of an event socket."""

    opened_at = 0.0

    def __init__(self, hear: Callable[[str], None], lost: Callable[[], None]) -> None:
        self._hear = hear
        self._lost = lost
        self.is_open = True

    def send(self, text: str) -> None:
        if self.is_open:
            self._hear(text)

    def cut(self) -> None:
        if self.is_open:
            self.is_open = False
            self._lost()

    def fall_silent(self) -> None:
        self.is_open = False


class Asterisk(switch.Switch):
    """One Asterisk. It reports a violation when a step would crash it or harm its callers."""

    media: MediaLegs

    def __init__(
        self, world: World, name: str, plan_agent: Callable[[str], AgentPlan], answer_after_seconds: float
    ) -> None:
        configured = settings.Settings(
            audio=False, log_entries=0, media_urls={CLIENT: "ws://agent"}, answer_after_seconds=answer_after_seconds
        )
        super().__init__(configured)
        self.world = world
        self.name = name
        self.plan_agent = plan_agent
        self.media = MediaLegs(self)
        #: Unreachable: requests to it time out.
        self.is_away = False
        #: Channel id → when that caller's leg left Stasis, alive.
        self.left_at: dict[str, float] = {}
        #: Channel id → when it was made.
        self.added_at: dict[str, float] = {}
        #: Channel id and stamp of entering Stasis → when that was.
        self.entered_at: dict[tuple[str, str | None], float] = {}
        #: Channel id → how often it has entered Stasis.
        self.entries: Counter[str] = Counter()
        #: The longest that a voice agent has taken to accept or to refuse.
        self.agent_seconds = 0.0
        #: Calls whose voice agent has been on the line.
        self.served: set[UUID] = set()
        #: Their runs.
        self.served_runs: set[str] = set()
        #: Calls whose voice agent was slow, refused, was not there, or left by itself.
        self.badly_served: set[UUID] = set()
        #: Legs that a request put into their bridge when another worker may have gone on already.
        self._joined_late: set[str] = set()
        #: Called when the agent of a media leg is gone.
        self.agent_lost: Callable[[str], None] = lambda _channel_id: None
        #: Called when a media leg has ended before its agent accepted it.
        self.agent_not_reached: Callable[[str], None] = lambda _channel_id: None
        #: Called when a dialled leg was not answered, with the cause.
        self.unanswered: Callable[[channels.Channel, int], None] = lambda _channel, _cause: None
        #: Called when a request is about to be sent.
        self.requested: Callable[[rest.RequestBudget], None] = lambda _budget: None
        #: Called when the product creates a media leg or a bridge, or dials.
        self.created: Callable[[str], None] = lambda _name: None
        #: Called when a channel is about to take the place of a party's leg.
        self.replaced: Callable[..., None] = lambda _leg, _successor, *, is_told_late: None
        #: Called when a step hangs up a leg that the platform has originated to transfer a caller to it.
        self.destination_hung_up: Callable[[channels.Channel], None] = lambda _leg: None
        #: Called with the run of a voice agent that has been on the line and is gone.
        self.pipeline_ended: Callable[[int], None] = lambda _run_id: None
        #: Media leg → its run, once its agent is on the line.
        self._run_of: dict[str, int] = {}
        #: Returns the name of a channel or bridge in the story.
        self.named: Callable[[str], str] = lambda channel_id: channel_id

    # ── what must never happen ────────────────────────────────────────────────────────────────────────────────────────

    def crash(self) -> None:
        self.world.violation(f"{self.name} crashed: a media leg was requested under an id that is in use")
        super().crash()

    def answer(self, channel: channels.Channel) -> None:
        fiber = greenlet.getcurrent()
        if type(fiber) is Fiber and channel.kind is channels.Kind.CALLER and fiber.call_id not in self.served:
            self.world.violation(f"{channel.id} is answered, and no agent has been on the line")
        super().answer(channel)

    def hang_up(self, channel: channels.Channel, cause: int, *, soft: bool) -> None:
        fiber = greenlet.getcurrent()
        # A step looks before it hangs up; no step is to blame for what happens between the two requests.
        is_blind = type(fiber) is Fiber and channel.id not in fiber.seen
        # A leg that was never in Stasis belongs to the step that dials it.
        has_left = channel.app in (None, OTHER_APP) and (
            channel.kind is channels.Kind.CALLER or channel.id in self.left_at
        )
        if is_blind and has_left and channel.kind is not channels.Kind.MEDIA:
            self.world.violation(f"{channel.id} has left Stasis, and is hung up by a step that has not looked at it")
        if isinstance(fiber, Fiber) and is_destination(channel) and not has_stalled(fiber):
            self.destination_hung_up(channel)
        super().hang_up(channel, cause, soft=soft)

    def add_to_bridge(self, bridge: bridges.Bridge, channel_ids: list[str]) -> None:
        fiber = greenlet.getcurrent()
        # It takes effect late, or its step stalled: the next worker may have looked before, or joined them before.
        is_late = not isinstance(fiber, Fiber) or has_stalled(fiber)
        seen = fiber.bridges_seen.get(bridge.id) if isinstance(fiber, Fiber) else None
        for leg in channel_ids:
            if leg not in bridge.channel_ids:
                continue
            if seen is not None and leg in seen:
                self.world.violation(f"{self.named(leg)} was seen in its bridge, and is added again")
            elif not is_late and seen is None:
                self.world.violation(f"{self.named(leg)} is in its bridge, and is added again without a look")
            elif not is_late and leg not in self._joined_late:
                self.world.violation(f"{self.named(leg)} is in its bridge, and is added again by another step")
        super().add_to_bridge(bridge, channel_ids)
        if is_late:
            self._joined_late.update(channel_ids)

    def add(self, channel: channels.Channel) -> None:
        super().add(channel)
        self.added_at[channel.id] = self.world.now
        if channel.kind is channels.Kind.ORIGINATED and ids.is_originated(channel.id):
            self.created(channel.id)

    def create_bridge(self, bridge: bridges.Bridge) -> None:
        super().create_bridge(bridge)
        if ids.parse(bridge.id) is not None:
            self.created(bridge.id)

    # ── what callers and agents do ────────────────────────────────────────────────────────────────────────────────────

    def enter_stasis(
        self, channel: channels.Channel, app: str, args: list[str], *, app_data: str = "", by: str = "Stasis"
    ) -> bool:
        # Counted before its event is sent.
        self.entries[channel.id] += self.applications.is_connected(app)
        self.entered_at[channel.id, events.timestamp()] = self.world.now
        return super().enter_stasis(channel, app, args, app_data=app_data, by=by)

    def leave_stasis(self, channel: channels.Channel, *, dying: bool = False) -> None:
        if not dying and channel.app is not None:
            self.left_at[channel.id] = self.world.now
        super().leave_stasis(channel, dying=dying)

    def agent_hangs_up(self, channel: channels.Channel) -> None:
        """Let the voice agent close its socket."""
        if self.is_alive(channel):
            self.world.tell(self.name, "the agent of %s hangs up", self.named(channel.id))
            cause, channel.tech_cause = events.MEDIA_CLOSED
            self.hang_up(channel, cause, soft=False)
            self.agent_lost(channel.id)

    def caller_hangs_up(self, channel: channels.Channel) -> None:
        """Let the caller hang up."""
        if self.is_alive(channel):
            self.world.tell(self.name, "caller %s hangs up", channel.id)
            self.hang_up(channel, 16, soft=False)

    def caller_leaves_stasis(self, channel: channels.Channel) -> bool:
        """Let another controller send the caller into the dialplan, where the channel stays up."""
        if not self.is_alive(channel) or channel.app is None:
            return False
        self.world.tell(self.name, "caller %s leaves Stasis for the dialplan", channel.id)
        dialplan.leave_to_dialplan(self, channel)
        return True

    def caller_is_moved(self, channel: channels.Channel, app: str) -> bool:
        """Let another program move the caller to its own app, or to ours."""
        if not self.is_alive(channel) or channel.app in (None, app):
            return False
        if not self.applications.is_connected(OTHER_APP):
            theirs = EventSocket(lambda _text: None, lambda: None)
            self.applications.connect([OTHER_APP], theirs, subscribe_all=False)  # type: ignore[arg-type]
        if not self.applications.is_connected(app):
            return False
        self.world.tell(self.name, "caller %s is moved to %s", channel.id, app)
        self.move(channel, app, [])
        return True

    def leg_is_replaced(self, channel: channels.Channel, *, is_told_late: bool = False) -> channels.Channel | None:
        """Let another channel take the place of a party's leg: by a transfer of one in a bridge, else by a masquerade.

        Args:
            is_told_late: The leg has hung up by the time that the other channel comes: the end is told first.
        """
        if not self.is_alive(channel) or channel.app in (None, OTHER_APP):
            return None
        number = self.number()
        successor = channels.Channel(
            id=f"{SUCCESSOR}{self.name}-{number}", name=f"Local/1001@sales-{number:08x};1", state="Up",
            kind=channels.Kind.CALLER, context="sales", extension="1001",
        )  # fmt: skip
        is_late = is_told_late and channel.bridge_id is not None
        late = ", which hangs up first" if is_late else ""
        self.world.tell(self.name, "%s takes the place of %s%s", successor.id, self.named(channel.id), late)
        self.entries[successor.id] += 1
        self.replaced(channel, successor, is_told_late=is_late)
        if is_late:
            self._transfer_late(channel, successor)
        elif channel.bridge_id is not None:
            self.transfer(channel, successor)
            # It is hung up by its party, at once or later, or by the product.
            if self.world.choices.happens(0.7):
                seconds = self.world.choices.spread(0.0005, 5.0)
                self.world.after(seconds, lambda: self.caller_hangs_up(channel))
        else:
            self.replace(channel, successor)
        return successor

    def _transfer_late(self, channel: channels.Channel, successor: channels.Channel) -> None:
        app, before, bridge_id = channel.app, channel.snapshot(), channel.bridge_id
        assert app is not None
        self.hang_up(channel, 16, soft=False)

        def come() -> None:
            if not self.is_running or self.is_id_in_use(successor.id) or not self.applications.is_connected(app):
                return
            self.add(successor)
            successor.app = app
            successor.run("Stasis", app)
            self.applications.subscribe(app, successor.id)
            start = events.stasis_start(successor.snapshot(), [], replaced=before)
            self.applications.publish_to(app, start)
            if (bridge := self.bridges.get(bridge_id or "")) is not None:
                self.add_to_bridge(bridge, [successor.id])

        self.world.after(self.world.choices.spread(0.0003, 0.02), come)

    def move(self, channel: channels.Channel, app: str, args: list[str]) -> None:
        if app == OTHER_APP:
            self.left_at[channel.id] = self.world.now
        else:
            self.entries[channel.id] += 1
            self.entered_at[channel.id, events.timestamp()] = self.world.now
        super().move(channel, app, args)

    def destroy(self, channel: channels.Channel, cause: int) -> None:
        was_alive = self.is_alive(channel)
        super().destroy(channel, cause)
        if was_alive and channel.id in self._run_of:
            self.pipeline_ended(self._run_of.pop(channel.id))
        if was_alive and channel.kind is channels.Kind.ORIGINATED and not self.entries[channel.id]:
            self.world.tell(self.name, "%s is not answered: cause %s", self.named(channel.id), cause)
            self.unanswered(channel, cause)

    def agent_came(self, media_id: str, run_id: int) -> None:
        """Note that the voice agent of a run is on the line."""
        self._run_of[media_id] = run_id

    def restart_after(self, seconds: float) -> None:
        """Stop with all calls, and start again later."""
        self.stop_running()
        for media_id in list(self._run_of):
            self.pipeline_ended(self._run_of.pop(media_id))
        self.restart_later(seconds)

    # ── what is there ─────────────────────────────────────────────────────────────────────────────────────────────────

    def created_by_product(self) -> list[str]:
        """Return every leg and bridge that the product created."""
        return [
            name for name in (*self.channels, *self.bridges) if ids.parse(name) is not None or ids.is_originated(name)
        ]

    def callers_in(self, app: str) -> list[channels.Channel]:
        """Return the legs in an app that are no media legs."""
        return [leg for leg in self.channels.values() if leg.kind is not channels.Kind.MEDIA and leg.app == app]

    def is_with_agent(self, caller: channels.Channel) -> bool:
        """True if caller and agent hear each other, or the caller and the leg that it was transferred to."""
        others = [leg for leg in self.others_in_bridge(caller) if leg.state == "Up"]
        is_transferred = any(is_destination(leg) for leg in [caller, *others])
        return caller.state == "Up" and any(leg.kind is channels.Kind.MEDIA or is_transferred for leg in others)


def is_destination(leg: channels.Channel) -> bool:
    """True for a leg that the platform has originated to transfer a caller to it."""
    return leg.id.startswith(DESTINATION)


def has_stalled(fiber: greenlet.greenlet) -> bool:
    """True if a step or its process stalled: another one may have gone on with its call."""
    return isinstance(fiber, Fiber) and (fiber.has_stalled or fiber.process.frozen_until > 0.0)


def _run_of(url: str) -> str:
    (run_id,) = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["workflow_run_id"]
    return run_id
