"""The sweep: calls that are overdue and in nobody's hands are driven on, whatever was lost."""

from __future__ import annotations

from typing import Protocol

import structlog

from shared import errors
from shared.core import facts
from shared.core.calls import Call
from shared.ledger import Ledger

log = structlog.stdlib.get_logger(__name__)


class Overdue(Protocol):
    """Where overdue calls are found. `store.PostgresStore` is the adapter."""

    def overdue(self, limit: int) -> list[Call]:
        """Calls past their deadline and in nobody's hands, the longest overdue first."""


def sweep(ledger: Ledger, store: Overdue, *, batch: int) -> int:
    """Drives on at most `batch` calls, the longest overdue first; returns how many there were."""
    overdue = store.overdue(batch)
    for call in overdue:
        try:
            # One that was taken up meanwhile is overdue no more, which the core cannot see: the next sweep judges it.
            ledger.record(call, facts.DeadlinePassed(), insist=False)
        except errors.DatabaseUnavailable:
            raise
        except errors.PipelineError as exc:
            log.warning("a call could not be driven on", call=str(call.call_id), why=str(exc))
    if overdue:
        log.info("overdue calls driven on", calls=len(overdue))
    return len(overdue)
