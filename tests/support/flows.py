"""The real flow around small steps of a test, and what stands around it: a command queue, an Asterisk, a database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast
from uuid import UUID

from shared import errors
from shared.asterisk import rest
from shared.call import commands, facts
from shared.call.calls import Call
from shared.call.steps import Step
from shared.storage.call_writer import CallWriter
from workers.asterisks import Asterisks
from workers.awaited_legs import AwaitedLegs
from workers.claims import Claim, StepWork
from workers.flow import Flow

_T = TypeVar("_T")

#: A step of a test: the facts that come of a claimed call.
Work = Callable[[Claim], Sequence[facts.Fact]]


class CommandQueue:
    """Keeps what was enqueued; refuses while the queue is away."""

    def __init__(self) -> None:
        self.enqueued: list[commands.Command] = []
        self.is_away = False

    def enqueue(self, commands: Sequence[commands.Command], *, connection_id: int) -> None:
        if self.is_away:
            raise errors.QueueUnavailable("Redis: ConnectionError")
        self.enqueued += commands

    @property
    def names(self) -> list[str]:
        """The class names of the commands."""
        return [type(command).__name__ for command in self.enqueued]


class WorkStep(StepWork):
    """A step that is one function of the test."""

    def __init__(self, work: Work, *, quick: bool = False) -> None:
        self._work = work
        self._quick = quick
        self.stored: list[Call] = []

    def work(self, claim: Claim) -> Sequence[facts.Fact]:
        return self._work(claim)

    def is_quick(self, call: Call) -> bool:
        return self._quick

    def recorded(self, call: Call, named: Collection[str] = ()) -> None:
        self.stored.append(call)


class OneAsterisk:
    """Every call's Asterisk, as far as the flow asks for it.

    Args:
        must_probe: Whether its circuit breaker is half-open; an error is raised instead.
    """

    def __init__(self, must_probe: bool | errors.PipelineError = False) -> None:
        self._must_probe = must_probe

    def of(self, call: Call, budget: rest.RequestBudget) -> OneAsterisk:
        return self

    @property
    def must_probe(self) -> bool:
        if isinstance(self._must_probe, errors.PipelineError):
            raise self._must_probe
        return self._must_probe


class InstantDatabase:
    """A database server for `MemoryStore` that never fails and never waits, at a fixed moment."""

    def moment(self) -> datetime:
        return datetime(2026, 5, 1, 12, tzinfo=UTC)

    def statement(self, what: str, effect: Callable[[], _T], call_id: UUID | None = None) -> _T:
        return effect()

    def wait(self, latch: object, seconds: float) -> bool:
        raise AssertionError("a lock is waited for, with no other thread to release it")

    def connected(self, roll_back: Callable[[], None]) -> None:
        pass


def flow(
    writer: CallWriter,
    steps: Mapping[Step, Work],
    *,
    serves: Collection[Step] = (),
    asterisk: OneAsterisk | None = None,
    quick: bool = False,
    awaited: AwaitedLegs[Claim] | None = None,
) -> Flow:
    """Return the product's flow around these steps.

    Args:
        quick: Whether each step asks nothing but Postgres.
        awaited: The media legs it waits for; None to wait for none.
    """
    return Flow(
        writer,
        cast(Asterisks, asterisk or OneAsterisk()),
        {step: WorkStep(work, quick=quick) for step, work in steps.items()},
        serves=serves,
        awaited=awaited or AwaitedLegs(capacity=0),
    )


def claimed(writer: CallWriter, call: Call, step: Step, *, owner: str = "") -> Claim:
    """Return a claim on a call as it was read, without asking the store: another worker may have one, too."""
    return Claim(writer, call, step, owner=owner, started=writer.clock.monotonic())


def decide(writer: CallWriter, call: Call, work: Work, *, step: Step, owner: str = "", **more: Any) -> None:
    """Run one step in the flow, on a call as it was read."""
    flow(writer, {step: work}, **more).run(claimed(writer, call, step, owner=owner))
