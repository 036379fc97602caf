"""One thread and no real time: everything that is to happen waits in one queue, ordered by virtual time.

A step runs in a greenlet (`Fiber`), which yields at each port call. It may be resumed late, or never: then nothing of
it runs any more. Asynchronous code runs on the same queue, through an event loop of the simulation.
"""

from __future__ import annotations

import asyncio
import heapq
import traceback
from collections.abc import Callable, Coroutine
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

import greenlet

from shared.asterisk import circuit_breaker
from tests.simulation import faults
from tests.simulation.choices import Choices
from tests.simulation.faults import Fault
from workers.awaited_legs import AwaitedLegs
from workers.claims import Claim

_T = TypeVar("_T")

#: When a history begins.
EPOCH = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


class Latch:
    """Opens once, and wakes those who wait for it."""

    def __init__(self) -> None:
        self._is_open = False
        self._waiting: list[Callable[[], None]] = []

    def open(self) -> None:
        """Open it, and wake every waiting fiber."""
        self._is_open = True
        for wake in self._waiting:
            wake()

    def done(self) -> bool:
        """True if it is open."""
        return self._is_open

    def add_done_callback(self, wake: Callable[..., None], /) -> None:
        """Register what to do when it opens."""
        self._waiting.append(wake)


class Process:
    """A process of the product. A dead one is never started again: its successor is another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        #: It has counted as dead, and lived on.
        self.is_misjudged = False
        self.died_at = 0.0
        self.frozen_at = 0.0
        self.frozen_until = 0.0
        #: Asterisk → its circuit breaker.
        self.circuits: dict[str, circuit_breaker.CircuitBreaker] = {}
        #: The media legs it waits for.
        self.awaited_legs: AwaitedLegs[Claim] | None = None
        #: What to do when it dies.
        self.at_death: list[Callable[[], None]] = []

    def is_stopped(self, now: float) -> bool:
        """True if nothing of it runs now."""
        return self.is_dead or self.frozen_until > now

    def freeze(self, now: float, seconds: float) -> None:
        """Let nothing of it run for a while."""
        self.frozen_at, self.frozen_until = now, now + seconds

    def kill(self, now: float) -> None:
        """Kill it: nothing of it runs any more."""
        if not self.is_dead:
            self.is_dead, self.died_at = True, now
            for do in self.at_death:
                do()


class Fiber(greenlet.greenlet):
    """A thread of a process, at work on one message."""

    process: Process
    #: What it does, for the story.
    what: str
    #: The call it works on, once that is known.
    call_id: UUID | None
    #: The connection of its message, if the message names one.
    connection_id: int | None
    #: The channels it has seen in Stasis.
    seen: set[str]
    #: Bridge → the legs it has seen there, when it looked last.
    bridges_seen: dict[str, frozenset[str]]
    #: It stalled: what it knows may be out of date.
    has_stalled: bool


class World:
    """The clock, the queue of what is to happen, the faults, and the story.

    Args:
        fault_rate: The probability of a fault at a port call.
        target: The fault to aim at, and in which state.
        keeps_story: Whether the story is kept.
    """

    def __init__(
        self,
        choices: Choices,
        *,
        fault_rate: float = 0.0,
        target: faults.Target | None = None,
        keeps_story: bool = False,
    ) -> None:
        self.choices = choices
        self.now = 0.0
        self.tally: faults.Tally = faults.Tally()
        #: The kinds of fault so far.
        self.inflicted: set[Fault] = set()
        self.violations: list[str] = []
        self.keeps_story = keeps_story
        self.story: list[tuple[float, str, str]] = []
        self.target = target
        self.is_calm = False
        self.calm_since = 0.0
        #: Returns the states of the calls that a call id or a connection id stands for.
        self.states_of: Callable[[UUID | None, int | None], list[str]] = lambda _call, _connection: [faults.NO_CALL]
        self._fault_rate = fault_rate
        self._linger_seconds = 0.0
        self._script: list[tuple[str, Fault]] = []
        self._due: list[tuple[float, int, Any]] = []
        self._sequence = 0
        self._ids = 0
        self._hub = greenlet.getcurrent()
        self._fibers: dict[Fiber, None] = {}
        self._is_over = False
        self._loop = cast(asyncio.AbstractEventLoop, _Loop(self))

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`, for the current fiber."""
        self.pause(seconds)

    def wall(self) -> float:
        """As `time.time`."""
        return EPOCH.timestamp() + self.now

    def moment(self) -> datetime:
        """Return the time by Postgres's clock."""
        return EPOCH + timedelta(seconds=self.now)

    def new_id(self) -> UUID:
        """As `uuid.uuid4`; no two have the same beginning."""
        self._ids += 1
        return UUID(int=self._ids << 96 | self._ids)

    # ── what is to happen ─────────────────────────────────────────────────────────────────────────────────────────────

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Do something later."""
        self._sequence += 1
        heapq.heappush(self._due, (self.now + seconds, self._sequence, do))

    def start(
        self, process: Process, what: str, work: Callable[[], object], *, connection_id: int | None = None,
        call_id: UUID | None = None,
    ) -> Fiber:  # fmt: skip
        """Start some work in a process; return its fiber."""
        fiber: Fiber = Fiber(lambda: self._work(fiber, work), self._hub)
        fiber.process, fiber.what = process, what
        fiber.connection_id, fiber.call_id, fiber.has_stalled = connection_id, call_id, False
        fiber.seen, fiber.bridges_seen = set(), {}
        self._fibers[fiber] = None
        self.resume(fiber)
        return fiber

    def resume(self, fiber: Fiber, seconds: float = 0.0) -> None:
        """Resume a fiber, now or later."""
        self._sequence += 1
        heapq.heappush(self._due, (self.now + seconds, self._sequence, fiber))

    def pause(self, seconds: float) -> None:
        """Suspend the current fiber for a while."""
        fiber = greenlet.getcurrent()
        assert type(fiber) is Fiber
        self.resume(fiber, seconds)
        self.park()

    def park(self) -> None:
        """Suspend the current fiber until it is resumed."""
        self._hub.switch()
        if self._is_over:
            raise greenlet.GreenletExit

    def wait(self, done: Latch | asyncio.Future[Any], seconds: float) -> bool:
        """Suspend the current fiber until something is done, or the time is up; return whether it is done."""
        fiber = greenlet.getcurrent()
        assert type(fiber) is Fiber
        is_woken = False

        def wake(*_: object) -> None:
            nonlocal is_woken
            if not is_woken:
                is_woken = True
                self.resume(fiber)

        done.add_done_callback(wake)
        self.after(seconds, wake)
        self.park()
        return done.done()

    def run(self, until: float) -> None:
        """Let virtual time pass until a moment, or until the first violation."""
        due = self._due
        asyncio._set_running_loop(self._loop)
        try:
            while due and due[0][0] <= until and not self.violations:
                self.now, _, thing = heapq.heappop(due)
                if type(thing) is not Fiber:
                    thing()
                elif not thing.process.is_dead:
                    if thing.process.frozen_until > self.now:
                        self.resume(thing, thing.process.frozen_until - self.now)
                    else:
                        thing.switch()
        finally:
            asyncio._set_running_loop(None)
        self.now = max(self.now, until) if not self.violations else self.now

    def end(self) -> None:
        """End every fiber and drop what is still to happen."""
        self._is_over = True
        self._due.clear()
        for fiber in list(self._fibers):
            if not fiber.dead:
                fiber.throw()
        self._fibers.clear()

    def _work(self, fiber: Fiber, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is a bug
            self.violation(f"{fiber.what} raised {type(exc).__name__}: {exc}")
            if self.keeps_story:
                self.tell(fiber.process.name, "%s", "".join(traceback.format_exception(exc)))
        finally:
            self._fibers.pop(fiber, None)

    # ── ports ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def port_call(
        self,
        what: str,
        effect: Callable[[], _T],
        *,
        latency_seconds: float,
        own_faults: tuple[Fault, ...],
        inflict: Callable[[Fault, Callable[[], _T]], _T],
    ) -> _T:
        """Make one port call of the current fiber: it takes time, has its effect, and may fail on the way.

        Args:
            own_faults: The faults of this port, besides those of any step.
            inflict: Does what such a fault does.
        """
        if self._is_over:
            raise greenlet.GreenletExit
        fiber = greenlet.getcurrent()
        assert type(fiber) is Fiber, what
        # Mostly about the usual time, now and then twenty times that: so steps overtake one another.
        draw = self.choices.draw()
        self.pause(latency_seconds * (0.5 + draw + 20.0 * draw**12))
        fault = self._scripted(what) or self.fault(
            own_faults, fiber.call_id, fiber.connection_id, what=what, of_step=True
        )
        if fault is None:
            result = effect()
            if self._linger_seconds:
                seconds, self._linger_seconds = self._linger_seconds, 0.0
                self.pause(seconds)
            return result
        self.tell(fiber.process.name, "%s: %s — FAULT: %s", fiber.what, what, fault)
        match fault:
            case Fault.KILLED_BEFORE:
                fiber.process.kill(self.now)
                self.park()
            case Fault.KILLED_AFTER:
                effect()
                fiber.process.kill(self.now)
                self.park()
            case Fault.FROZEN_BEFORE:
                fiber.has_stalled = True
                self.pause(self.choices.spread(0.3, 40.0))
            case Fault.FROZEN_AFTER:
                result = effect()
                fiber.has_stalled = True
                self.pause(self.choices.spread(0.3, 40.0))
                return result
            case _:
                return inflict(fault, effect)
        return effect()

    def fault(
        self,
        own: tuple[Fault, ...],
        call_id: UUID | None,
        connection_id: int | None,
        *,
        what: str = "",
        of_step: bool = False,
    ) -> Fault | None:
        """Return the fault that happens here, if any; count it."""
        draw = self.choices.draw()
        if self.is_calm or draw == 0.0:
            return None
        kinds = own + faults.OF_STEPS if of_step else own
        target = self.target
        fault = None
        # A state has many operations, but hardly more than one event or message.
        least = 0.1 if own in (faults.OF_EVENTS, faults.OF_MESSAGES, faults.OF_ENQUEUES) else 0.5
        is_aimed = target is not None and target.fault in kinds and target.what in what and draw > least
        if target is not None and is_aimed and self._hits(target, call_id, connection_id):
            fault, self.target = target.fault, None
        elif draw > 1.0 - self._fault_rate:
            fault = self.choices.one_of(kinds)
        if fault is not None:
            self.count_fault(fault, self.states_of(call_id, connection_id))
        return fault

    def linger(self, seconds: float) -> None:
        """Let the port call that is having its effect return this much later."""
        self._linger_seconds = seconds

    def stall_all(self) -> None:
        """Note that what the steps at work know may be out of date."""
        for fiber in self._fibers:
            fiber.has_stalled = True

    def script(self, what: str, fault: Fault) -> None:
        """Let a fault hit the next port call whose name contains this."""
        self._script.append((what, fault))

    @property
    def unplayed(self) -> list[str]:
        """The scripted faults that have hit nothing: what their port calls are called."""
        return [what for what, _ in self._script]

    def _scripted(self, what: str) -> Fault | None:
        for entry in self._script:
            if entry[0] in what:
                self._script.remove(entry)
                self.inflicted.add(entry[1])
                return entry[1]
        return None

    def _hits(self, target: faults.Target, call_id: UUID | None, connection_id: int | None) -> bool:
        return target.state in self.states_of(call_id, connection_id)

    def count_fault(self, fault: Fault, states: list[str]) -> None:
        """Count a fault that hit calls in these states."""
        self.inflicted.add(fault)
        for state in states:
            self.tally[state, fault] += 1

    # ── the story ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def is_calm_for(self, seconds: float) -> bool:
        """Return whether there has been no fault for so long."""
        return self.is_calm and self.now - self.calm_since >= seconds

    def violation(self, what: str) -> None:
        """Report something that must never be."""
        self.violations.append(what)
        self.tell("", "VIOLATION: %s", what)

    def tell(self, who: str, what: str, *values: object) -> None:
        """Add a line to the story."""
        if self.keeps_story:
            self.story.append((self.now, who, what % values))


class _Loop:
    """The part of an event loop that tasks, sleeps and time-outs need."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._itself = cast(asyncio.AbstractEventLoop, self)

    def time(self) -> float:
        return self._world.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._itself, context)
        self._world.after(0.0, lambda: _run(handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._world.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self._itself, context)
        self._world.after(max(0.0, when - self._world.now), lambda: _run(handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self._itself)

    def create_task(
        self, coro: Coroutine[Any, Any, _T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[_T]:
        return asyncio.Task(coro, loop=self._itself, name=name)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "pending" not in str(context.get("message")):
            self._world.violation(f"in the event loop: {context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: the handle is skipped when its time comes."""


def _run(handle: asyncio.Handle) -> None:
    if not handle.cancelled():
        handle._run()
