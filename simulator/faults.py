"""Faults and gates: what happens to matching requests before or after they take effect."""

import asyncio
import fnmatch
import random
from dataclasses import dataclass, field
from typing import Literal

from simulator import errors, orders

When = Literal["before", "after"]


@dataclass(eq=False)
class Fault:
    """A fault in force, and how often it has struck."""

    order: orders.Fault
    hits: int = 0


@dataclass(eq=False)
class Gate:
    """A closed gate, and how many requests have come to it."""

    order: orders.Gate
    arrived: int = 0
    waiting: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def arrive(self) -> None:
        """Waits at the gate until it is opened."""
        self.arrived += 1
        self.waiting += 1
        try:
            async with self.changed:
                self.changed.notify_all()
            await self.opened.wait()
        finally:
            self.waiting -= 1

    async def wait_arrived(self, count: int, timeout_seconds: float) -> bool:
        """Waits until this many requests have come; False when the time is up."""
        try:
            async with asyncio.timeout(timeout_seconds), self.changed:
                await self.changed.wait_for(lambda: self.arrived >= count)
        except TimeoutError:
            return False
        return True


class Faults:
    """All faults and gates in force."""

    def __init__(self) -> None:
        self._numbers = 0
        self._random = random.Random()  # noqa: S311 - chance in a test, no secret
        self.faults: dict[str, Fault] = {}
        self.gates: dict[str, Gate] = {}

    def seed(self, seed: int | None) -> None:
        """Makes the chance of faults repeatable."""
        self._random.seed(seed)

    def add_fault(self, order: orders.Fault) -> str:
        """Puts a fault into force."""
        self._numbers += 1
        self.faults[str(self._numbers)] = Fault(order)
        return str(self._numbers)

    def add_gate(self, order: orders.Gate) -> str:
        """Closes a gate."""
        self._numbers += 1
        self.gates[str(self._numbers)] = Gate(order)
        return str(self._numbers)

    def release(self, gate_id: str) -> None:
        """Opens a gate and forgets it; unknown ids are fine."""
        gate = self.gates.pop(gate_id, None)
        if gate is not None:
            gate.opened.set()

    def clear(self) -> None:
        """Ends all faults and opens all gates."""
        self.faults.clear()
        for gate_id in list(self.gates):
            self.release(gate_id)

    async def strike(self, when: When, method: str, path: str) -> errors.Refusal | None:
        """Lets a request suffer what is meant for it.

        Returns:
            What to answer with in Asterisk's place, or None.

        Raises:
            errors.Cut: the connection is to be cut.
        """
        for gate in list(self.gates.values()):
            if _matches(gate.order, when, method, path):
                await gate.arrive()
        refusal = None
        for fault in list(self.faults.values()):
            order = fault.order
            is_spent = order.times is not None and fault.hits >= order.times
            if is_spent or not _matches(order, when, method, path) or self._random.random() >= order.probability:
                continue
            fault.hits += 1
            await asyncio.sleep(order.delay_seconds)
            if order.abort:
                raise errors.Cut
            if order.status is not None:
                refusal = errors.Refusal(order.status, order.message)
        return refusal


def _matches(order: orders.Match, when: When, method: str, path: str) -> bool:
    return order.when == when and order.method in ("*", method) and fnmatch.fnmatchcase(path, order.path)
