"""The way of a call through its steps: one loop that runs a step, records its facts, and goes on to the next step.

A step's facts are recorded together with the claim for the step they lead to, where this thread's pool serves that
step: a message and its claim would cost the caller some 3 ms. For any other step the core's command becomes a message.

Two exceptions: no attempt begins at once at an Asterisk whose circuit breaker is not closed (the media queue asks it
for the caller first), and a pool that serves no step of a call, such as the resync pool, runs only the step it has
claimed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import structlog

from shared import call_context, errors, spans
from shared.call import facts
from shared.call.calls import Call
from shared.call.states import State
from shared.call.steps import STEPS, Step
from shared.process import logs, metrics
from shared.storage.call_writer import CallExists, CallWriter, Recorded, VersionConflict
from workers import claims
from workers.asterisks import Asterisks
from workers.awaited_legs import Awaited
from workers.claims import Arrival, Claim, StepWork

log = structlog.stdlib.get_logger(__name__)

#: A join goes on in the claim of its media step if that began no longer ago: the claim is long enough for both then.
_MEDIA_SECONDS = 1.0
#: Step → the span of it in a trace.
_SPANS = {step: f"step {step}" for step in Step}
#: After this, what follows a step is tried again.
_FOLLOW_UP_PAUSE = timedelta(seconds=2)


class Flow:
    """Runs the steps of calls.

    Args:
        steps: What carries out each step.
        serves: The steps whose queues this pool serves: to these it goes on by itself.
        awaited: The media legs that this process waits for.
    """

    def __init__(
        self,
        writer: CallWriter,
        asterisks: Asterisks,
        steps: Mapping[Step, StepWork],
        *,
        serves: Collection[Step],
        awaited: Awaited[Claim],
    ) -> None:
        self._writer = writer
        self._asterisks = asterisks
        self._steps = steps
        self._serves = frozenset(serves)
        self._awaited = awaited

    def run(self, claim: Claim | None) -> None:
        """Carry out the step of a claim, and every step after it that this pool serves."""
        while claim is not None:
            claim = self._carried_out(claim)

    def report(
        self, call: Call, *happened: facts.Fact, ordered: Step | None = None, retry_on_conflict: bool = True
    ) -> Recorded:
        """Record what happened to a call, and carry out the step it leads to, if this pool serves it.

        Args:
            ordered: The step that the message at hand orders: it is carried out in any case.
            retry_on_conflict: If False, drop the facts when another process has written the call since it was read.
        """
        with call_context.of_call(call):
            waiting = self._awaited.take(call.call_id, call.attempt, call.nonce, connection_id=call.connection_id)
            if waiting is not None:
                with self._kept_on_failure(waiting):
                    waiting.settle()
                call = waiting.call
            started = self._writer.clock.monotonic()
            then = self._next_steps(call) if ordered is None else {ordered}
            recorded = self._writer.record(call, *happened, then=then, retry_on_conflict=retry_on_conflict)
            self.run(claims.following(self._writer, recorded, started))
        return recorded

    def media_ready(self, call_id: UUID, attempt: int, nonce: str = "", *, connection_id: int) -> bool:
        """Join the legs of a call whose media leg this process waits for; return False if it waits for no such leg."""
        claim = self._awaited.take(call_id, attempt, nonce, connection_id=connection_id)
        if claim is None:
            return False
        try:
            with self._kept_on_failure(claim):
                self._join_awaited(claim, facts.MediaReady(attempt=attempt, nonce=nonce))
        except errors.TransientError:
            raise
        except Exception:
            with contextlib.suppress(errors.PipelineError):
                claim.settle(orders=False)
            raise
        return True

    @contextlib.contextmanager
    def _kept_on_failure(self, claim: Claim) -> Iterator[None]:
        """Keep a claim again if its facts cannot be stored for now, for instance those of legs that are joined already.

        The message's retry stores them, or the end of the wait does.
        """
        try:
            yield
        except errors.TransientError:
            if claim.has_deferred:
                self._awaited.keep_again(claim)
            raise

    def _join_awaited(self, claim: Claim, ready: facts.MediaReady) -> None:
        join_seconds = self._writer.limits.claim(Step.BRIDGE).total_seconds() - _MEDIA_SECONDS
        if claim.is_continued:
            # It was here before, and could not be stored.
            claim.settle()
        elif Step.BRIDGE in self._serves and claim.has_time(join_seconds):
            claim.continue_with(Step.BRIDGE, ready)
            self.run(claim)
        else:
            claim.defer(ready)
            claim.settle()

    def admit(self, call: Call, arrival: Arrival) -> bool:
        """Write a new call and run its admission; return False when there is a call of its identity already.

        A quick admission comes first: the call is first written as the admission leaves it, in one transaction with its
        run and its attempt. If that fails, the call is written as `received` before its admission is tried again: from
        then on the sweep brings it to an end, whatever happens here.

        Raises:
            RowChanged: Where the call goes was assumed, and the quick admission has failed: to be looked up first.
        """
        with call_context.of_call(call):
            return self._admitted(call, arrival)

    def _admitted(self, call: Call, arrival: Arrival) -> bool:
        began = self._writer.clock.monotonic()
        self._writer.observer.arrived(call, arrival.waited_seconds)
        if self._steps[Step.ADMISSION].is_quick(call):
            try:
                following = self._carried_out(self._admission(call, arrival, is_new=True))
            except CallExists:
                # Most likely its identity: the insert below can conflict on nothing else, and decides it.
                pass
            except Exception as exc:  # noqa: BLE001 - whatever is wrong, the call has to be where the sweep finds it
                reason = logs.redact(f"{type(exc).__name__}: {exc}")
                if arrival.check is None:
                    log.warning("quick admission failed, storing the call as received", reason=reason)
                else:
                    log.info("not admitted by what was assumed, looked up", reason=reason)
            else:
                self.run(following)
                return True
        if arrival.check is not None:
            raise errors.RowChanged("not admitted by what was assumed")
        waited_seconds = arrival.waited_seconds + self._writer.clock.monotonic() - began
        # The route is read again: the run of the first try may be there, under the id that was reserved for it.
        claim = self._admission(call, replace(arrival, route=None, waited_seconds=waited_seconds))
        if not self._writer.store.insert(call, [], claim.request()):
            return False
        self.run(claim)
        return True

    def _admission(self, call: Call, arrival: Arrival, *, is_new: bool = False) -> Claim:
        started, owner = self._writer.clock.monotonic(), self._writer.new_owner()
        return Claim(self._writer, call, Step.ADMISSION, owner=owner, started=started, arrival=arrival, is_new=is_new)

    def resume(self, call_id: UUID, step: Step, *, attempt: int | None = None) -> None:
        """Carry out a step as ordered by a message. Do nothing when there is nothing to do, or another worker does it.

        Args:
            attempt: The attempt that the order is for; None for a step without attempts.
        """
        started, owner = self._writer.clock.monotonic(), self._writer.new_owner()
        call = self._writer.store.claim(call_id, self._writer.claim_request(step, owner))
        if call is None:
            self._resume_follow_up(call_id, step, attempt)
            return
        claim = Claim(self._writer, call, step, owner=owner, started=started)
        if attempt is not None and call.attempt != attempt:
            claim.give_up(f"ordered for attempt {attempt}, the call is at attempt {call.attempt}")
            return
        self.run(claim)

    def _resume_follow_up(self, call_id: UUID, step: Step, attempt: int | None) -> None:
        """Do what follows a join, if it is done: this may have failed, or the order is a duplicate."""
        call = self._writer.store.load(call_id) if step is Step.BRIDGE else None
        if call is not None and call.state is State.CONNECTED and call.attempt == attempt:
            self._follow_up(step, call)

    def _carried_out(self, claim: Claim) -> Claim | None:
        step, began, result = claim.step, self._writer.clock.monotonic(), "failed"
        try:
            following = self._carry_out(claim)
            result = "done"
        except errors.RowChanged:
            # It is done once more, by what is so now.
            result = "done"
            raise
        finally:
            metrics.STEP.observe(self._writer.clock.monotonic() - began, step, result)
        return following

    def _carry_out(self, claim: Claim) -> Claim | None:
        claim.may_lead_to(self._next_steps)
        with call_context.of_call(claim.call), spans.part(_SPANS[claim.step]), claim:
            try:
                return self._recorded(claim)
            except VersionConflict:
                return self._carry_out_locked(claim)

    def _carry_out_locked(self, claim: Claim) -> Claim | None:
        """Carry out a step once more after a version conflict, with the call's row locked as its result is stored."""
        try:
            claim.retry_locked()
        except VersionConflict:
            # Another process has moved the call on: there is nothing left to decide.
            _drop(claim)
            return None
        try:
            return self._recorded(claim)
        except VersionConflict:
            # It found nothing to change: as for a teardown whose call has another leg by now.
            claim.order_again()
            _drop(claim)
            return None

    def _recorded(self, claim: Claim) -> Claim | None:
        step, awaits = self._steps[claim.step], claim.step is Step.MEDIA and Step.BRIDGE in self._serves
        if awaits:
            self._awaited.expect(claim)
        try:
            happened = step.work(claim)
            if not happened:
                return None
            if awaits and isinstance(happened[-1], facts.LegsCreated):
                claim.defer(*happened)
                if self._awaited.keep(claim):
                    return None
                happened = ()
        finally:
            if awaits:
                self._awaited.forget(claim)
        following = claim.record(*happened)
        self._follow_up(claim.step, claim.call, claim.named)
        return following

    def _follow_up(self, step: Step, call: Call, named: Collection[str] = ()) -> None:
        """Do what follows a step whose facts are stored; if that fails, its command orders just this once more."""
        try:
            self._steps[step].recorded(call, named)
        except errors.TransientError as exc:
            log.warning("what follows a step failed, ordered again", reason=str(exc))
            again = replace(STEPS[step].command.of(call), pause=_FOLLOW_UP_PAUSE)
            self._writer.enqueue([again], call)

    def _next_steps(self, call: Call) -> Collection[Step]:
        if Step.MEDIA in self._serves and call.attempt == 0 and not self._may_begin_attempt(call):
            return self._serves - {Step.MEDIA}
        return self._serves

    def _may_begin_attempt(self, call: Call) -> bool:
        budget = claims.TimedBudget(self._writer, self._writer.limits.request_seconds)
        try:
            return not self._asterisks.of(call, budget).must_probe
        except errors.PipelineError:
            return False


def _drop(claim: Claim) -> None:
    log.info("step dropped after a version conflict", step=str(claim.step))
    claim.drop()
