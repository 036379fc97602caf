"""The leg that a caller was transferred to, and its index: the end of that leg names no call.

An earlier release beside it neither reads nor writes the column, and ends a call that was transferred.
"""

from __future__ import annotations

from alembic import op

revision = "0010_transfers"
down_revision = "0009_run_by_call"


def upgrade() -> None:
    # No row is read for a column without a default.
    op.execute("ALTER TABLE ari.calls ADD COLUMN IF NOT EXISTS destination_id text")
    # The index of a run that was broken off may be invalid.
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.calls_by_destination")
        op.execute(
            "CREATE INDEX CONCURRENTLY calls_by_destination ON ari.calls (connection_id, destination_id)"
            " WHERE destination_id IS NOT NULL"
        )
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    op.execute("DROP INDEX ari.calls_by_destination")
    op.execute("ALTER TABLE ari.calls DROP COLUMN destination_id")
