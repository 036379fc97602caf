"""The sweep: calls that are overdue and in nobody's hands are driven on, whatever was lost."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol
from uuid import UUID

import structlog

from shared import errors
from shared.call import facts
from shared.call.calls import Call
from shared.storage.call_writer import CallWriter

log = structlog.stdlib.get_logger(__name__)


class Runs(Protocol):
    """The platform's runs. `dograh.Runs` is the adapter."""

    def completed(self, run_ids: Collection[int]) -> set[int]:
        """Which of these runs are completed."""


class Connected(Protocol):
    """Where calls in conversation are found. `store.PostgresStore` is the adapter."""

    def connected_runs(self) -> dict[int, UUID]:
        """The run of each connected call, and the call."""

    def load(self, call_id: UUID) -> Call | None:
        """The call as it is."""


class Overdue(Protocol):
    """Where overdue calls are found. `store.PostgresStore` is the adapter."""

    def overdue(self, limit: int) -> list[Call]:
        """Calls past their deadline and in nobody's hands, the longest overdue first."""


def sweep(writer: CallWriter, store: Overdue, *, batch: int) -> int:
    """Drives on at most `batch` calls, the longest overdue first; returns how many there were."""
    overdue = store.overdue(batch)
    for call in overdue:
        try:
            # One that was taken up meanwhile is overdue no more, which the core cannot see: the next sweep judges it.
            writer.record(call, facts.DeadlinePassed(), retry_on_conflict=False)
        except errors.DatabaseUnavailable:
            raise
        except errors.PipelineError as exc:
            log.warning("a call could not be driven on", call=str(call.call_id), reason=str(exc))
    if overdue:
        log.info("overdue calls driven on", calls=len(overdue))
    return len(overdue)


def end_completed(writer: CallWriter, store: Connected, runs: Runs) -> None:
    """Ends connected calls whose runs the platform has completed: there is nothing left to talk about."""
    connected = store.connected_runs()
    for run_id in runs.completed(connected) if connected else ():
        call = store.load(connected[run_id])
        if call is not None:
            log.info("the run of a connected call is completed", call=str(call.call_id), run=run_id)
            writer.record(call, facts.EndRequested(reason="its run was completed"))
