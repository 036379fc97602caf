"""A step's claim on a call: it bounds the step's requests in time, collects them, and records the result."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import structlog

from shared import errors, spans
from shared.asterisk import rest
from shared.call import facts, faults
from shared.call.calls import Call
from shared.call.steps import STEPS, Step
from shared.platform.ports import NoRoute, Route
from shared.storage import connections, database
from shared.storage.call_store import ClaimRequest
from shared.storage.call_writer import CallWriter, Recorded, UnitOfWork, VersionConflict
from shared.storage.timeline import TimelineEntry, is_expected

log = structlog.stdlib.get_logger(__name__)
_std = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Returns the steps that a thread may go on to after it has worked on this call.
NextSteps = Callable[[Call], Collection[Step]]


class TimedBudget:
    """Bounds a series of requests in time and collects them."""

    def __init__(self, writer: CallWriter, seconds: float) -> None:
        self._writer = writer
        self._ends_at = writer.clock.monotonic() + seconds
        self._timeline: list[TimelineEntry] = []

    def seconds_left(self) -> float:
        """Return how long a request may still take. Raises TransientError when none may start any more."""
        left = self._ends_at - self._writer.clock.monotonic()
        if left <= 0:
            raise errors.OutOfTime("the step ran out of its time")
        return left

    def pause(self, seconds: float) -> None:
        """Wait, as far as there is time. Raises TransientError when there is none left."""
        self._writer.clock.sleep(min(seconds, self.seconds_left()))

    def record_request(self, request: rest.RequestRecord) -> None:
        """Collect a request that was made, unless its answer tells nothing."""
        at = self._writer.store.now() - timedelta(milliseconds=request.took_ms)
        took = round(request.took_ms, 2)
        if _std.isEnabledFor(logging.DEBUG):
            log.debug("asterisk asked", request=request.what, answer=request.answer, took_ms=took)
        if (kept := spans.recording()) is not None:
            _keep_span(kept, request)
        if is_expected(request.what, request.answer):
            return
        self._timeline.append(
            TimelineEntry(kind="request", name=request.what, detail=request.answer, at=at, took_ms=took)
        )

    def timeline(self) -> list[TimelineEntry]:
        """Return the requests collected since this was last called."""
        entries, self._timeline = self._timeline, []
        return entries


def _keep_span(kept: spans.Recording, request: rest.RequestRecord) -> None:
    method, _, path = request.what.partition(" ")
    parts = path.strip("/").split("/")
    route = [parts[0], *(["{id}"] if parts[1:] and parts[1] != "externalMedia" else parts[1:2]), *parts[2:]]
    ended = time.time_ns()
    attributes: dict[str, str | int | float | bool] = {
        "http.request.method": method,
        "url.template": f"/ari/{'/'.join(route)}",
        "url.path": f"/ari{path}",
    }
    status = request.answer.partition(" ")[0]
    if status.isdecimal():
        attributes["http.response.status_code"] = int(status)
    kept.add(
        f"{method} /{'/'.join(route)}",
        kind=spans.Kind.CLIENT,
        began=ended - int(request.took_ms * 1e6),
        ended=ended,
        attributes=attributes,
        error="" if status.isdecimal() and int(status) < 400 else request.answer,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What was known when a call was written."""

    target: connections.InboundTarget
    #: None when it was not read along, or is to be read again.
    route: Route | NoRoute | None = None
    #: How long the event had waited.
    waited_seconds: float
    #: Why the leg cannot be served, if what decides about it cannot be used.
    unusable: str = ""
    #: If target and route are assumed: has a transaction fail with RowChanged unless they are as they were.
    check: Callable[[database.Connection], None] | None = None


class Claim(TimedBudget):
    """A call that this thread has claimed for a step.

    Args:
        owner: Names the claim in the call's row.
        started: When the claim was asked for, by the writer's clock: it ends here no later than it does for others.
        arrival: Set for the admission of a call that this thread has just received.
        is_new: The call is not written yet: recording the step's facts writes it, in the state they leave it in.
        named: The legs and the bridge that the call's run names, if the claims before this one have created it.
    """

    def __init__(
        self,
        writer: CallWriter,
        call: Call,
        step: Step,
        *,
        owner: str,
        started: float,
        arrival: Arrival | None = None,
        is_new: bool = False,
        named: Collection[str] = (),
    ) -> None:
        super().__init__(writer, writer.limits.claim(step).total_seconds() - (writer.clock.monotonic() - started))
        self._started = started
        self.call = call
        self.step = step
        self.arrival = arrival
        self.named = named
        #: The step goes on in the claim of the step before.
        self.is_continued = False
        self._owner = owner
        self._is_new = is_new
        self._next_steps: NextSteps = _no_next_steps
        self._then: Collection[Step] | None = None
        self._work: UnitOfWork | None = None
        #: What is recorded if the transaction cannot be committed.
        self._instead: Callable[[errors.PipelineError], facts.Fact] | None = None
        self._locks = False
        self._answers: dict[str, Any] = {}
        #: The call as the store has it, if facts were deferred.
        self._stored: Call | None = None
        self._deferred: tuple[facts.Fact, ...] = ()
        self._orders = True
        self._nonce: str | None = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._roll_back(exc)
        finally:
            # A step that breaks off ends its claim: the call's deadline brings it on, not the end of the claim.
            # Deferred facts need it still.
            if exc is not None and not self._is_new and not self._deferred:
                with contextlib.suppress(errors.PipelineError):
                    self._release(exc)

    def seconds_left(self) -> float:
        """As of any budget; and none may start once this worker may count as dead, and its claim is broken."""
        if not self._writer.lives_since(self._started):
            raise errors.OutOfTime("this worker was not heard of for too long: its claims may be broken")
        return super().seconds_left()

    def request(self) -> ClaimRequest:
        """Return the claim as it is to be written with a new call."""
        return self._writer.claim_request(self.step, self._owner)

    def may_lead_to(self, next_steps: NextSteps) -> None:
        """Say which steps this thread may go on to once the result is recorded."""
        self._next_steps = next_steps

    def leads_to(self, step: Step) -> bool:
        """True if this thread may go on to this step."""
        return step in self._following()

    def ask_once(self, question: str, ask: Callable[[], _T]) -> _T:
        """Return the answer to a question over the network. A step that runs once more gets the same answer again."""
        if question not in self._answers:
            self._answers[question] = ask()
        answer: _T = self._answers[question]
        return answer

    def defer(self, *happened: facts.Fact) -> None:
        """Go on with what facts make of the call; they are stored with the next ones.

        They may never be stored: only facts that can be found out again are deferred.
        """
        self._stored = self._stored or self.call
        self._deferred += happened
        self.call = self.after(*happened)

    @property
    def nonce(self) -> str:
        """The nonce of the attempt that may begin with this claim's result."""
        if self._nonce is None:
            self._nonce = self._writer.new_nonce(self.call)
        return self._nonce

    def note(self, fact: facts.Fact) -> bool:
        """Store a fact at once, and go on in this claim; return False if that is over, or the fact does not apply."""
        noted = self._writer.note(self.call, fact, timeline=self.timeline(), owner=self._owner)
        self.call = noted or self.call
        return noted is not None

    def continue_with(self, step: Step, *happened: facts.Fact) -> None:
        """Go on to another step in this claim, with nothing stored in between: no other worker can have begun it."""
        self.defer(*happened)
        self.step = step
        self.is_continued = True

    @property
    def has_deferred(self) -> bool:
        """True if facts are still to be stored."""
        return bool(self._deferred)

    def has_time(self, seconds: float) -> bool:
        """True if the claim ends no earlier than in this time."""
        return self._ends_at - self._writer.clock.monotonic() >= seconds

    def begin(self) -> database.Connection:
        """Open the transaction in which the facts will be recorded: what is written by it is stored with them.

        After a version conflict the step runs once more, and here the call's row is locked.
        """
        assert not self._deferred, "a step in a transaction records all facts itself"
        # Before the transaction: finding out may take a query of its own.
        self._following()
        self._work = self._writer.begin(self.call, lock=self._locks, is_new=self._is_new)
        self.call = self._work.call
        return self._work.connection

    @contextlib.contextmanager
    def transaction(self, instead: Callable[[errors.PipelineError], facts.Fact]) -> Iterator[database.Connection]:
        """As `begin`, for what may fail: then nothing of it is stored, and the step goes on. Raises a PipelineError.

        Args:
            instead: Returns what is recorded, by itself, if only the commit fails: what was sent goes with that.
        """
        db = self.begin()
        self._instead = instead
        try:
            yield db
        except Exception as exc:
            work, self._work = self._work, None
            assert work is not None
            work.roll_back(exc)
            raise

    def after(self, *happened: facts.Fact) -> Call:
        """Return what facts would make of the call. Nothing is stored."""
        return self._writer.after(self.call, *happened)

    def record(self, *happened: facts.Fact) -> Claim | None:
        """Store what the step came to; this ends its claim. Return the claim for the next step, or None.

        Raises:
            VersionConflict: The step had begun a transaction, and another process wrote the call since it was read.
            CallExists: The call is new, and there is one of its identity.
        """
        started, then = self._writer.clock.monotonic(), self._following()
        try:
            recorded = self._store(happened, then)
        except errors.PipelineError as exc:
            if self._deferred:
                self.defer(*happened)
            if self._work is None or self._instead is None or isinstance(exc, errors.DatabaseAway):
                raise
            self._work = None
            recorded = self._store([self._instead(exc)], then)
        self.call = recorded.call
        self._stored, self._deferred = None, ()
        return following(self._writer, recorded, started, named=self.named)

    def settle(self, *, orders: bool = True) -> None:
        """Store the deferred facts and end the claim. If that fails they stay deferred, and the claim stands.

        Args:
            orders: What they lead to is ordered by message; if False, the call's deadline orders it.
        """
        self._then, self._orders = (), orders
        with self:
            self.record()

    def retry_locked(self) -> None:
        """Prepare the step to run once more after a version conflict, with the call's row locked.

        Raises:
            VersionConflict: The call is in another state by now, in which this step has nothing to do.
        """
        self._end_transaction()
        self._locks = True
        call = self._writer.store.load(self.call.call_id)
        if call is None or call.state is not self.call.state:
            raise VersionConflict
        self.call = call

    def drop(self) -> None:
        """Store the requests that were made, and no result."""
        timeline = self.timeline()
        if timeline:
            self._writer.store.append_timeline(timeline, call=self.call)

    def order_again(self) -> None:
        """End the claim without a result, and have another message go on as the call is by then."""
        self._end_transaction()
        self._writer.store.release(self.call.call_id, self._owner)
        self._writer.enqueue([STEPS[self.step].command.of(self.call)], self.call)

    def _end_transaction(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.roll_back()

    def give_up(self, reason: str | errors.TransientError) -> None:
        """End the claim without a result: the call's deadline brings it on. Deferred facts are stored."""
        self._timeline.append(TimelineEntry(kind="note", name=f"{self.step} gave up", detail=str(reason)))
        obstacle = obstacle_of(reason)
        if self._deferred:
            if obstacle is not None:
                self.defer(facts.Hindered(state=self.call.state, obstacle=obstacle))
            self.settle(orders=False)
            return
        if obstacle is None:
            self._writer.store.append_timeline(self.timeline(), call=self.call)
        self._release(reason)

    def _release(self, reason: object) -> None:
        """End the claim without a result. The call keeps what has hindered the step, if that is not our own fault."""
        obstacle = obstacle_of(reason)
        if obstacle is None:
            self._writer.store.release(self.call.call_id, self._owner)
            return
        hindered = facts.Hindered(state=self.call.state, obstacle=obstacle)
        self._writer.record(self.call, hindered, timeline=self.timeline(), owner=self._owner, orders=False)

    def _roll_back(self, exc: BaseException | None) -> None:
        """End a transaction that is open still. Raise the driver's error that broke it off, in the store's words."""
        if self._work is None:
            return
        try:
            self._work.roll_back(exc)
        except errors.PipelineError:
            if exc is not None and not isinstance(exc, errors.PipelineError):
                raise

    def _store(self, happened: Sequence[facts.Fact], then: Collection[Step]) -> Recorded:
        timeline = self.timeline()
        try:
            if self._work is not None:
                return self._work.record(*happened, timeline=timeline, owner=self._owner, then=then, nonce=self._nonce)
            if self._is_new:
                return self._writer.record_new(
                    self.call, *happened, timeline=timeline, owner=self._owner, then=then, nonce=self._nonce
                )
            call, all_facts = self._stored or self.call, (*self._deferred, *happened)
            return self._writer.record(
                call, *all_facts, timeline=timeline, owner=self._owner, then=then, orders=self._orders,
                nonce=self._nonce,
            )  # fmt: skip
        except (VersionConflict, errors.PipelineError):
            self._timeline = timeline
            raise

    def _following(self) -> Collection[Step]:
        if self._then is None:
            self._then = self._next_steps(self.call)
        return self._then


def following(writer: CallWriter, recorded: Recorded, started: float, *, named: Collection[str] = ()) -> Claim | None:
    """Return the claim that was taken with a write, or None."""
    claim = recorded.claim
    if claim is None:
        return None
    return Claim(writer, recorded.call, claim.step, owner=claim.owner, started=started, named=named)


class StepWork(ABC):
    """What carries out one step of a call."""

    @abstractmethod
    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        """Do the step's work on a claimed call; return what came of it, or nothing after `claim.give_up`."""

    def is_quick(self, call: Call) -> bool:
        """True if the step asks nothing but Postgres for this call: a new call may be written with its result."""
        return False

    def recorded(self, call: Call, named: Collection[str] = ()) -> None:  # noqa: B027 - optional
        """Do what has to follow once the facts are stored. Most steps have nothing to do here.

        Args:
            named: What the claim has in `named`.
        """


def no_answer(failure: errors.AsteriskUnreachable) -> str:
    """Return the obstacle that a call meets where its Asterisk gives no usable answer."""
    return f"{faults.NO_ANSWER}: {failure}"


def obstacle_of(reason: object) -> str | None:
    """Return what has hindered a step, by the error that ended it; None where that may be our own fault."""
    match reason:
        case errors.AsteriskUnreachable():
            return no_answer(reason)
        case errors.PlatformUnserved() | errors.PlatformRedisAway() | errors.QuotaServiceUnreachable():
            return f"{faults.NOT_SERVED}: {reason}"
    return None


def _no_next_steps(_call: Call) -> Collection[Step]:
    return ()
