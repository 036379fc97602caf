"""Heartbeats from a thread of its own, for as long as the event loop turns.

A listener whose event loop is busy for a second is not lost: the next one would get the same sockets, and be as busy.
One whose event loop has stopped is, however alive its threads are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shared import errors


class HeartbeatThread:
    """Beats beside `Heartbeats`, which brings reports and fetches assignments.

    Args:
        send: Sends one heartbeat, with the name of the socket that holds the event loop up; empty for none. Raises
            QueueUnavailable, which `Heartbeats` logs.
        reading: Returns the name of the socket that is being read.
        silent_seconds: No heartbeat is sent once the event loop has not turned for this long.
    """

    def __init__(
        self,
        send: Callable[[str], None],
        reading: Callable[[], str],
        *,
        interval_seconds: float,
        silent_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._reading = reading
        self._interval_seconds = interval_seconds
        self._silent_seconds = silent_seconds
        self._monotonic = monotonic
        self._turned_at = monotonic()
        self._stopped = threading.Event()

    def note_turn(self) -> None:
        """Note that the event loop turns; it does so at every interval."""
        self._turned_at = self._monotonic()

    def start(self) -> None:
        """Beat until stopped."""
        threading.Thread(target=self._run, name="heartbeats", daemon=True).start()

    def stop(self) -> None:
        """Send no further heartbeat, except for one in progress."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            self.beat()

    def beat(self) -> None:
        """Send one heartbeat, if the event loop turns."""
        stalled_seconds = self._monotonic() - self._turned_at
        if stalled_seconds > self._silent_seconds:
            return
        # Half of the time: there is another heartbeat before the last one.
        suspect = self._reading() if stalled_seconds > self._silent_seconds / 2 else ""
        try:
            self._send(suspect)
        except errors.QueueUnavailable:
            return
