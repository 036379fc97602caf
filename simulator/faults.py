"""Faults and breakpoints: they act on matching requests before or after these take effect."""

import asyncio
import fnmatch
import random
from dataclasses import dataclass, field
from typing import Literal

from simulator import control_requests, errors

When = Literal["before", "after"]


@dataclass(eq=False)
class Fault:
    """A fault in force, and how often it has struck."""

    wanted: control_requests.Fault
    hits: int = 0


@dataclass(eq=False)
class Breakpoint:
    """A breakpoint in force, and the number of requests that have reached it."""

    wanted: control_requests.Breakpoint
    arrived: int = 0
    waiting: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def arrive(self) -> None:
        """Stops a request here until `release`."""
        self.arrived += 1
        self.waiting += 1
        try:
            async with self.changed:
                self.changed.notify_all()
            await self.released.wait()
        finally:
            self.waiting -= 1

    async def wait_arrived(self, count: int, timeout_seconds: float) -> bool:
        """Waits until `count` requests have arrived; returns False on timeout."""
        try:
            async with asyncio.timeout(timeout_seconds), self.changed:
                await self.changed.wait_for(lambda: self.arrived >= count)
        except TimeoutError:
            return False
        return True


class Faults:
    """All faults and breakpoints in force."""

    def __init__(self) -> None:
        self._numbers = 0
        self._random = random.Random()  # noqa: S311 - for tests, no secret
        self.faults: dict[str, Fault] = {}
        self.breakpoints: dict[str, Breakpoint] = {}

    def seed(self, seed: int | None) -> None:
        """Seeds the random numbers that `probability` is compared with."""
        self._random.seed(seed)

    def add_fault(self, wanted: control_requests.Fault) -> str:
        """Puts a fault into force."""
        self._numbers += 1
        self.faults[str(self._numbers)] = Fault(wanted)
        return str(self._numbers)

    def add_breakpoint(self, wanted: control_requests.Breakpoint) -> str:
        """Puts a breakpoint into force."""
        self._numbers += 1
        self.breakpoints[str(self._numbers)] = Breakpoint(wanted)
        return str(self._numbers)

    def release(self, breakpoint_id: str) -> None:
        """Releases the requests at a breakpoint and removes it; an unknown id changes nothing."""
        point = self.breakpoints.pop(breakpoint_id, None)
        if point is not None:
            point.released.set()

    def clear(self) -> None:
        """Removes all faults and releases all breakpoints."""
        self.faults.clear()
        for breakpoint_id in list(self.breakpoints):
            self.release(breakpoint_id)

    async def strike(self, when: When, method: str, path: str) -> errors.Refusal | None:
        """Applies the breakpoints and faults that match a request.

        Returns:
            The answer to give instead of Asterisk's, or None.

        Raises:
            errors.Cut: a fault cuts the connection.
        """
        for point in list(self.breakpoints.values()):
            if _matches(point.wanted, when, method, path):
                await point.arrive()
        refusal = None
        for fault in list(self.faults.values()):
            wanted = fault.wanted
            is_spent = wanted.times is not None and fault.hits >= wanted.times
            if is_spent or not _matches(wanted, when, method, path) or self._random.random() >= wanted.probability:
                continue
            fault.hits += 1
            await asyncio.sleep(wanted.delay_seconds)
            if wanted.abort:
                raise errors.Cut
            if wanted.status is not None:
                refusal = errors.Refusal(wanted.status, wanted.message)
        return refusal


def _matches(wanted: control_requests.Match, when: When, method: str, path: str) -> bool:
    return wanted.when == when and wanted.method in ("*", method) and fnmatch.fnmatchcase(path, wanted.path)
