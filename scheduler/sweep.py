"""The sweep: dispatches overdue calls again, whatever was lost, and ends calls whose run is completed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol
from uuid import UUID

import structlog

from shared import call_context, errors, spans
from shared.call import facts
from shared.call.calls import Call
from shared.process import metrics
from shared.storage.call_writer import CallWriter

log = structlog.stdlib.get_logger(__name__)


class Runs(Protocol):
    """The platform's runs. `dograh.Runs` is the adapter."""

    def completed(self, run_ids: Collection[int]) -> set[int]:
        """Return which of these runs are completed."""


class ConnectedCalls(Protocol):
    """Finds connected calls. `postgres_calls.PostgresCalls` is the adapter."""

    def connected_runs(self) -> dict[int, UUID]:
        """Return the run of each connected call, and the call."""

    def load(self, call_id: UUID) -> Call | None:
        """Return the call as it is now."""


class OverdueCalls(Protocol):
    """Finds overdue calls. `postgres_calls.PostgresCalls` is the adapter."""

    def overdue(self, limit: int) -> list[Call]:
        """Return calls past their deadline that no worker has claimed, the longest overdue first."""


def dispatch_overdue(writer: CallWriter, store: OverdueCalls, *, batch: int) -> int:
    """Dispatch overdue calls again, at most `batch`, the longest overdue first. Returns how many there were."""
    overdue = store.overdue(batch)
    metrics.CALLS_DISPATCHED_AGAIN.add(amount=len(overdue))
    for call in overdue:
        with spans.task("sweep overdue call"), call_context.of_call(call):
            _dispatch(writer, call)
    if overdue:
        log.info("overdue calls dispatched again", calls=len(overdue))
    return len(overdue)


def _dispatch(writer: CallWriter, call: Call) -> None:
    try:
        # If a worker has written the call meanwhile, it is no longer overdue, which the core cannot see. The fact is
        # then dropped; the next sweep judges the call as it is by then.
        writer.record(call, facts.DeadlinePassed(), retry_on_conflict=False)
    except (errors.DatabaseUnavailable, errors.LeadershipLost):
        raise
    except errors.PipelineError as exc:
        log.warning("overdue call dispatch failed", reason=str(exc))


def end_completed(writer: CallWriter, store: ConnectedCalls, runs: Runs) -> None:
    """End connected calls whose runs the platform has completed: the conversation is over."""
    connected = store.connected_runs()
    for run_id in runs.completed(connected) if connected else ():
        call = store.load(connected[run_id])
        if call is not None:
            with spans.task("end completed run"), call_context.of_call(call):
                log.info("connected call ended, its run is completed", run=run_id)
                writer.record(call, facts.EndRequested(reason="its run was completed"))
