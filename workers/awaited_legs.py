"""The media legs that this process waits for: the StasisStart of one leads to its join with nothing stored in between.

A media step that has created its legs leaves its claim here, and its thread goes on to other work. When the media leg's
StasisStart reaches this process, the claim goes on to the join, and one write stores all of it. The wait is short: if a
leg is not ready by then, it is stored as created, and any worker handles its StasisStart.

A claim is in one place: it is taken out by whatever comes first, the StasisStart, another event of the call, the end of
the wait, or the end of the process. If the process dies, the claim lapses, and the sweep finds the attempt in doubt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import structlog

from shared import call_context, errors, spans
from shared.call.calls import Call

log = structlog.stdlib.get_logger(__name__)

#: How long a created media leg is waited for here. It is also what a StasisStart that reaches another worker costs the
#: caller. A voice agent on the same network accepts within some 10 ms; for a slower one two more commits matter little.
WAIT_SECONDS = 0.25
#: Most legs awaited; for any other, LegsCreated is stored at once.
CAPACITY = 1000

#: How long a closing process waits for the thread, which may be storing a claim.
_JOIN_SECONDS = 5.0

#: Call, attempt, nonce.
_Key = tuple[UUID, int, str]


class Settleable(Protocol):
    """A claim, as far as it matters here."""

    @property
    def call(self) -> Call:
        """The call, whose attempt names the leg."""

    def settle(self) -> None:
        """Store what is known of the legs, and end the claim. Raises a PipelineError; then the claim stands."""

    def has_time(self, seconds: float) -> bool:
        """True if the claim ends no earlier than in this time."""


_Claim = TypeVar("_Claim", bound=Settleable)


class Awaited(Protocol[_Claim]):
    """Where the flow leaves the claims of awaited legs. `AwaitedLegs` is the adapter."""

    def expect(self, claim: _Claim) -> None:
        """Note that the legs of the call's attempt are about to be created."""

    def keep(self, claim: _Claim) -> bool:
        """Keep the claim of an expected leg; return False when an event of the leg was here before, or no place is."""

    def forget(self, claim: _Claim) -> None:
        """Expect the leg no longer. A kept claim stays."""

    def take(self, call_id: UUID, attempt: int, nonce: str = "", *, connection_id: int) -> _Claim | None:
        """Return the kept claim of a leg on this connection, which is then no longer kept; or None."""

    def keep_again(self, claim: _Claim) -> None:
        """Keep a claim again whose facts could not be stored, as long as it stands."""


class AwaitedLegs(Generic[_Claim]):
    """The awaited legs of one process, for all its threads.

    Args:
        capacity: Most legs.
        wait_seconds: How long each is waited for.
        monotonic: Seconds since an arbitrary moment.
        first_kept: Called after a claim was kept where none was.
    """

    def __init__(
        self,
        *,
        capacity: int = CAPACITY,
        wait_seconds: float = WAIT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        first_kept: Callable[[], None] = lambda: None,
    ) -> None:
        self._capacity = capacity
        self._wait_seconds = wait_seconds
        self._monotonic = monotonic
        self._first_kept = first_kept
        self._lock = threading.Lock()
        self._is_closed = False
        #: Legs that are being created.
        self._expected: set[_Key] = set()
        #: The kept claims, and when the wait of each ends; the oldest first.
        self._claims: dict[_Key, tuple[_Claim, float]] = {}

    def expect(self, claim: _Claim) -> None:
        with self._lock:
            if not self._is_closed and len(self._expected) + len(self._claims) < self._capacity:
                self._expected.add(_key(claim.call))

    def keep(self, claim: _Claim) -> bool:
        key = _key(claim.call)
        with self._lock:
            if key not in self._expected:
                return False
            self._expected.remove(key)
            is_first = not self._claims
            self._claims[key] = (claim, self._monotonic() + self._wait_seconds)
        if is_first:
            self._first_kept()
        return True

    def forget(self, claim: _Claim) -> None:
        with self._lock:
            self._expected.discard(_key(claim.call))

    def take(self, call_id: UUID, attempt: int, nonce: str = "", *, connection_id: int) -> _Claim | None:
        key = (call_id, attempt, nonce)
        with self._lock:
            # What comes before the answer to the creating request is stored: the leg is no longer waited for.
            self._expected.discard(key)
            claim, _ = self._claims.get(key, (None, 0.0))
            if claim is None or claim.call.connection_id != connection_id:
                return None
            del self._claims[key]
        return claim

    def keep_again(self, claim: _Claim) -> None:
        with self._lock:
            if not self._is_closed and claim.has_time(0.0):
                self._claims[_key(claim.call)] = (claim, self._monotonic() + self._wait_seconds)
        self._first_kept()

    def expired(self) -> list[_Claim]:
        """Return the claims whose wait has ended; they are no longer kept."""
        now = self._monotonic()
        with self._lock:
            over = [(key, claim) for key, (claim, until) in self._claims.items() if until <= now]
            for key, _ in over:
                del self._claims[key]
        return [claim for _, claim in over]

    def is_empty(self) -> bool:
        """True if no claim is kept."""
        return not self._claims

    def close(self) -> list[_Claim]:
        """Keep no more claims; return those that were kept."""
        with self._lock:
            self._is_closed = True
            self._expected.clear()
            claims = [claim for claim, _ in self._claims.values()]
            self._claims.clear()
        return claims


class Waiting(Generic[_Claim]):
    """Awaited legs, and the thread that ends each wait in time.

    Args:
        wait_seconds: How long each is waited for.
    """

    def __init__(self, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._any = threading.Event()
        self._wait_seconds = wait_seconds
        self.legs: AwaitedLegs[_Claim] = AwaitedLegs(wait_seconds=wait_seconds, first_kept=self._any.set)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="awaited legs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Keep no more claims, and store what is known of the awaited legs: any worker may go on with them.

        Takes a few seconds at most, also without Postgres.
        """
        claims = self.legs.close()
        self._closed.set()
        self._any.set()
        store(claims)
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._any.wait()
            # A claim may come between the look and the clearing: it is looked for once more after that.
            self._any.clear()
            while not self._closed.wait(self._wait_seconds / 4) and not self.legs.is_empty():
                for claim in store(self.legs.expired()):
                    self.legs.keep_again(claim)


def store(claims: Sequence[_Claim]) -> Sequence[_Claim]:
    """Store what is known of the legs of these claims, and end the claims.

    Returns:
        Those that could not be stored for now, the first one and all after it: each would cost a time-out. A claim that
        ends before is left to the sweep.
    """
    for number, claim in enumerate(claims):
        with spans.task("store awaited legs"), call_context.of_call(claim.call):
            try:
                claim.settle()
            except errors.TransientError as exc:
                log.warning("awaited legs not stored", calls=len(claims) - number, reason=str(exc))
                return claims[number:]
            except Exception:
                log.exception("awaited legs not stored, left to the sweep")
    return ()


def _key(call: Call) -> _Key:
    return call.call_id, call.attempt, call.nonce
