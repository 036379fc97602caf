"""The Asterisks: the switch of `simulator/`, which the contract suite compares with a real one, in virtual time.

Only its outside is replaced: HTTP, websockets, and the voice agent at the end of a media leg.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import greenlet

from shared import errors
from shared.asterisk import circuit_breaker, rest
from shared.asterisk.endpoint import Configuration
from shared.call import ids
from simulator import (
    bridges,
    channels,
    dialplan,
    events,
    rest_applications,
    rest_bridges,
    rest_channels,
    settings,
    switch,
)
from simulator import errors as simulator_errors
from simulator import media as simulator_media
from simulator import rest as simulator_rest
from tests.simulation import faults
from tests.simulation.faults import Fault
from tests.simulation.world import Fiber, World

#: Begins the ids of legs that the platform originates for transfers.
DESTINATION = "transfer-"
PREFIX = "aip-"
CLIENT = "media"
_ROUTES = [*rest_applications.ROUTES, *rest_channels.ROUTES, *rest_bridges.ROUTES]
#: A request that timed out may take effect this much later.
_EFFECT_SECONDS = 6.0
#: Asterisk gives up a voice agent that does not answer after this (connection_timeout, and one attempt).
_AGENT_SECONDS = 1.0
_MISANSWERS = [(404, "Resource not found"), (503, "Busy"), (401, "Authentication required")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """What the voice agent does with one media leg."""

    #: None: it refuses, or cannot be reached.
    accepts_after_seconds: float | None
    #: When it refuses, or Asterisk gives up.
    refuses_after_seconds: float = _AGENT_SECONDS
    #: None: it stays until the call ends.
    hangs_up_after_seconds: float | None = None


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
        own = ids.parse(channel.id)
        if own is not None and own.call_id in self._owner.served:
            # It serves a run once.
            plan = AgentPlan(accepts_after_seconds=None, refuses_after_seconds=0.01)
        wait = plan.refuses_after_seconds if plan.accepts_after_seconds is None else plan.accepts_after_seconds
        self._owner.agent_seconds = max(self._owner.agent_seconds, wait)
        self._owner.world.after(wait, lambda: self._connected(channel, app, args, dialstring, plan))

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
        self, channel: channels.Channel, app: str, args: list[str], dialstring: str, plan: AgentPlan
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
        #: Channel id → how often it has entered Stasis.
        self.entries: Counter[str] = Counter()
        #: The longest that a voice agent has taken to accept or to refuse.
        self.agent_seconds = 0.0
        #: Calls whose voice agent has been on the line.
        self.served: set[UUID] = set()
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
        has_left = channel.app is None and (channel.kind is channels.Kind.CALLER or channel.id in self.left_at)
        if is_blind and has_left and channel.kind is not channels.Kind.MEDIA:
            self.world.violation(f"{channel.id} has left Stasis, and is hung up by a step that has not looked at it")
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
        return super().enter_stasis(channel, app, args, app_data=app_data, by=by)

    def leave_stasis(self, channel: channels.Channel, *, dying: bool = False) -> None:
        if not dying and channel.app is not None:
            self.left_at[channel.id] = self.world.now
        super().leave_stasis(channel, dying=dying)

    def agent_hangs_up(self, channel: channels.Channel) -> None:
        """Let the voice agent close its socket."""
        if self.is_alive(channel):
            self.world.tell(self.name, "the agent of %s hangs up", self.named(channel.id))
            channel.tech_cause = events.MEDIA_CLOSED
            self.hang_up(channel, 16, soft=False)
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

    def destroy(self, channel: channels.Channel, cause: int) -> None:
        was_alive = self.is_alive(channel)
        super().destroy(channel, cause)
        if was_alive and channel.kind is channels.Kind.ORIGINATED and not self.entries[channel.id]:
            self.world.tell(self.name, "%s is not answered: cause %s", self.named(channel.id), cause)
            self.unanswered(channel, cause)

    def restart_after(self, seconds: float) -> None:
        """Stop with all calls, and start again later."""
        self.stop_running()
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


class Requests:
    """One app's requests to one Asterisk: does what `rest.RestClient` does, in virtual time."""

    def __init__(
        self,
        asterisk: Asterisk,
        app: str,
        circuit: circuit_breaker.CircuitBreaker,
        *,
        connect_seconds: float,
        read_seconds: float,
    ) -> None:
        self._circuit = circuit
        self.configuration = Configuration(endpoint=f"http://{asterisk.name}", app=app, user=app, password="secret")
        self._asterisk = asterisk
        self._world = asterisk.world
        self._connect_seconds = connect_seconds
        self._seconds = connect_seconds + read_seconds

    def request_all(self, budget: rest.RequestBudget, requests: Sequence[rest.Request[Any]]) -> list[Any]:
        """Make several requests, each in a fiber of its own: it is sent, answered and hit by faults at its own moments.

        So events, and requests of others, come between those of one round.
        """
        results: list[Any] = [None] * len(requests)
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        missing = len(requests)
        is_waiting = False

        def ask(number: int) -> None:
            nonlocal missing
            try:
                results[number] = self._request(budget, requests[number])
            except errors.PipelineError as exc:
                results[number] = exc
            missing -= 1
            if not missing and is_waiting:
                self._world.resume(fiber)

        for number in range(1, len(requests)):
            other = self._world.start(
                fiber.process, fiber.what, lambda number=number: ask(number),  # type: ignore[misc]
                connection_id=fiber.connection_id, call_id=fiber.call_id,
            )  # fmt: skip
            other.seen, other.bridges_seen, other.has_stalled = fiber.seen, fiber.bridges_seen, fiber.has_stalled
        if requests:
            ask(0)
        if missing:
            is_waiting = True
            self._world.park()
        return results

    def _request(self, budget: rest.RequestBudget, request: rest.Request[Any]) -> Any:
        left = budget.seconds_left()
        self._asterisk.requested(budget)
        self._circuit.allow(budget)
        started = self._world.now
        answer, silence = "no answer", "no answer"
        try:
            status, document = self._world.port_call(
                request.what,
                lambda: self._sent(request, left),
                latency_seconds=0.002,
                own_faults=faults.OF_REQUESTS,
                inflict=lambda fault, effect: self._inflict(fault, effect, lambda: self._late(request), left),
            )
            message = rest.plain(document.get("message", "")) if isinstance(document, dict) else ""
            answer = f"{status} {message}".strip() if status >= 400 else str(status)
            silence = f"answered {answer}" if status >= 500 and message != rest.NOT_DIALLED else ""
            return rest._judge(status, message, document)
        except errors.AsteriskUnreachable as exc:
            answer = str(exc)
            silence = silence and answer
            raise
        finally:
            if silence:
                self._circuit.unanswered(budget, silence)
            else:
                self._circuit.answered()
            if self._world.keeps_story:
                self._world.tell(self._asterisk.name, "%s → %s", self._told(request), answer)
            budget.record_request(
                rest.RequestRecord(what=request.what, took_ms=(self._world.now - started) * 1000, answer=answer)
            )

    def must_probe(self, budget: rest.RequestBudget) -> bool:
        self._circuit.check(budget)
        return self._circuit.state is not circuit_breaker.State.CLOSED

    def _sent(self, request: rest.Request[Any], left: float) -> tuple[int, Any]:
        if self._asterisk.is_away:
            self._world.pause(min(left, self._connect_seconds))
            raise errors.AsteriskUnreachable("connecting took too long", may_have_acted=False)
        if not self._asterisk.is_running:
            raise errors.AsteriskUnreachable("connection refused", may_have_acted=False)
        asterisk, life = self._asterisk, self._asterisk.life
        fiber = greenlet.getcurrent()
        assert type(fiber) is Fiber
        try:
            work = self._handled(request)
            if request.method == "DELETE" and asterisk.media.is_connecting(request.path[1]):
                answer = self._waited_for(work, left)
            else:
                answer = _at_once(work)
        except simulator_errors.Refusal as refusal:
            return refusal.status, {"message": refusal.message}
        except simulator_errors.Cut:
            raise errors.AsteriskUnreachable("connection failed: ConnectionResetError") from None
        if asterisk.life != life:
            raise errors.AsteriskUnreachable("connection failed: ConnectionResetError")
        if request.method == "GET" and request.path[0] == "bridges" and len(request.path) > 1:
            fiber.bridges_seen[request.path[1]] = frozenset(answer.body["channels"])
        is_look = request.method == "GET" and request.path[0] == "channels"
        if is_look and answer.body["dialplan"]["app_name"] == "Stasis":
            fiber.seen.add(request.path[1])
        return answer.status, answer.body

    def _inflict(
        self, fault: Fault, effect: Callable[[], tuple[int, Any]], late: Callable[[], None], left: float
    ) -> tuple[int, Any]:
        choices = self._world.choices
        match fault:
            case Fault.REFUSED:
                raise errors.AsteriskUnreachable("connection refused", may_have_acted=False)
            case Fault.MISANSWERED:
                status, message = choices.one_of(_MISANSWERS)
                return status, {"message": message}
            case Fault.UNANSWERED:
                effect()
            # That of a step which stalled is not sent: nothing bounds how late it would be.
            case Fault.LATE if not has_stalled(greenlet.getcurrent()):
                self._world.after(choices.between(0.1, min(left, self._seconds) + _EFFECT_SECONDS), late)
        self._world.pause(min(left, self._seconds))
        raise errors.AsteriskUnreachable("no answer in time")

    def _late(self, request: rest.Request[Any]) -> None:
        """Take effect; the answer is lost."""
        if self._asterisk.is_running:
            self._world.tell(self._asterisk.name, "now takes effect: %s", self._told(request))
            work = self._handled(request)
            asyncio.get_running_loop().create_task(_unheard(work))

    def _handled(self, request: rest.Request[Any]) -> Coroutine[Any, Any, simulator_rest.Answer]:
        handler, names = _match(request.method, request.path)
        asked = simulator_rest.Request(method=request.method, query=request.query or {}, body=request.body, names=names)
        return cast(Coroutine[Any, Any, simulator_rest.Answer], handler(self._asterisk, asked))

    def _waited_for(self, work: Coroutine[Any, Any, simulator_rest.Answer], left: float) -> simulator_rest.Answer:
        task = asyncio.get_running_loop().create_task(work)
        if not self._world.wait(task, min(left, self._seconds)):
            raise errors.AsteriskUnreachable("no answer in time")
        return task.result()

    def _told(self, request: rest.Request[Any]) -> str:
        named, asked = self._asterisk.named, request.query or {}
        whom = asked.get("channelId") or " ".join(map(named, asked.get("channel", "").split(",")))
        return f"{request.method} /{'/'.join(map(named, request.path))} {named(whom)}".strip()


def has_stalled(fiber: greenlet.greenlet) -> bool:
    """True if a step or its process stalled: another one may have gone on with its call."""
    return isinstance(fiber, Fiber) and (fiber.has_stalled or fiber.process.frozen_until > 0.0)


@functools.lru_cache(maxsize=10_000)
def _match(method: str, path: tuple[str, ...]) -> tuple[simulator_rest.Handler[switch.Switch], list[str]]:
    return simulator_rest.match(_ROUTES, method, list(path))


def _at_once(work: Coroutine[Any, Any, simulator_rest.Answer]) -> simulator_rest.Answer:
    """Return the answer of a handler that does not wait."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(simulator_rest.Answer, done.value)
    raise AssertionError("a handler waits")


async def _unheard(work: Coroutine[Any, Any, simulator_rest.Answer]) -> None:
    with contextlib.suppress(simulator_errors.Refusal, simulator_errors.Cut):
        await work
