"""The broker and the worker processes: messages delivered at least once, to workers that run the real handlers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import greenlet

from shared import errors, messages
from shared.broker import redis_broker, retries
from shared.call import ids
from shared.call.commands import Command
from tests.simulation import faults
from tests.simulation.faults import Fault
from tests.simulation.world import Fiber, Process, World
from workers import actors, pools
from workers.step_ports import Handler

#: A worker that was killed is known to be dead after this; one that is frozen counts as dead. Others get its messages.
_GONE_SECONDS = (1.0, 2.5)
_TIMEOUT_SECONDS = 4.5
#: How often it is looked which workers live.
_LOOK_SECONDS = 0.5
_RESTART_SECONDS = 2.0
#: The process in which a test does something itself.
_TEST = "test"
#: How long a worker counts as dead that lives.
_DECLARED_SECONDS = 1.5
#: How long until a worker's polls find a message that was lost on its way to it.
_FOUND_SECONDS = (0.1, 1.2)
#: About as many as fit into the time for which an event is retried.
_RETRIES = 7


@dataclass(eq=False, slots=True)
class Entry:
    """One message, until it is acknowledged."""

    message_id: str
    actor: str
    body: str
    call_id: UUID | None
    connection_id: int | None
    #: The tag of the worker it should go to; empty for any.
    affinity: str = ""
    #: Of one group and name, one waits; empty for none.
    unique: str = ""
    #: When it is due.
    due: float = 0.0
    #: A worker has it.
    is_begun: bool = False
    #: It does not reach the worker it is pushed to first.
    is_push_lost: bool = False
    retries: int = 0
    #: Redis was emptied.
    is_lost: bool = False
    #: A worker has finished it.
    is_done: bool = False


class Broker:
    """Redis and Dramatiq.

    Args:
        call_of: Connection and channel id → the call of that channel, if there is one.
    """

    def __init__(self, world: World, workers: Workers, call_of: Callable[[int, str], UUID | None]) -> None:
        self._world = world
        self._workers = workers
        self._call_of = call_of
        self._entries: dict[Entry, None] = {}
        self.is_away = False
        self.dead_letters: list[str] = []

    # ── the ports ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def enqueue(self, commands: Sequence[Command], *, connection_id: int) -> None:
        for command in commands:
            self.send(messages.of_command(command, connection_id=connection_id), command.pause)

    def send(self, message: messages.Message, wait: timedelta | None = None) -> None:
        def enqueue() -> None:
            if self.is_away:
                self._world.pause(2.0)
                raise errors.QueueUnavailable("Redis: ConnectionError")
            self.put(message, wait)

        def inflict(fault: Fault, effect: Callable[[], None]) -> None:
            if fault is Fault.ENQUEUE_UNANSWERED:
                effect()
            raise errors.QueueUnavailable("Redis: TimeoutError")

        self._world.port_call(
            f"enqueue {message.actor_name}",
            enqueue,
            latency_seconds=0.0003,
            own_faults=faults.OF_ENQUEUES,
            inflict=inflict,
        )

    def redis_ms(self) -> int | None:
        return None if self.is_away else int(self._world.wall() * 1000)

    def age_ms(self, at_ms: int) -> float:
        """Return how long ago a moment of Redis's clock was."""
        return max(0.0, (self.redis_ms() or 0) - at_ms)

    # ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, message: messages.Message, wait: timedelta | None = None) -> None:
        """Enqueue a message; it may be lost, doubled or delayed on the way."""
        world = self._world
        # Another tenant's message may have the same id, of a channel that it named so.
        key = redis_broker.message_key(message)
        if any(entry.message_id == key for entry in self._entries):
            return
        body: dict[str, Any] = message.kwargs
        call_id, connection_id = self.concerned(body)
        entry = Entry(key, message.actor_name, json.dumps(body), call_id, connection_id)
        entry.affinity = str(message.options.get("affinity", ""))
        seconds = 0.0 if wait is None else wait.total_seconds()
        if not self._takes_place(entry, message):
            return
        seconds = min(seconds, max(0.0, entry.due - world.now)) if entry.due else seconds
        fault = world.fault(faults.OF_MESSAGES, call_id, connection_id)
        if fault is not None:
            world.tell("Redis", "%s — FAULT: %s", entry.actor, fault)
        if fault is Fault.MESSAGE_LOST:
            return
        entry.is_push_lost = fault is Fault.PUSH_LOST
        if fault is Fault.MESSAGE_LATE:
            seconds += world.choices.spread(0.01, 30.0)
        self._entries[entry] = None
        entry.due = world.now + seconds
        self._deliver_after(seconds, entry)
        if fault is Fault.MESSAGE_DOUBLED:
            self._deliver_after(seconds + world.choices.spread(0.001, 20.0), entry)

    def _takes_place(self, entry: Entry, message: messages.Message) -> bool:
        """Return whether a unique message is taken: it has the place, and the time, of the one that waits."""
        name, supersedes = redis_broker.unique(message)
        entry.unique = f"{message.options['group']}/{name}" if name else ""
        others = (other for other in self._entries if other.unique == entry.unique and not other.is_begun)
        other = next(others, None) if name else None
        if other is None:
            return True
        if supersedes:
            other.is_lost = True
            del self._entries[other]
            entry.due = other.due
        return supersedes

    @property
    def is_waiting(self) -> bool:
        """Whether any message has not been processed yet."""
        return bool(self._entries)

    def flush(self) -> None:
        """FLUSHALL: every waiting message is gone, and so is every message in flight that would be redelivered."""
        for entry in self._entries:
            entry.is_lost = True
        self._entries.clear()

    def concerned(self, body: dict[str, Any]) -> tuple[UUID | None, int | None]:
        """Return the call and the connection that a message is about, as far as it says."""
        if "call_id" in body:
            return UUID(body["call_id"]), None
        if "connection_id" not in body:
            return None, None
        connection_id = int(body["connection_id"])
        channel = body.get("event", {}).get("channel")
        if channel is None:
            return None, connection_id
        own = ids.parse(channel["id"])
        return own.call_id if own is not None else self._call_of(connection_id, channel["id"]), connection_id

    def _deliver_after(self, seconds: float, entry: Entry) -> None:
        self._world.after(seconds + self._world.choices.spread(0.0005, 0.01), lambda: self._deliver(entry))

    def _deliver(self, entry: Entry) -> None:
        if entry.is_lost:
            return
        worker = self._workers.pick(entry.affinity)
        if worker is None or self.is_away:
            self._deliver_after(0.3, entry)
        elif entry.is_push_lost:
            # In flight in that worker, though it does not know.
            entry.is_push_lost = False
            self._world.after(self._world.choices.spread(*_FOUND_SECONDS), lambda: self._begin(worker, entry))
        else:
            self._begin(worker, entry)

    def _begin(self, worker: Process, entry: Entry) -> None:
        if entry.is_lost:
            return
        if worker.is_stopped(self._world.now):
            # In flight there: another worker gets it when that one has expired.
            self._world.after(_LOOK_SECONDS, lambda: self._requeue(worker, entry))
            return
        entry.is_begun = True
        fiber = self._world.start(
            worker, entry.actor, lambda: self._work(entry), connection_id=entry.connection_id, call_id=entry.call_id
        )
        self._world.after(_LOOK_SECONDS, lambda: self._reclaim(entry, fiber))

    def _requeue(self, worker: Process, entry: Entry) -> None:
        """Deliver a message that reached no worker, once that one has expired, or to it when it goes on before."""
        if self._workers.counts_as_alive(worker) and worker.is_stopped(self._world.now):
            self._world.after(_LOOK_SECONDS, lambda: self._requeue(worker, entry))
        elif worker.is_stopped(self._world.now):
            self._deliver_after(0.0, entry)
        else:
            self._begin(worker, entry)

    def _reclaim(self, entry: Entry, fiber: Fiber) -> None:
        if entry.is_done or entry.is_lost or fiber.dead:
            return
        if not self._workers.counts_as_alive(fiber.process):
            self._world.tell("Redis", "%s is delivered to another worker", entry.actor)
            self._deliver_after(0.0, entry)
        else:
            self._world.after(_LOOK_SECONDS, lambda: self._reclaim(entry, fiber))

    def _work(self, entry: Entry) -> None:
        world = self._world
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber)
        body = json.loads(entry.body)
        try:
            handlers = self._workers.handlers_of(messages.ACTORS[entry.actor])
            handlers[entry.actor](**actors.arguments(entry.actor, body))
        except errors.PermanentError as exc:
            world.tell(fiber.process.name, "%s: dead letter: %s", entry.actor, exc)
            self.dead_letters.append(f"{entry.actor}: {exc}")
        except errors.TransientError as exc:
            world.tell(fiber.process.name, "%s: to be retried: %s", entry.actor, exc)
            if entry.retries < _RETRIES and not entry.is_lost:
                delays = retries.DELAYS_MS
                delay_ms = delays[min(entry.retries, len(delays) - 1)]
                entry.retries += 1
                self._deliver_after(delay_ms / 1000, entry)
                return
        entry.is_done = True
        self._entries.pop(entry, None)


class Workers:
    """The worker processes; each is replaced when it dies."""

    #: Queue → the handlers of the pool that serves it.
    pooled: Mapping[str, Mapping[str, Handler]]
    #: Queue → the handlers of a worker that serves this queue only, and leaves each next step to others.
    alone: Mapping[str, Mapping[str, Handler]]
    #: Every message of a set-up is handled by a worker that serves one queue only.
    always_alone = False

    def __init__(self, world: World, count: int) -> None:
        self._world = world
        self._generation = count
        #: Dead ones, too.
        self._all: list[Process] = []
        #: Until when one counts as dead that lives.
        self._declared_dead: dict[Process, float] = {}
        #: After what time one that has died counts as dead.
        self._gone_after: dict[Process, float] = {}
        self.processes = [self._made(number) for number in range(1, count + 1)]

    def handlers_of(self, queue: str) -> Mapping[str, Handler]:
        """Return the handlers for a message of this queue: some workers serve one queue only."""
        if queue not in pools.POOLS["set-up"]:
            return self.pooled[queue]
        drawn = self._world.choices.one_of((self.pooled, self.pooled, self.alone))
        return (self.alone if self.always_alone else drawn)[queue]

    def pick(self, affinity: str = "") -> Process | None:
        """Return a worker for the next message, mostly that of the tag if it is up; None when all are down."""
        up = [process for process in self.processes if not process.is_stopped(self._world.now)]
        if wanted := [process for process in up if self.tag_of(process) == affinity]:
            # Now and then it is full, or was woken just now.
            up = self._world.choices.one_of((wanted, wanted, wanted, up))
        return self._world.choices.one_of(up) if up else None

    def declare_dead(self, process: Process) -> None:
        """Let a worker count as dead for a moment, in which it lives on."""
        self._declared_dead[process] = self._world.now + _DECLARED_SECONDS
        process.is_misjudged = True
        # Not 0: what it is about to do may be out of date.
        process.frozen_until = process.frozen_until or self._world.now

    def counts_as_alive(self, process: Process) -> bool:
        """Return whether a worker counts as alive, as its sessions with the broker show it."""
        now = self._world.now
        if process.is_dead:
            return now < process.died_at + self._gone_after[process]
        is_frozen = process.frozen_until > now > process.frozen_at + _TIMEOUT_SECONDS
        return not is_frozen and self._declared_dead.get(process, 0.0) <= now

    def live(self) -> set[str]:
        """Return the names of the workers that count as alive."""
        return {process.name for process in self._all if self.counts_as_alive(process)} | {_TEST}

    @staticmethod
    def lives_since(process: Process, moment: float) -> bool:
        """Return whether a worker has counted as alive since a moment, as far as it knows: it notices that it froze."""
        return process.frozen_until - process.frozen_at <= _TIMEOUT_SECONDS or moment >= process.frozen_until

    @staticmethod
    def tag_of(process: Process) -> str:
        """Return the tag of a worker's session."""
        return f"{int(process.name.removeprefix('worker ')):08x}"

    def _made(self, number: int) -> Process:
        process = Process(f"worker {number}")
        process.at_death.append(lambda: self._died(process))
        self._all.append(process)
        return process

    def _died(self, process: Process) -> None:
        self._gone_after[process] = self._world.choices.between(*_GONE_SECONDS)
        self._world.tell(process.name, "died")
        self._world.after(self._world.choices.spread(0.3, _RESTART_SECONDS), lambda: self._replace(process))

    def _replace(self, process: Process) -> None:
        self._generation += 1
        self.processes[self.processes.index(process)] = self._made(self._generation)
