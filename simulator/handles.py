"""Handles of the control client for a breakpoint or a fault in force: to observe it and to remove it."""

from typing import Any, Protocol
from urllib.parse import urlencode

_ANSWER_SECONDS = 10.0


class Sender(Protocol):
    """The part of the control client that a handle needs."""

    def send(self, method: str, path: str, body: object = None, *, timeout: float = _ANSWER_SECONDS) -> Any:
        """Sends a control request and returns the answer."""


class Breakpoint:
    """A breakpoint in force: it stops matching requests until `release()`, or until the `with` block ends."""

    def __init__(self, control: Sender, breakpoint_id: str) -> None:
        self._control = control
        self._path = f"/breakpoints/{breakpoint_id}"

    def wait_arrived(self, timeout: float = 5.0, *, count: int = 1) -> None:
        """Waits until `count` requests in all have reached the breakpoint.

        Raises:
            TimeoutError: fewer did in time.
        """
        query = urlencode({"arrived": count, "timeout": timeout})
        seen = self._control.send("GET", f"{self._path}?{query}", timeout=timeout + _ANSWER_SECONDS)
        if seen["arrived"] < count:
            raise TimeoutError(f"{seen['arrived']} of {count} requests reached the breakpoint in {timeout} s")

    def waiting(self) -> int:
        """Returns the number of requests that it stops now."""
        return int(self._control.send("GET", self._path)["waiting"])

    def release(self) -> None:
        """Removes the breakpoint; a second time changes nothing."""
        self._control.send("DELETE", self._path)

    def __enter__(self) -> "Breakpoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Fault:
    """A fault in force, until it has struck `times` times, until `remove()`, or until the `with` block ends."""

    def __init__(self, control: Sender, fault_id: str) -> None:
        self._control = control
        self._path = f"/faults/{fault_id}"

    def hits(self) -> int:
        """Returns how often it has struck."""
        return int(self._control.send("GET", self._path)["hits"])

    def remove(self) -> None:
        """Removes the fault; a second time changes nothing."""
        self._control.send("DELETE", self._path)

    def __enter__(self) -> "Fault":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()
