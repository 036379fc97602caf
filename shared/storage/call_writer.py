"""Facts into calls: asks the core what a fact makes of a call, stores it by compare-and-set, gives its orders."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from shared import errors
from shared.call import calls, commands, facts, quota_rules
from shared.call.calls import Call, Change
from shared.call.limits import Limits, Step
from shared.storage import database
from shared.storage.call_store import ClaimRequest, Store, TimelineEntry

#: A compare-and-set lost this often in a row means something is very wrong: the message is tried again later.
_TRIES = 10

log = structlog.stdlib.get_logger(__name__)


class Clock(Protocol):
    """A process's own clock, for intervals only. The module `time` is one."""

    def monotonic(self) -> float:
        """Seconds, from whenever."""

    def sleep(self, seconds: float, /) -> None:
        """Waits."""


class CommandQueue(Protocol):
    """Where the core's orders go."""

    def enqueue(self, orders: Sequence[commands.Command], *, connection_id: int) -> None:
        """Enqueues them, for a call of this connection. Raises QueueUnavailable when that takes longer than a bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a call."""

    call: Call
    #: Whether the facts changed anything.
    applied: bool
    #: Whether the call is now claimed under the owner given.
    held: bool = False


class Transition:
    """What facts, one after the other, make of a call. Nothing of it is stored yet."""

    def __init__(self, call: Call, now: datetime, limits: Limits) -> None:
        self.call = call
        self.changes: list[Change] = []
        self._orders: list[commands.Command] = []
        self._now = now
        self._limits = limits

    def learn(self, fact: facts.Fact) -> None:
        """Asks the core what the fact makes of the call as it is by now."""
        after, orders = calls.advance(self.call, fact, self._now, self._limits)
        self._orders += orders
        if after != self.call:
            self.changes.append(Change(before=self.call, after=after, fact=fact))
            self.call = after

    def leads_to(self, step: Step) -> bool:
        """Whether this very change is what the step is to act on."""
        if not self.changes:
            return False
        before = self.changes[0].before
        moved = self.call.state is not before.state or self.call.attempt != before.attempt
        return moved and calls.WORKS_IN[step] is self.call.state

    def orders(self, *, held: bool) -> list[commands.Command]:
        """What is to be done now: not what a later fact has overtaken, nor what whoever holds the call does itself."""
        return [order for order in self._orders if self._stands(order, held=held)]

    def _stands(self, order: commands.Command, *, held: bool) -> bool:
        state = _STATE_OF_ORDER.get(type(order))
        return state is None or (state is self.call.state and not held)


class UnitOfWork(Transition):
    """A transaction on a call: what is read and written by its connection is stored with the facts, or not at all."""

    def __init__(self, connection: database.Connection, call: Call, now: datetime, limits: Limits) -> None:
        super().__init__(call, now, limits)
        self.connection = connection


class _Overtaken(Exception):
    """Somebody wrote since the call was read."""


class CallWriter:
    """The one way in which calls change.

    Args:
        who: This process, as it signs its claims.
        clock: Times the steps.
        new_id: An id never given before.
    """

    def __init__(
        self,
        store: Store,
        orders: CommandQueue,
        limits: Limits,
        *,
        who: str,
        clock: Clock = time,
        new_id: Callable[[], UUID] = uuid.uuid4,
    ) -> None:
        self.store = store
        self.limits = limits
        self.who = who
        self.clock = clock
        self.new_id = new_id
        self._orders = orders

    def owner(self) -> str:
        """A new name for one claim."""
        return f"{self.who}/{self.new_id().hex[:8]}"

    def hold(self, step: Step, owner: str) -> ClaimRequest:
        """A claim of the length the step's time-outs add up to."""
        return ClaimRequest(owner=owner, step=step, duration=self.limits.claim(step))

    def record(
        self,
        call: Call,
        *learned: facts.Fact,
        timeline: Sequence[TimelineEntry] = (),
        owner: str = "",
        take: Step | None = None,
        insist: bool = True,
    ) -> Recorded:
        """Stores what facts make of a call. When somebody wrote in between: reads again and asks the core again.

        Args:
            call: As last read; a stale one costs a round trip, nothing more.
            learned: The facts, in their order.
            timeline: Rows of the timeline to write along, whatever becomes of the facts.
            owner: The claim of the step that reports: released by this.
            take: Claim the call for this step in the same write, should the facts leave it in that step's state; the
                order for the step is then not given, the caller carries it out itself.
            insist: False for a fact that is only true of the call as it was read: it is dropped when somebody wrote.

        Raises:
            TransientError: The store is unavailable, or the call is written by others without pause.
        """
        for _ in range(_TRIES):
            change = Transition(call, self.store.now(), self.limits)
            for fact in learned:
                change.learn(fact)
            if not change.changes:
                if timeline:
                    self.store.append_timeline(timeline, call=call)
                self.enqueue(change.orders(held=False), call)
                return Recorded(call=call, applied=False)
            hold = self._hold_for(take, change, owner)
            saved = self.store.save(change.changes, timeline=timeline, owner=owner, hold=hold)
            if saved is not None:
                return self._stored(change, saved, held=hold is not None)
            if not insist:
                return Recorded(call=call, applied=False)
            timeline = ()
            again = self.store.load(call.call_id)
            if again is None:
                raise errors.PermanentError(f"call {call.call_id} is gone from the database")
            call = again
        raise errors.TransientError(f"call {call.call_id}: lost {_TRIES} compare-and-sets in a row")

    def decide(
        self,
        call: Call,
        decide: Callable[[UnitOfWork], None],
        *,
        owner: str,
        timeline: Sequence[TimelineEntry] = (),
        take: Step | None = None,
    ) -> Recorded:
        """Stores what `decide` reads and writes, and the facts it comes to, in one transaction: all or nothing.

        When somebody wrote since the call was read, all of it is rolled back and decided once more, the call's row
        locked; unless the call is in another state by then, where there is nothing to decide.

        Args:
            call: As last read.
            decide: Works inside the transaction.
            owner, timeline, take: As in `record`.
        """
        try:
            return self._decide(call, decide, owner=owner, timeline=timeline, take=take, lock=False)
        except _Overtaken:
            pass
        try:
            return self._decide(call, decide, owner=owner, timeline=timeline, take=take, lock=True)
        except _Overtaken as exc:
            raise errors.TransientError(f"call {call.call_id} was written under its lock") from exc

    def _decide(
        self, call: Call, decide: Callable[[UnitOfWork], None], *, owner: str, timeline: Sequence[TimelineEntry],
        take: Step | None, lock: bool,
    ) -> Recorded:  # fmt: skip
        with self.store.transaction() as connection:
            if lock:
                locked = self.store.lock(connection, call.call_id)
                if locked is None or locked.state is not call.state:
                    return Recorded(call=locked or call, applied=False)
                call = locked
            decision = UnitOfWork(connection, call, self.store.now(), self.limits)
            decide(decision)
            if not decision.changes:
                return Recorded(call=call, applied=False)
            hold = self._hold_for(take, decision, owner)
            saved = self.store.save_in(connection, decision.changes, timeline=timeline, owner=owner, hold=hold)
            if saved is None:
                raise _Overtaken
        return self._stored(decision, saved, held=hold is not None)

    def no_free_slot(self, decision: UnitOfWork, slots: int | None) -> facts.Refused | None:
        """Why there is no slot for the decision's call; None when there is one.

        The organization is locked until the decision is stored: of any number of calls that arrive at the same time, as
        many get in as there are slots.

        Args:
            slots: How many the organization has; None for any number, and nothing is counted.
        """
        if slots is None:
            return None
        organization_id = decision.call.organization_id
        self.store.lock_organization(decision.connection, organization_id)
        taken = self.store.slots_used(decision.connection, organization_id)
        return quota_rules.no_free_slot(taken=taken, limit=slots)

    def enqueue(self, orders: Sequence[commands.Command], call: Call) -> None:
        """Enqueues a call's orders; what cannot be enqueued is re-driven by the sweep when its deadline has passed."""
        if not orders:
            return
        try:
            self._orders.enqueue(orders, connection_id=call.connection_id)
        except errors.QueueUnavailable as exc:
            log.warning("orders not enqueued, the sweep will give them again", orders=len(orders), reason=str(exc))

    def _hold_for(self, take: Step | None, change: Transition, owner: str) -> ClaimRequest | None:
        return self.hold(take, owner) if take is not None and change.leads_to(take) else None

    def _stored(self, change: Transition, saved: Call, *, held: bool) -> Recorded:
        self.enqueue(change.orders(held=held), saved)
        return Recorded(call=saved, applied=True, held=held)


_STATE_OF_ORDER: dict[type[commands.Command], calls.State] = {
    commands.DecideAdmission: calls.State.RECEIVED,
    commands.CreateRun: calls.State.ADMITTED,
    commands.StartMedia: calls.State.PREPARED,
    commands.JoinLegs: calls.State.JOINING,
    commands.TearDown: calls.State.ENDING,
    commands.OriginateLeg: calls.State.ORIGINATING,
}
