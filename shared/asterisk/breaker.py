"""The circuit breaker of one Asterisk: one that gives no answer is left alone for a while, then asked by one step.

    closed → open ⇄ half-open → closed

Pure: `admit` before a request, `answered` or `unanswered` after it; each gives the breaker as it is from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

#: Requests in a row without an answer that open it.
FAILURES = 5
FIRST_PAUSE_SECONDS = 1.0
#: Short of the time that a call waits for its media leg: a caller who comes during an outage may outlast it.
LONGEST_PAUSE_SECONDS = 5.0
#: A probe that has not reported by then is given up, and another may begin: longer than any request takes.
PROBE_SECONDS = 60.0

#: What is noted of a connection when one of a worker's breakers opens, and when it closes again.
OPENED = "BreakerOpened"
CLOSED = "BreakerClosed"


class State(StrEnum):
    """What becomes of a request."""

    #: It is sent.
    CLOSED = "closed"
    #: It fails at once, as if the Asterisk could not be reached.
    OPEN = "open"
    #: One step's are sent, all others fail at once.
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """What is known of one Asterisk. Times are seconds of one process's own clock."""

    state: State = State.CLOSED
    #: Without an answer, in a row.
    failures: int = 0
    #: Open: a probe may begin then. Half-open: another one may.
    retry_at: float = 0.0
    pause_seconds: float = FIRST_PAUSE_SECONDS
    #: The step whose requests are sent while it is half-open.
    prober: object = None
    #: What the last request met.
    reason: str = ""


def admit(breaker: Breaker, who: object, now: float) -> Breaker | None:
    """The breaker with a request of the step `who` sent; None when it must not be."""
    if breaker.state is State.CLOSED or (breaker.state is State.HALF_OPEN and breaker.prober is who):
        return breaker
    if now < breaker.retry_at:
        return None
    return replace(breaker, state=State.HALF_OPEN, prober=who, retry_at=now + PROBE_SECONDS)


def answered(_breaker: Breaker) -> Breaker:
    """There was an answer, whatever it was, and whenever it was asked for: it lives."""
    return Breaker()


def unanswered(breaker: Breaker, who: object, reason: str, now: float) -> Breaker:
    """A request was refused, timed out, or was answered with a 5xx."""
    match breaker.state:
        case State.CLOSED if breaker.failures + 1 < FAILURES:
            return replace(breaker, failures=breaker.failures + 1, reason=reason)
        case State.CLOSED:
            return _open(breaker, FIRST_PAUSE_SECONDS, reason, now)
        case State.HALF_OPEN if breaker.prober is who:
            return _open(breaker, min(2 * breaker.pause_seconds, LONGEST_PAUSE_SECONDS), reason, now)
    # Sent before it opened: says nothing new.
    return breaker


def _open(breaker: Breaker, pause_seconds: float, reason: str, now: float) -> Breaker:
    return replace(
        breaker,
        state=State.OPEN,
        failures=breaker.failures + 1,
        retry_at=now + pause_seconds,
        pause_seconds=pause_seconds,
        prober=None,
        reason=reason,
    )
