"""The step `runs`: an admitted call gets its workflow run, exactly one."""

from __future__ import annotations

from uuid import UUID

from shared.core.deadlines import Step
from workers import claims
from workers.steps import Tools


def create_run(tools: Tools, *, call_id: UUID) -> None:
    """Creates the run and stores its id, in one transaction."""
    claim = claims.claim(tools.ledger, call_id, Step.RUNS)
    if claim is None:
        return
    with claim:
        tools.ledger.create_run(call_id, tools.platform.create_run, owner=claim.owner)
