"""One thread, no real time: everything that is under way waits in one queue, and one thing happens after the other.

A step is a greenlet (`Hand`), which gives way at each port call. It may be resumed late, or never: then nothing of it
runs any more. What is asynchronous runs on the same queue, through an event loop of our own.
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
from tests.simulation.chances import Chances
from tests.simulation.faults import Fault

_T = TypeVar("_T")

#: When a history begins.
EPOCH = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


class Latch:
    """Opens once."""

    def __init__(self) -> None:
        self._is_open = False
        self._waiting: list[Callable[[], None]] = []

    def open(self) -> None:
        """Whoever waits goes on."""
        self._is_open = True
        for wake in self._waiting:
            wake()

    def done(self) -> bool:
        """Whether it is open."""
        return self._is_open

    def add_done_callback(self, wake: Callable[..., None], /) -> None:
        """What to do when it opens."""
        self._waiting.append(wake)


class Process:
    """A process of ours. A dead one never lives again: its successor is another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.frozen_until = 0.0
        #: Asterisk → its circuit breaker.
        self.circuits: dict[str, circuit_breaker.CircuitBreaker] = {}
        #: What is to happen when it dies.
        self.at_death: list[Callable[[], None]] = []

    def kill(self) -> None:
        """Nothing of it runs any more."""
        if not self.is_dead:
            self.is_dead = True
            for do in self.at_death:
                do()


class Hand(greenlet.greenlet):
    """A thread of a process at work on one message."""

    process: Process
    #: What it is at, for the story.
    what: str
    #: Whose call it works on, once that is known.
    call_id: UUID | None
    #: Which connection's message it works on, if the message says so.
    connection_id: int | None
    #: The channels it has seen in Stasis.
    seen: set[str]


class World:
    """The clock, the queue of what is under way, and what goes wrong.

    Args:
        fault_rate: How likely something goes wrong at a port call.
        target: What is to go wrong, and in which state.
        telling: Keeps a story.
    """

    def __init__(
        self, chances: Chances, *, fault_rate: float = 0.0, target: faults.Target | None = None, telling: bool = False
    ) -> None:
        self.chances = chances
        self.now = 0.0
        self.tally: faults.Tally = faults.Tally()
        self.violations: list[str] = []
        self.telling = telling
        self.story: list[tuple[float, str, str]] = []
        self.target = target
        self.is_calm = False
        #: The states of the calls that a hand, or a connection, is concerned with.
        self.states_of: Callable[[UUID | None, int | None], list[str]] = lambda _call, _connection: [faults.NO_CALL]
        self._fault_rate = fault_rate
        self._linger_seconds = 0.0
        self._script: list[tuple[str, Fault]] = []
        self._due: list[tuple[float, int, Any]] = []
        self._sequence = 0
        self._ids = 0
        self._hub = greenlet.getcurrent()
        self._hands: dict[Hand, None] = {}
        self._is_over = False
        self._loop = cast(asyncio.AbstractEventLoop, _Loop(self))

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`, for a hand."""
        self.pause(seconds)

    def wall(self) -> float:
        """As `time.time`."""
        return EPOCH.timestamp() + self.now

    def moment(self) -> datetime:
        """Now, as Postgres says it."""
        return EPOCH + timedelta(seconds=self.now)

    def new_id(self) -> UUID:
        """As `uuid.uuid4`; no two begin alike."""
        self._ids += 1
        return UUID(int=self._ids << 96 | self._ids)

    # ── what is under way ────────────────────────────────────────────────────────────────────────────────────────────

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Does something later."""
        self._sequence += 1
        heapq.heappush(self._due, (self.now + seconds, self._sequence, do))

    def start(
        self, process: Process, what: str, work: Callable[[], object], *, connection_id: int | None = None,
        call_id: UUID | None = None,
    ) -> Hand:  # fmt: skip
        """Lets a process begin some work."""
        hand: Hand = Hand(lambda: self._work(hand, work), self._hub)
        hand.process, hand.what = process, what
        hand.connection_id, hand.call_id, hand.seen = connection_id, call_id, set()
        self._hands[hand] = None
        self.resume(hand)
        return hand

    def resume(self, hand: Hand, seconds: float = 0.0) -> None:
        """Lets a hand go on."""
        self._sequence += 1
        heapq.heappush(self._due, (self.now + seconds, self._sequence, hand))

    def pause(self, seconds: float) -> None:
        """The hand that calls this gives way for a while."""
        hand = greenlet.getcurrent()
        assert type(hand) is Hand
        self.resume(hand, seconds)
        self.park()

    def park(self) -> None:
        """The hand that calls this gives way until somebody resumes it."""
        self._hub.switch()
        if self._is_over:
            raise greenlet.GreenletExit

    def wait(self, done: Latch | asyncio.Future[Any], seconds: float) -> bool:
        """The hand that calls this gives way until something is done, or the time is up; whether it is done."""
        hand = greenlet.getcurrent()
        assert type(hand) is Hand
        is_woken = False

        def wake(*_: object) -> None:
            nonlocal is_woken
            if not is_woken:
                is_woken = True
                self.resume(hand)

        done.add_done_callback(wake)
        self.after(seconds, wake)
        self.park()
        return done.done()

    def run(self, until: float) -> None:
        """Lets things happen until a moment, or until something is wrong."""
        due = self._due
        asyncio._set_running_loop(self._loop)
        try:
            while due and due[0][0] <= until and not self.violations:
                self.now, _, thing = heapq.heappop(due)
                if type(thing) is not Hand:
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
        """Lets go of everything that is still under way; the ports answer nothing any more."""
        self._is_over = True
        self._due.clear()
        for hand in list(self._hands):
            if not hand.dead:
                hand.throw()
        self._hands.clear()

    def _work(self, hand: Hand, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is a mistake of ours
            self.violation(f"{hand.what} broke: {type(exc).__name__}: {exc}")
            if self.telling:
                self.tell(hand.process.name, "%s", "".join(traceback.format_exception(exc)))
        finally:
            self._hands.pop(hand, None)

    # ── ports ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def cross(
        self,
        what: str,
        effect: Callable[[], _T],
        *,
        latency_seconds: float,
        own_faults: tuple[Fault, ...],
        suffer: Callable[[Fault, Callable[[], _T]], _T],
    ) -> _T:
        """One port call of a hand: takes its time, has its effect, and may go wrong on the way.

        Args:
            own_faults: What can go wrong at this port beyond what can happen to any step.
            suffer: What such a fault does.
        """
        if self._is_over:
            raise greenlet.GreenletExit
        hand = greenlet.getcurrent()
        assert type(hand) is Hand, what
        # Mostly about as long as usual, now and then twenty times that: so neighbours overtake one another.
        draw = self.chances.draw()
        self.pause(latency_seconds * (0.5 + draw + 20.0 * draw**12))
        fault = self._scripted(what) or self.fault(own_faults, hand.call_id, hand.connection_id, of_step=True)
        if fault is None:
            result = effect()
            if self._linger_seconds:
                seconds, self._linger_seconds = self._linger_seconds, 0.0
                self.pause(seconds)
            return result
        self.tell(hand.process.name, "%s: %s — FAULT: %s", hand.what, what, fault)
        match fault:
            case Fault.KILLED_BEFORE:
                hand.process.kill()
                self.park()
            case Fault.KILLED_AFTER:
                effect()
                hand.process.kill()
                self.park()
            case Fault.FROZEN_BEFORE:
                self.pause(self.chances.spread(0.3, 40.0))
            case Fault.FROZEN_AFTER:
                result = effect()
                self.pause(self.chances.spread(0.3, 40.0))
                return result
            case _:
                return suffer(fault, effect)
        return effect()

    def fault(
        self, own: tuple[Fault, ...], call_id: UUID | None, connection_id: int | None, *, of_step: bool = False
    ) -> Fault | None:
        """What goes wrong here, if anything does; counts it."""
        draw = self.chances.draw()
        if self.is_calm or draw == 0.0:
            return None
        kinds = own + faults.OF_STEPS if of_step else own
        target = self.target
        fault = None
        if target is not None and target.fault in kinds and draw > 0.5 and self._hits(target, call_id, connection_id):
            fault, self.target = target.fault, None
        elif draw > 1.0 - self._fault_rate:
            fault = self.chances.one_of(kinds)
        if fault is not None:
            self.struck(fault, self.states_of(call_id, connection_id))
        return fault

    def linger(self, seconds: float) -> None:
        """Lets the port call that is having its effect take this much longer to return."""
        self._linger_seconds = seconds

    def script(self, what: str, fault: Fault) -> None:
        """Lets a fault strike the next port call whose name has this in it."""
        self._script.append((what, fault))

    def _scripted(self, what: str) -> Fault | None:
        for entry in self._script:
            if entry[0] in what:
                self._script.remove(entry)
                return entry[1]
        return None

    def _hits(self, target: faults.Target, call_id: UUID | None, connection_id: int | None) -> bool:
        return target.state in self.states_of(call_id, connection_id)

    def struck(self, fault: Fault, states: list[str]) -> None:
        """A fault struck calls in these states."""
        for state in states:
            self.tally[state, fault] += 1

    # ── the story ────────────────────────────────────────────────────────────────────────────────────────────────────

    def violation(self, what: str) -> None:
        """Something is as it must never be."""
        self.violations.append(what)
        self.tell("", "VIOLATION: %s", what)

    def tell(self, who: str, what: str, *values: object) -> None:
        """Adds to the story."""
        if self.telling:
            self.story.append((self.now, who, what % values))


class _Loop:
    """As much of an event loop as tasks, sleeps and time-outs need."""

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
        """It is passed over when its time comes."""


def _run(handle: asyncio.Handle) -> None:
    if not handle.cancelled():
        handle._run()
