"""What an operator does to a call."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from shared import errors
from shared.call import facts
from shared.operator import audit
from shared.operator.audit import Action, Actor, Outcome
from shared.storage import database
from shared.storage.call_writer import CallWriter, Recorded


def hang_up(
    db: database.Database, writer_to: Callable[[database.Database], CallWriter], actor: Actor, call_id: UUID
) -> Recorded:
    """End a call: its legs are hung up and its run is ended, or both were ordered before.

    Args:
        writer_to: Returns a writer of calls in a database.

    Raises:
        InvalidRequest: There is no such call.
        DatabaseUnavailable: Postgres is away: nothing was done.
    """
    with audit.failures(db, actor, Action(name="hangup", subject=f"call {call_id}")):
        before = writer_to(db).store.load(call_id)
        if before is None:
            raise errors.InvalidRequest(f"no call {call_id}: arictl calls lists them")
    action = Action(name="hangup", subject=f"call {call_id}", organization_id=before.organization_id)
    with audit.recorded(db, actor, action) as recording:
        recorded = writer_to(recording).record(before, facts.EndRequested(reason="ended by an operator"))
    if not recorded.applied:
        with db.connection() as connection:
            audit.record(connection, actor, action, Outcome.NOTHING)
    return recorded
