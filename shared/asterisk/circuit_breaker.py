"""Circuit breaker of one Asterisk, shared by the threads of a process.

    closed → open ⇄ half-open → closed

Opens after repeated failures; half-open admits one probe. `Circuit` and the functions beside it are the pure state
machine; `CircuitBreaker` keeps its state under a lock and reports its changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from shared import errors

#: Consecutive requests without an answer that open it.
FAILURES = 5
FIRST_PAUSE_SECONDS = 1.0
#: Less than a call waits for its media leg: a caller who comes during an outage may outlast it.
LONGEST_PAUSE_SECONDS = 5.0
#: A probe without a result by then counts as lost, and another may begin: longer than any request takes.
PROBE_SECONDS = 60.0
#: While it stays open and requests are made, `on_change` is called again at this interval: a reader of the timeline
#: takes an opening that was not repeated to be over.
REPEAT_SECONDS = 30.0

#: Names of the timeline's entries for a connection when a worker's breaker opens, and when it closes again.
OPENED = "BreakerOpened"
CLOSED = "BreakerClosed"


class State(StrEnum):
    """How requests are treated."""

    #: They are sent.
    CLOSED = "closed"
    #: They fail at once, as if the Asterisk could not be reached.
    OPEN = "open"
    #: The probing step's requests are sent, all others fail at once.
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """The state of one breaker. Times are seconds of the process's monotonic clock."""

    state: State = State.CLOSED
    #: Consecutive requests without an answer.
    failures: int = 0
    #: Open: from then on a probe may begin. Half-open: from then on another one may.
    retry_at: float = 0.0
    pause_seconds: float = FIRST_PAUSE_SECONDS
    #: The step whose requests are sent while it is half-open.
    prober: object = None
    #: Of the last failure.
    reason: str = ""


def allow(circuit: Circuit, step: object, now: float) -> Circuit | None:
    """Return the circuit after a request of `step` was let through; None if it must not be sent."""
    if circuit.state is State.CLOSED or (circuit.state is State.HALF_OPEN and circuit.prober is step):
        return circuit
    if now < circuit.retry_at:
        return None
    return replace(circuit, state=State.HALF_OPEN, prober=step, retry_at=now + PROBE_SECONDS)


def answered(_circuit: Circuit) -> Circuit:
    """Return the circuit after an answer: any answer, whenever its request was sent, shows that it is alive."""
    return Circuit()


def unanswered(circuit: Circuit, step: object, reason: str, now: float) -> Circuit:
    """Return the circuit after a request of `step` was refused, timed out, or got a 5xx."""
    match circuit.state:
        case State.CLOSED if circuit.failures + 1 < FAILURES:
            return replace(circuit, failures=circuit.failures + 1, reason=reason)
        case State.CLOSED:
            return _open(circuit, FIRST_PAUSE_SECONDS, reason, now)
        case State.HALF_OPEN if circuit.prober is step:
            return _open(circuit, min(2 * circuit.pause_seconds, LONGEST_PAUSE_SECONDS), reason, now)
    # Its request was sent before the circuit opened, so it adds nothing.
    return circuit


def _open(circuit: Circuit, pause_seconds: float, reason: str, now: float) -> Circuit:
    return replace(
        circuit,
        state=State.OPEN,
        failures=circuit.failures + 1,
        retry_at=now + pause_seconds,
        pause_seconds=pause_seconds,
        prober=None,
        reason=reason,
    )


#: Called with True and the reason at an opening and, while that lasts, every REPEAT_SECONDS; with False at a closing.
OnChange = Callable[[bool, str], None]


class CircuitBreaker:
    """The breaker of one Asterisk, for all threads of a process.

    Args:
        on_change: Called outside the lock, in the thread whose request caused the change.
        clock: Seconds; a parameter for tests.
    """

    def __init__(self, on_change: OnChange | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.Lock()
        self._circuit = Circuit()
        self._reported_at = float("-inf")

    @property
    def state(self) -> State:
        """Its present state."""
        return self._circuit.state

    @property
    def is_open_lately(self) -> bool:
        """True if it is not closed, and a request could have closed it until lately."""
        circuit = self._circuit
        return circuit.state is not State.CLOSED and self._clock() - circuit.retry_at < REPEAT_SECONDS

    def check(self, step: object) -> None:
        """Raise AsteriskUnreachable if a request of `step` would not be let through now. Begins no probe."""
        _allowed(self._circuit, step, self._clock())

    def allow(self, step: object) -> None:
        """Let a request of `step` through. Raises AsteriskUnreachable if it must not be sent."""
        with self._lock:
            self._circuit = _allowed(self._circuit, step, self._clock())

    def answered(self) -> None:
        """Record an answer."""
        # The usual case, in which the lock would be a waste.
        if self._circuit == Circuit():
            return
        with self._lock:
            before, self._circuit = self._circuit, answered(self._circuit)
            closes = before.state is not State.CLOSED
        if closes:
            self._report(False, "it answers again")

    def unanswered(self, step: object, reason: str) -> None:
        """Record that a request of `step` got no answer."""
        now = self._clock()
        with self._lock:
            before, self._circuit = self._circuit, unanswered(self._circuit, step, reason, now)
            opens = self._circuit.state is State.OPEN and before.state is not State.OPEN
            is_due = opens and (before.state is State.CLOSED or now - self._reported_at >= REPEAT_SECONDS)
            if is_due:
                self._reported_at = now
        if is_due:
            self._report(True, reason)

    def _report(self, opened: bool, reason: str) -> None:
        if self._on_change is not None:
            self._on_change(opened, reason)


def _allowed(before: Circuit, step: object, now: float) -> Circuit:
    after = allow(before, step, now)
    if after is None:
        reason = f"circuit breaker open after {before.failures} consecutive failures; last: {before.reason}"
        raise errors.AsteriskUnreachable(reason, may_have_acted=False)
    return after


class AlwaysClosed(CircuitBreaker):
    """Never opens: for a caller that makes few requests and wants the result of each."""

    def unanswered(self, step: object, reason: str) -> None:
        """Change nothing."""
