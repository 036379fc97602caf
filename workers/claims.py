"""A step's claim on a call: bounds the step's requests in time, collects them for the timeline, reports the result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from uuid import UUID

from shared import errors, rest
from shared.core import facts
from shared.core.calls import Call
from shared.core.deadlines import Step
from shared.ledger import Decision, Ledger, Recorded
from shared.store import Note


class Watch:
    """Bounds a series of requests in time and collects them."""

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        self._ledger = ledger
        self._ends_at = ledger.clock.monotonic() + seconds
        self._notes: list[Note] = []

    def seconds_left(self) -> float:
        """How long a request may still take. Raises TransientError when none may start any more."""
        left = self._ends_at - self._ledger.clock.monotonic()
        if left <= 0:
            raise errors.OutOfTime("the step ran out of its time")
        return left

    def pause(self, seconds: float) -> None:
        """Waits, as far as there is time. Raises TransientError when there is none left."""
        self._ledger.clock.sleep(min(seconds, self.seconds_left()))

    def asked(self, request: rest.Asked) -> None:
        """Collects a request that was made."""
        at = self._ledger.store.now() - timedelta(milliseconds=request.took_ms)
        took = round(request.took_ms, 2)
        self._notes.append(Note(kind="request", name=request.what, detail=request.answer, at=at, took_ms=took))

    def notes(self) -> list[Note]:
        """What was asked since this was last called."""
        taken, self._notes = self._notes, []
        return taken


class Claim(Watch):
    """A call in this step's hands."""

    def __init__(self, ledger: Ledger, call: Call, step: Step, owner: str, started: float) -> None:
        # Counted from before the claim was written, so that it ends here no later than it does for others.
        super().__init__(ledger, ledger.limits.claim(step).total_seconds() - (ledger.clock.monotonic() - started))
        self.call = call
        self._step = step
        self.owner = owner

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A step that breaks off gives the call back: its deadline drives it on, not the end of the claim.
        if exc is not None:
            with contextlib.suppress(errors.PipelineError):
                self._ledger.store.release(self.call.call_id, self.owner)

    def record(self, fact: facts.Fact) -> Call:
        """Stores what the step came to, and gives the call out of hand."""
        self.call = self._ledger.record(self.call, fact, notes=self.notes(), owner=self.owner).call
        return self.call

    def hand_over(self, fact: facts.Fact, step: Step) -> Claim | None:
        """As `record`; should the fact lead to this step, its claim is taken in the same write and given back."""
        started = self._ledger.clock.monotonic()
        return self._next(
            self._ledger.record(self.call, fact, notes=self.notes(), owner=self.owner, take=step), step, started
        )

    def decide(self, decide: Callable[[Decision], None], step: Step | None) -> Claim | None:
        """As `hand_over`, with facts that are found in one transaction: see `Ledger.decide`. No step, no claim."""
        started = self._ledger.clock.monotonic()
        return self._next(
            self._ledger.decide(self.call, decide, notes=self.notes(), owner=self.owner, take=step), step, started
        )

    def _next(self, recorded: Recorded, step: Step | None, started: float) -> Claim | None:
        self.call = recorded.call
        if step is None or not recorded.held:
            return None
        return Claim(self._ledger, recorded.call, step, self.owner, started)

    def give_up(self, why: str) -> None:
        """Gives the call out of hand without a result: its deadline drives it on."""
        notes = [*self.notes(), Note(kind="note", name=f"{self._step} gave up", detail=why)]
        self._ledger.store.note(notes, call=self.call)
        self._ledger.store.release(self.call.call_id, self.owner)


def claim(ledger: Ledger, call_id: UUID, step: Step) -> Claim | None:
    """Takes a call for a step; None when there is nothing for it to do, or somebody is doing it."""
    started, owner = ledger.clock.monotonic(), ledger.owner()
    call = ledger.store.claim(call_id, ledger.hold(step, owner))
    return Claim(ledger, call, step, owner, started) if call is not None else None


def take(ledger: Ledger, call: Call, step: Step, *learned: facts.Fact) -> tuple[Recorded, Claim | None]:
    """Stores facts and, should they lead to this step, takes the call for it in the same write."""
    started, owner = ledger.clock.monotonic(), ledger.owner()
    recorded = ledger.record(call, *learned, owner=owner, take=step)
    return recorded, Claim(ledger, recorded.call, step, owner, started) if recorded.held else None
