"""The channels that have taken the place of a caller's leg, and their index: the events of such a channel name no call.

An earlier release beside it neither reads nor writes the column, and ends a call whose leg was replaced.
"""

from __future__ import annotations

from alembic import op

revision = "0011_replacements"
down_revision = "0010_transfers"


def upgrade() -> None:
    # No row is read for a column without a default.
    op.execute("ALTER TABLE ari.calls ADD COLUMN IF NOT EXISTS replacements text[]")
    # The index of a run that was broken off may be invalid.
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.calls_by_replacement")
        op.execute(
            "CREATE INDEX CONCURRENTLY calls_by_replacement ON ari.calls USING gin (replacements)"
            " WHERE replacements IS NOT NULL"
        )
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    op.execute("DROP INDEX ari.calls_by_replacement")
    op.execute("ALTER TABLE ari.calls DROP COLUMN replacements")
