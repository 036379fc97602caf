"""The step `runs`: an admitted call gets its workflow run, exactly one."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from shared import database
from shared.core import facts
from shared.core.calls import Call, State
from shared.core.deadlines import Step
from workers import claims
from workers.steps import Tools


def create_run(tools: Tools, *, call_id: UUID) -> None:
    """Creates the run and stores its id, in one transaction."""
    claim = claims.claim(tools.ledger, call_id, Step.RUNS)
    if claim is None:
        return
    with claim:
        tools.ledger.decide(call_id, State.ADMITTED, _run_of(tools), owner=claim.owner)


def _run_of(tools: Tools) -> Callable[[database.Connection, Call], facts.RunCreated]:
    return lambda connection, call: facts.RunCreated(workflow_run_id=tools.runs.create(connection, call))
