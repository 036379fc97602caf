"""Facts into calls: asks the core what a fact makes of a call, stores it by compare-and-set, gives its orders."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

import structlog

from shared import database, errors
from shared.core import calls, commands, facts, quotas
from shared.core.calls import Call
from shared.core.deadlines import Limits, Step
from shared.store import Hold, Note, Store

#: A compare-and-set lost this often in a row means something is very wrong: the message is tried again later.
_TRIES = 10

log = structlog.stdlib.get_logger(__name__)


class Clock(Protocol):
    """A process's own clock, for intervals only. The module `time` is one."""

    def monotonic(self) -> float:
        """Seconds, from whenever."""

    def sleep(self, seconds: float, /) -> None:
        """Waits."""


class Orders(Protocol):
    """Where the core's orders go."""

    def give(self, orders: Sequence[commands.Command], *, connection_id: int) -> None:
        """Enqueues them, for a call of this connection. Raises QueueUnavailable when that takes longer than a bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a call."""

    call: Call
    #: Whether the fact changed anything.
    applied: bool
    #: Whether the call is now claimed under the owner given.
    held: bool = False


class Ledger:
    """The one way in which calls change.

    Args:
        who: This process, as it signs its claims.
        clock: Times the steps.
        new_id: An id never given before.
    """

    def __init__(
        self,
        store: Store,
        orders: Orders,
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

    def hold(self, step: Step, owner: str) -> Hold:
        """A claim of the length the step's time-outs add up to."""
        return Hold(owner=owner, step=step, duration=self.limits.claim(step))

    def record(
        self,
        call: Call,
        fact: facts.Fact,
        *,
        notes: Sequence[Note] = (),
        owner: str = "",
        take: Step | None = None,
        insist: bool = True,
    ) -> Recorded:
        """Stores what a fact makes of a call. When somebody wrote in between: reads again and asks the core again.

        Args:
            call: As last read; a stale one costs a round trip, nothing more.
            notes: Rows of the timeline to write along, whatever becomes of the fact.
            owner: The claim of the step that reports: released by this.
            take: Claim the call for this step in the same write, should the fact leave it in that step's state; the
                order for the step is then not given, the caller carries it out itself.

            insist: False for a fact that is only true of the call as it was read: it is dropped when somebody wrote.

        Raises:
            TransientError: The store is unavailable, or the call is written by others without pause.
        """
        for _ in range(_TRIES):
            after, orders = calls.advance(call, fact, self.store.now(), self.limits)
            if after == call:
                if notes:
                    self.store.note(notes, call=call)
                self.give(orders, call)
                return Recorded(call=call, applied=False)
            hold = self.hold(take, owner) if take is not None and _leads_to(take, call, after) else None
            saved = self.store.save(call, after, fact, notes=notes, owner=owner, hold=hold)
            if saved is not None:
                self.give([order for order in orders if hold is None or not _is_for(order, after.state)], saved)
                return Recorded(call=saved, applied=True, held=hold is not None)
            if not insist:
                return Recorded(call=call, applied=False)
            notes = ()
            again = self.store.load(call.call_id)
            if again is None:
                raise errors.PermanentError(f"call {call.call_id} is gone from the database")
            call = again
        raise errors.TransientError(f"call {call.call_id}: lost {_TRIES} compare-and-sets in a row")

    def decide(
        self,
        call_id: UUID,
        state: calls.State,
        decide: Callable[[database.Connection, Call], facts.Fact],
        *,
        owner: str,
        notes: Sequence[Note] = (),
    ) -> None:
        """Stores what `decide` reads and writes, and the fact it comes to, in one transaction: both or neither.

        The call's row is locked first, so that two workers cannot both decide. Does nothing in another state.

        Args:
            decide: Works inside the transaction; it may be rolled back, and asked again.
        """
        with self.store.transaction() as connection:
            call = self.store.lock(connection, call_id)
            if call is None or call.state is not state:
                return
            fact = decide(connection, call)
            after, orders = calls.advance(call, fact, self.store.now(), self.limits)
            if self.store.save_in(connection, call, after, fact, owner=owner, notes=notes) is None:
                raise errors.TransientError(f"call {call_id} was written under its lock")
        self.give(orders, call)

    def admit(
        self,
        call: Call,
        fact: facts.Admitted,
        *,
        slots: int | None,
        goes_on: bool = False,
        owner: str,
        notes: Sequence[Note] = (),
    ) -> None:
        """Stores that a call may be served; that it is refused, when its organization's slots are all taken.

        Counting and storing is one transaction under the organization's lock: of any number of calls that arrive at
        the same time, as many are admitted as there are slots.

        Args:
            slots: How many the organization has; None for any number, and nothing is counted.
            goes_on: Whether a refused caller goes on in the dialplan.
        """
        if slots is None:
            self.record(call, fact, notes=notes, owner=owner)
            return

        def judge(connection: database.Connection, locked: Call) -> facts.Fact:
            self.store.lock_organization(connection, locked.organization_id)
            taken = self.store.slots_taken(connection, locked.organization_id)
            crowded = quotas.crowded(taken=taken, limit=slots)
            return fact if crowded is None else replace(crowded, goes_on=goes_on)

        self.decide(call.call_id, calls.State.RECEIVED, judge, owner=owner, notes=notes)

    def give(self, orders: Sequence[commands.Command], call: Call) -> None:
        """Enqueues a call's orders; what cannot be enqueued is re-driven by the sweep when its deadline has passed."""
        if not orders:
            return
        try:
            self._orders.give(orders, connection_id=call.connection_id)
        except errors.QueueUnavailable as exc:
            log.warning("orders not enqueued, the sweep will give them again", orders=len(orders), why=str(exc))


def _leads_to(step: Step, before: Call, after: Call) -> bool:
    """Whether this very change is what the step is to act on."""
    moved = after.state is not before.state or after.attempt != before.attempt
    return moved and calls.WORKS_IN[step] is after.state


def _is_for(order: commands.Command, state: calls.State) -> bool:
    return _STATE_OF_ORDER.get(type(order)) is state


_STATE_OF_ORDER: dict[type[commands.Command], calls.State] = {
    commands.DecideAdmission: calls.State.RECEIVED,
    commands.CreateRun: calls.State.ADMITTED,
    commands.StartMedia: calls.State.PREPARED,
    commands.Join: calls.State.JOINING,
    commands.TearDown: calls.State.ENDING,
    commands.PlaceCall: calls.State.ORIGINATING,
}
