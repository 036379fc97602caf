"""A step's claim on a call: bounds the step's requests in time, collects them for the timeline, reports the result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from uuid import UUID

from shared import errors
from shared.asterisk import rest
from shared.call import facts
from shared.call.calls import Call
from shared.call.limits import Step
from shared.storage.call_store import TimelineEntry
from shared.storage.call_writer import CallWriter, Recorded, UnitOfWork


class TimedBudget:
    """Bounds a series of requests in time and collects them."""

    def __init__(self, writer: CallWriter, seconds: float) -> None:
        self._ledger = writer
        self._ends_at = writer.clock.monotonic() + seconds
        self._timeline: list[TimelineEntry] = []

    def seconds_left(self) -> float:
        """How long a request may still take. Raises TransientError when none may start any more."""
        left = self._ends_at - self._ledger.clock.monotonic()
        if left <= 0:
            raise errors.OutOfTime("the step ran out of its time")
        return left

    def pause(self, seconds: float) -> None:
        """Waits, as far as there is time. Raises TransientError when there is none left."""
        self._ledger.clock.sleep(min(seconds, self.seconds_left()))

    def record_request(self, request: rest.RequestRecord) -> None:
        """Collects a request that was made."""
        at = self._ledger.store.now() - timedelta(milliseconds=request.took_ms)
        took = round(request.took_ms, 2)
        self._timeline.append(
            TimelineEntry(kind="request", name=request.what, detail=request.answer, at=at, took_ms=took)
        )

    def timeline(self) -> list[TimelineEntry]:
        """What was asked since this was last called."""
        taken, self._timeline = self._timeline, []
        return taken


class Claim(TimedBudget):
    """A call in this step's hands."""

    def __init__(self, writer: CallWriter, call: Call, step: Step, owner: str, started: float) -> None:
        # Counted from before the claim was written, so that it ends here no later than it does for others.
        super().__init__(writer, writer.limits.claim(step).total_seconds() - (writer.clock.monotonic() - started))
        self.call = call
        self._step = step
        self.owner = owner

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A step that breaks off gives the call back: its deadline step_retries it on, not the end of the claim.
        if exc is not None:
            with contextlib.suppress(errors.PipelineError):
                self._ledger.store.release(self.call.call_id, self.owner)

    def record(self, fact: facts.Fact) -> Call:
        """Stores what the step came to, and gives the call out of hand."""
        self.call = self._ledger.record(self.call, fact, timeline=self.timeline(), owner=self.owner).call
        return self.call

    def hand_over(self, fact: facts.Fact, step: Step) -> Claim | None:
        """As `record`; should the fact lead to this step, its claim is taken in the same write and given back."""
        started = self._ledger.clock.monotonic()
        return self._next(
            self._ledger.record(self.call, fact, timeline=self.timeline(), owner=self.owner, take=step), step, started
        )

    def decide(self, decide: Callable[[UnitOfWork], None], step: Step | None) -> Claim | None:
        """As `hand_over`, with facts that are found in one transaction: see `Ledger.decide`. No step, no claim."""
        started = self._ledger.clock.monotonic()
        return self._next(
            self._ledger.decide(self.call, decide, timeline=self.timeline(), owner=self.owner, take=step), step, started
        )

    def _next(self, recorded: Recorded, step: Step | None, started: float) -> Claim | None:
        self.call = recorded.call
        if step is None or not recorded.held:
            return None
        return Claim(self._ledger, recorded.call, step, self.owner, started)

    def give_up(self, reason: str) -> None:
        """Gives the call out of hand without a result: its deadline step_retries it on."""
        timeline = [*self.timeline(), TimelineEntry(kind="note", name=f"{self._step} gave up", detail=reason)]
        self._ledger.store.append_timeline(timeline, call=self.call)
        self._ledger.store.release(self.call.call_id, self.owner)


def claim(writer: CallWriter, call_id: UUID, step: Step) -> Claim | None:
    """Takes a call for a step; None when there is nothing for it to do, or somebody is doing it."""
    started, owner = writer.clock.monotonic(), writer.owner()
    call = writer.store.claim(call_id, writer.hold(step, owner))
    return Claim(writer, call, step, owner, started) if call is not None else None


def take(writer: CallWriter, call: Call, step: Step, *learned: facts.Fact) -> tuple[Recorded, Claim | None]:
    """Stores facts and, should they lead to this step, takes the call for it in the same write."""
    started, owner = writer.clock.monotonic(), writer.owner()
    recorded = writer.record(call, *learned, owner=owner, take=step)
    return recorded, Claim(writer, recorded.call, step, owner, started) if recorded.held else None
