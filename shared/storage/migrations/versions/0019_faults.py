"""Whose fault a call's end was, and the indexes by which the operator's questions find calls.

A process of an earlier release writes no fault: it is told from the reason when the call is read.
"""

from __future__ import annotations

from alembic import op

revision = "0019_faults"
down_revision = "0018_outbox"

#: Each has the ended calls alone: a call's writes before its end cost nothing. Those by outcome and by fault have the
#: few that did not end well; in the second, the calls of an earlier release are the ones without a fault.
_INDEXES = {
    "calls_by_caller": "(caller_number, received_at DESC) WHERE state = 'ended'",
    "calls_by_called": "(called_number, received_at DESC) WHERE state = 'ended'",
    "calls_by_outcome": "(outcome, received_at DESC) WHERE state = 'ended' AND outcome <> 'completed'",
    # An expression has statistics of its own. Of the column, nearly every row has none: Postgres would not go by it.
    "calls_by_fault": "(coalesce(fault, ''), received_at DESC) WHERE state = 'ended' AND outcome <> 'completed'",
}


def upgrade() -> None:
    # No row is read for a column without a default.
    op.execute(
        "ALTER TABLE ari.calls"
        " ADD COLUMN IF NOT EXISTS fault text,"
        # What the technology of the leg that ended told: the code of SIP, or of a websocket.
        " ADD COLUMN IF NOT EXISTS tech_cause integer,"
        # Why the step of its state came to nothing so far.
        " ADD COLUMN IF NOT EXISTS obstacle text"
    )
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        for name, columns in _INDEXES.items():
            # The index of a run that was broken off may be invalid.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS ari.{name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON ari.calls {columns}")
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    op.execute("DROP INDEX ari.calls_by_caller, ari.calls_by_called, ari.calls_by_outcome, ari.calls_by_fault")
    op.execute("ALTER TABLE ari.calls DROP COLUMN fault, DROP COLUMN tech_cause, DROP COLUMN obstacle")
