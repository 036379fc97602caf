"""What the control client hands out for a gate or a fault in force: to watch it and to end it."""

from typing import Any, Protocol
from urllib.parse import urlencode

_ANSWER_SECONDS = 10.0


class CommandQueue(Protocol):
    """The part of the control client a handle needs."""

    def order(self, method: str, path: str, body: object = None, *, timeout: float = _ANSWER_SECONDS) -> Any:
        """Sends one order and returns what was answered."""


class Gate:
    """A closed gate: matching requests wait until `release()`, or until the `with` block ends."""

    def __init__(self, control: CommandQueue, gate_id: str) -> None:
        self._control = control
        self._path = f"/gates/{gate_id}"

    def wait_arrived(self, timeout: float = 5.0, *, count: int = 1) -> None:
        """Waits until so many requests in all have come to the gate.

        Raises:
            TimeoutError: they have not.
        """
        query = urlencode({"arrived": count, "timeout": timeout})
        seen = self._control.order("GET", f"{self._path}?{query}", timeout=timeout + _ANSWER_SECONDS)
        if seen["arrived"] < count:
            raise TimeoutError(f"{seen['arrived']} of {count} requests came to the gate in {timeout} s")

    def waiting(self) -> int:
        """How many requests wait at it now."""
        return int(self._control.order("GET", self._path)["waiting"])

    def release(self) -> None:
        """Opens it for good; again is fine."""
        self._control.order("DELETE", self._path)

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Fault:
    """A fault in force until it has struck as often as told, or until `remove()`, or the end of the `with` block."""

    def __init__(self, control: CommandQueue, fault_id: str) -> None:
        self._control = control
        self._path = f"/faults/{fault_id}"

    def hits(self) -> int:
        """How often it has struck."""
        return int(self._control.order("GET", self._path)["hits"])

    def remove(self) -> None:
        """Ends it; again is fine."""
        self._control.order("DELETE", self._path)

    def __enter__(self) -> "Fault":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()
