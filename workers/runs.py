"""The step `runs`: an admitted call gets its workflow run, exactly one."""

from __future__ import annotations

import functools
from uuid import UUID

from shared.call import facts
from shared.call.limits import Step
from shared.storage.call_writer import UnitOfWork
from workers import claims, media
from workers.ports import Tools


def create_run(tools: Tools, *, call_id: UUID) -> None:
    """Creates the run, and goes on to its media."""
    claim = claims.claim(tools.writer, call_id, Step.RUNS)
    if claim is None:
        return
    with claim:
        media.decide_and_begin(tools, claim, functools.partial(add_run, tools))


def add_run(tools: Tools, decision: UnitOfWork) -> None:
    """The run of an admitted call, stored with its id or not at all."""
    run_id = tools.runs.create(decision.connection, decision.call)
    decision.learn(facts.RunCreated(workflow_run_id=run_id))
