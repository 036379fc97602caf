"""Set-ups go first: the teardowns of a worker begin one after the other, and not while it sets a call up.

The threads of a process take turns at one interpreter. A caller who waits for the agent hears each turn that another
thread takes; nobody hears a teardown that begins some milliseconds later. Many teardowns do not wait: where all calls
of a tenant end at once, one thread may do them all, and a wait before each would add up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import dramatiq

#: The longest that a teardown waits for its turn.
_MOST_SECONDS = 0.03
#: One that begins so soon after another one has ended is one of many.
_MANY_WITHIN_SECONDS = 0.01


class SetUpsFirst:
    """Tells the threads of a worker that tear down when to begin; those that set calls up never wait.

    One of many teardowns begins at once: while another one waits, or has just ended.

    Args:
        most_seconds: The longest wait. Set-ups and teardowns may take seconds, waiting for an Asterisk.
        monotonic: Seconds of a clock that is never set.
    """

    def __init__(self, most_seconds: float = _MOST_SECONDS, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._most_seconds = most_seconds
        self._monotonic = monotonic
        self._turn = threading.Condition()
        # Threads, by their ids: the end of a message may be told twice.
        self._setting_up: set[int] = set()
        self._tearing_down: set[int] = set()
        self._is_waited_for = False
        self._torn_down_at = float("-inf")

    def of_set_ups(self) -> dramatiq.Middleware:
        """Return the middleware of the pool that sets calls up."""
        return _Turns(self._set_up_begins, self._ends)

    def of_teardowns(self) -> dramatiq.Middleware:
        """Return the middleware of the pool that tears calls down."""
        return _Turns(self._teardown_begins, self._ends)

    def _set_up_begins(self) -> None:
        with self._turn:
            self._setting_up.add(threading.get_ident())

    def _teardown_begins(self) -> None:
        with self._turn:
            if not (self._is_free() or self._are_many()):
                self._is_waited_for = True
                self._turn.wait_for(self._is_free, self._most_seconds)
                self._is_waited_for = False
            self._tearing_down.add(threading.get_ident())

    def _ends(self) -> None:
        thread = threading.get_ident()
        with self._turn:
            self._setting_up.discard(thread)
            if thread in self._tearing_down:
                self._tearing_down.remove(thread)
                self._torn_down_at = self._monotonic()
            if self._is_free():
                self._turn.notify()

    def _is_free(self) -> bool:
        return not (self._setting_up or self._tearing_down)

    def _are_many(self) -> bool:
        return self._is_waited_for or self._monotonic() - self._torn_down_at < _MANY_WITHIN_SECONDS


class _Turns(dramatiq.Middleware):
    """Tells when a thread begins a message, and when it has ended it."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        """Wait for this thread's turn."""
        self._begin()

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Let the next thread begin."""
        self._end()

    after_skip_message = after_process_message
