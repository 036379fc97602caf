"""A claim ends with its owner's life: the claims of workers that have died are broken, and their calls go on at once.

Without this they would go on as well, when the claim has run out. A worker that was only frozen, or cut off from Redis,
wakes up without its claims; what it still does is harmless, as is what comes late from any step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import structlog

from shared import call_context, errors, spans
from shared.call import facts
from shared.storage.call_store import ClaimedCall
from shared.storage.call_writer import CallWriter
from shared.storage.leases import Lease
from shared.storage.timeline import TimelineEntry

log = structlog.stdlib.get_logger(__name__)


class ClaimedCalls(Protocol):
    """Finds claims. `postgres_calls.PostgresCalls` is the adapter."""

    def claimed_by_others(self, workers: Collection[str], limit: int) -> list[ClaimedCall]:
        """Return calls that others than these workers have claimed."""


class Leases(Protocol):
    """Finds and ends leases. `leases.Leases` is the adapter."""

    def of_others(self, workers: Collection[str], *, besides: str) -> list[Lease]:
        """Return the leases that stand and belong to others than these workers, besides the one of this name."""

    def release(self, name: str, holder: str) -> None:
        """End a holder's lease."""


class DeadWorkers:
    """Ends what workers have left behind.

    Args:
        live: Returns the workers that live; None while that is not known.
        besides: The lease that no worker holds.
        batch: Most claims that are broken at once.
    """

    def __init__(
        self,
        writer: CallWriter,
        calls: ClaimedCalls,
        leases: Leases,
        live: Callable[[], Collection[str] | None],
        *,
        besides: str,
        batch: int,
    ) -> None:
        self._writer = writer
        self._calls = calls
        self._leases = leases
        self._live = live
        self._besides = besides
        self._batch = batch

    def clean_up(self) -> None:
        """Break the claims and end the leases of workers that do not live. Raises a TransientError."""
        live = self._live()
        if live is None:
            return
        claimed = self._calls.claimed_by_others(live, self._batch)
        leases = self._leases.of_others(live, besides=self._besides)
        if not claimed and not leases:
            return
        # A worker that has started since the first look is none of the dead.
        live = self._live()
        if live is None:
            return
        for lease in leases:
            if lease.worker not in live:
                self._leases.release(lease.name, lease.holder)
        self._break([each for each in claimed if each.worker not in live])

    def _break(self, claimed: Collection[ClaimedCall]) -> None:
        broken: list[ClaimedCall] = []
        for each in claimed:
            with spans.task("break claim of dead worker"), call_context.of_call(each.call):
                broken += [each] if self._is_broken(each) else []
        if broken:
            log.warning(
                "claims of dead workers broken", calls=len(broken), workers=sorted({each.worker for each in broken})
            )

    def _is_broken(self, claimed: ClaimedCall) -> bool:
        """Break the claim of a dead worker; return False if it does not stand any more, or could not be broken."""
        try:
            # If the call was written since, by that worker or any other, the claim may be another one by now.
            recorded = self._writer.record(
                claimed.call,
                facts.WorkerDied(),
                facts.DeadlinePassed(),
                timeline=[TimelineEntry(kind="note", name="claim broken", detail=f"{claimed.worker} has died")],
                owner=claimed.owner,
                retry_on_conflict=False,
            )
        except (errors.DatabaseUnavailable, errors.LeadershipLost):
            raise
        except errors.PipelineError as exc:
            log.warning("claim not broken", reason=str(exc))
            return False
        return recorded.applied
