"""Facts into calls: ask the core what a fact makes of a call, store it by compare-and-set, enqueue what it orders."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from shared import errors
from shared.call import facts, ids, steps, transitions
from shared.call.calls import Call, Change
from shared.call.commands import Command
from shared.call.limits import Limits
from shared.call.states import State
from shared.call.steps import Step
from shared.call.transitions import media_leg
from shared.storage import owners
from shared.storage.call_store import CallStore, ClaimRequest
from shared.storage.timeline import TimelineEntry

#: So many calls are remembered whose end is stored, and for so long: no fail-over may have forgotten it by then.
_OVER = 1000
_OVER_SECONDS = 1.0
#: This many lost compare-and-sets in a row mean that something is very wrong: the message is tried again later.
_TRIES = 10

log = structlog.stdlib.get_logger(__name__)
_std = logging.getLogger(__name__)


class Clock(Protocol):
    """The process's own clock, for intervals only. The module `time` is one."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


def random_id() -> UUID:
    """Return an id never given before.

    From a generator that the system has seeded once. Each call of the system lets go of the interpreter, and beside
    other threads it takes up to 0.3 ms until it is this thread's again. No secret is drawn here.
    """
    return UUID(int=random.getrandbits(128), version=4)


class CommandQueue(Protocol):
    """Where the core's commands go."""

    def enqueue(self, commands: Sequence[Command], *, connection_id: int) -> None:
        """Enqueue them, for a call of this connection. Raises QueueUnavailable when that takes longer than a bound."""


class Observer(Protocol):
    """Learns what becomes of calls, once it is stored. Raises nothing."""

    def arrived(self, call: Call, waited_seconds: float) -> None:
        """A call is about to be written; its event has waited for so long."""

    def changed(self, changes: Sequence[Change]) -> None:
        """These changes of one call are stored."""

    def ended(self, call: Call) -> None:
        """A call that was over before it was known is stored."""


class Unobserved:
    """The observer where there is none."""

    def arrived(self, call: Call, waited_seconds: float) -> None:
        """Learn nothing."""

    def changed(self, changes: Sequence[Change]) -> None:
        """Learn nothing."""

    def ended(self, call: Call) -> None:
        """Learn nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a call."""

    call: Call
    #: Whether the facts changed anything.
    applied: bool
    #: The step the call is now claimed for, and by which claim; None when it is not.
    claim: ClaimRequest | None = None


_UNOBSERVED = Unobserved()


class CallExists(Exception):
    """There is a call of this identity already: what was to be written with the new one is rolled back."""


class VersionConflict(Exception):
    """The call was written by another process since it was read: the transaction is rolled back."""


class Transition:
    """What facts, one after the other, make of a call. Nothing of it is stored yet."""

    def __init__(self, call: Call, now: datetime, limits: Limits) -> None:
        self.call = call
        self.changes: list[Change] = []
        self._commands: list[Command] = []
        self._now = now
        self._limits = limits

    def apply(self, fact: facts.Fact) -> None:
        """Ask the core what the fact makes of the call as it is by now."""
        after, commands = transitions.advance(self.call, fact, self._now, self._limits)
        self._commands += commands
        if after != self.call:
            self.changes.append(Change(before=self.call, after=after, fact=fact))
            self.call = after

    def begin(self, served: Collection[Step], nonce: str) -> Step | None:
        """Return the step that these facts lead to, if it is among those served; None otherwise.

        The media step begins an attempt, whose number and nonce are stored before any request is made for it.
        """
        if not self.changes:
            return None
        before, step = self.changes[0].before, steps.step_of(self.call.state)
        enters = self.call.state is not before.state
        if step not in served or not (enters or self.call.attempt != before.attempt):
            return None
        if step is Step.MEDIA and enters:
            self.apply(media_leg.begin(self.call, self._now, self._limits, nonce))
        return step

    def due(self, *, claimed: bool) -> list[Command]:
        """Return the commands still due: not those made obsolete by a later fact, nor the one the claim carries out."""
        return [command for command in self._commands if self._is_due(command, claimed=claimed)]

    def _is_due(self, command: Command, *, claimed: bool) -> bool:
        state = steps.state_of(command)
        return state is None or (state is self.call.state and not claimed)


class CallWriter:
    """The one way in which calls change.

    Args:
        who: This process, as it signs its claims. A worker's sessions with the broker have the same name, and it has
            another one at each start: its claims end with its life.
        lives_since: Returns whether this process has counted as alive without a break since a moment of the clock.
        clock: Times the steps.
        new_id: Returns an id never given before.
        observer: Learns what becomes of the calls.
    """

    def __init__(
        self,
        store: CallStore,
        commands: CommandQueue,
        limits: Limits,
        *,
        who: str,
        lives_since: Callable[[float], bool] = lambda _moment: True,
        clock: Clock = time,
        new_id: Callable[[], UUID] = random_id,
        observer: Observer = _UNOBSERVED,
    ) -> None:
        self.store = store
        self.observer = observer
        self.limits = limits
        self.lives_since = lives_since
        self.clock = clock
        self.new_id = new_id
        self._who = who
        self._commands = commands
        #: The calls whose end this process has stored → connection, and until when that counts; the oldest first.
        self._over: OrderedDict[UUID, tuple[int, float]] = OrderedDict()

    def new_owner(self) -> str:
        """Return a new name for the owner of one claim."""
        return owners.name(self._who, self.new_id())

    def new_nonce(self, call: Call) -> str:
        """Draw the nonce of a call's next attempt; empty if a release that knows none may go on with the call."""
        return self.new_id().hex[:8] if ids.has_nonces(call.id_prefix) else ""

    def is_over(self, call_id: UUID, *, connection_id: int) -> bool:
        """True if this process has just stored that a call of this connection ends: a call never comes back."""
        told_by, until = self._over.get(call_id, (None, 0.0))
        return told_by == connection_id and self.clock.monotonic() < until

    def claim_request(self, step: Step, owner: str) -> ClaimRequest:
        """Return a claim as long as the step's time-outs add up to."""
        return ClaimRequest(owner=owner, step=step, duration=self.limits.claim(step))

    def after(self, call: Call, *happened: facts.Fact) -> Call:
        """Return what facts would make of a call. Nothing is stored."""
        return self.transition(call, happened).call

    def record(
        self,
        call: Call,
        *happened: facts.Fact,
        timeline: Sequence[TimelineEntry] = (),
        owner: str = "",
        then: Collection[Step] = (),
        retry_on_conflict: bool = True,
        orders: bool = True,
        nonce: str | None = None,
    ) -> Recorded:
        """Store what facts make of a call. On a version conflict, read the call again and ask the core again.

        Args:
            call: As last read; a stale one costs a round trip, nothing more.
            happened: The facts, in their order.
            timeline: Entries to write along, whatever becomes of the facts.
            owner: The owner of the claim that ends with this write; empty when the call is not claimed.
            then: The steps this thread may go on to. If the facts lead to one of them, its claim is taken in the same
                write and its command is not enqueued: the caller carries it out.
            retry_on_conflict: If False, drop the facts on a version conflict instead of evaluating them against the
                new version.
            orders: If False, what the facts lead to is not enqueued: it is left to the deadline.
            nonce: Of the attempt that may begin with this write; None to draw it.

        Raises:
            TransientError: The store is unavailable, or other processes write the call without pause.
        """
        for _ in range(_TRIES):
            transition = self.transition(call, happened)
            if not transition.changes:
                if timeline:
                    self.store.append_timeline(timeline, call=call)
                if owner:
                    self.store.release(call.call_id, owner)
                if orders:
                    self.enqueue(transition.due(claimed=False), call)
                return Recorded(call=call, applied=False)
            claim = self.claim_for(transition, then, owner, nonce)
            saved = self.store.save(transition.changes, timeline=timeline, owner=owner, claim=claim)
            if saved is not None:
                return self.stored(transition, saved, claim, orders=orders)
            if not retry_on_conflict:
                return Recorded(call=call, applied=False)
            timeline = ()
            again = self.store.load(call.call_id)
            if again is None:
                # A fail-over has forgotten it: the message, tried again, finds a caller without a call.
                raise errors.TransientError(f"call {call.call_id} is gone from the database")
            call = again
        raise errors.TransientError(f"call {call.call_id}: {_TRIES} version conflicts in a row")

    def note(self, call: Call, fact: facts.Fact, *, timeline: Sequence[TimelineEntry], owner: str) -> Call | None:
        """Store a fact in a claim, which goes on. Return None if the claim is over, or the fact does not apply."""
        changes = self.transition(call, (fact,)).changes
        if not changes:
            return None
        return self.store.save(changes, timeline=timeline, owner=owner, claim=None, keeps_claim=True)

    def record_new(
        self,
        call: Call,
        *happened: facts.Fact,
        timeline: Sequence[TimelineEntry] = (),
        owner: str = "",
        then: Collection[Step] = (),
        nonce: str | None = None,
    ) -> Recorded:
        """Write a call for the first time, as facts leave it. Arguments as in `record`.

        Raises:
            CallExists: There is a call of this identity.
        """
        transition = self.transition(call, happened)
        claim = self.claim_for(transition, then, owner, nonce)
        if not self.store.insert(call, timeline, claim, changes=transition.changes):
            raise CallExists
        return self.stored(transition, transition.call, claim)

    def begin(self, call: Call, *, lock: bool, is_new: bool = False) -> UnitOfWork:
        """Open a transaction in which a step reads and writes, and in which its facts are recorded.

        Args:
            lock: Lock the call's row first: after a version conflict, so that there is no second one.
            is_new: The call is not written yet; recording its facts writes it.

        Raises:
            VersionConflict: The locked call is in another state by now.
        """
        return UnitOfWork(self, call, lock=lock, is_new=is_new)

    def enqueue(self, commands: Sequence[Command], call: Call) -> None:
        """Enqueue a call's commands. The sweep orders again what cannot be enqueued, once its deadline has passed."""
        if not commands:
            return
        try:
            self._commands.enqueue(commands, connection_id=call.connection_id)
        except errors.QueueUnavailable as exc:
            log.warning("commands not enqueued, left to the sweep", commands=len(commands), reason=str(exc))

    def transition(self, call: Call, happened: Sequence[facts.Fact]) -> Transition:
        """Return what facts make of a call, now."""
        transition = Transition(call, self.store.now(), self.limits)
        for fact in happened:
            transition.apply(fact)
        return transition

    def claim_for(
        self, transition: Transition, then: Collection[Step], owner: str, nonce: str | None
    ) -> ClaimRequest | None:
        """Return the claim to take with a transition: of the step it leads to, if that is among `then`."""
        step = transition.begin(then, self.new_nonce(transition.call) if nonce is None else nonce)
        return self.claim_request(step, owner or self.new_owner()) if step is not None else None

    def stored(
        self, transition: Transition, saved: Call, claim: ClaimRequest | None, *, orders: bool = True
    ) -> Recorded:
        """Enqueue the commands of a transition that is stored, unless `orders` is False."""
        self.observer.changed(transition.changes)
        if saved.state in (State.ENDING, State.ENDED):
            self._over[saved.call_id] = saved.connection_id, self.clock.monotonic() + _OVER_SECONDS
            if len(self._over) > _OVER:
                self._over.popitem(last=False)
        if _std.isEnabledFor(logging.DEBUG):
            happened = [type(change.fact).__name__ for change in transition.changes]
            log.debug("call stored", call=str(saved.call_id), state=str(saved.state), facts=happened)
        if orders:
            self.enqueue(transition.due(claimed=claim is not None), saved)
        return Recorded(call=saved, applied=True, claim=claim)


class UnitOfWork:
    """A transaction on one call: what is read and written by `connection` is stored with the facts, or not at all."""

    def __init__(self, writer: CallWriter, call: Call, *, lock: bool, is_new: bool) -> None:
        self._writer = writer
        self._is_new = is_new
        self._is_locked = lock
        self._open = contextlib.ExitStack()
        self.call = call
        self.connection = self._open.enter_context(writer.store.transaction())
        if lock:
            try:
                self.call = self._locked(call)
            except BaseException as exc:
                self.roll_back(exc)
                raise

    def record(
        self,
        *happened: facts.Fact,
        timeline: Sequence[TimelineEntry],
        owner: str,
        then: Collection[Step],
        nonce: str | None = None,
    ) -> Recorded:
        """Record facts as `CallWriter.record` does, and commit.

        Raises:
            VersionConflict: Another process wrote the call since it was read. Roll back.
            CallExists: There is a call of a new one's identity. Roll back.
            RowChanged: The call is new, and what it was admitted by is no more as it was. Roll back.
        """
        store, transition = self._writer.store, self._writer.transition(self.call, happened)
        if not transition.changes and not self._is_new:
            raise VersionConflict
        claim = self._writer.claim_for(transition, then, owner, nonce)
        changes = transition.changes
        if self._is_new:
            store.insert_with_commit(self.connection, self.call, timeline, claim, changes=changes)
            self._commit()
            return self._writer.stored(transition, transition.call, claim)
        saved = store.save_with_commit(self.connection, changes, timeline=timeline, owner=owner, claim=claim)
        self._commit()
        return self._writer.stored(transition, saved(), claim)

    def roll_back(self, exc: BaseException | None = None) -> None:
        """End the transaction without a trace; do nothing when it has ended.

        Args:
            exc: What broke it off. A driver's error is raised in the store's words, as at the end of any transaction.
        """
        cause = exc if exc is not None else VersionConflict()
        self._open.__exit__(type(cause), cause, cause.__traceback__)

    def _commit(self) -> None:
        try:
            self._open.close()
        except errors.DuplicateKey as exc:
            if self._is_new:
                raise CallExists from exc
            raise
        except errors.RowChanged as exc:
            if self._is_new or self._is_locked:
                # Of a call that is locked it is another row, or a trigger of the platform's that divides by zero.
                raise
            raise VersionConflict from exc

    def _locked(self, call: Call) -> Call:
        locked = self._writer.store.lock(self.connection, call.call_id)
        if locked is None or locked.state is not call.state:
            raise VersionConflict
        return locked
