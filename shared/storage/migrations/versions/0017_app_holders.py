"""Who has an app that was never ours: asked before the first event socket of it is opened.

An earlier release beside it writes versions that nothing is asked of, and opens their sockets at once.
"""

from __future__ import annotations

from alembic import op

revision = "0017_app_holders"
down_revision = "0011_replacements"


def upgrade() -> None:
    # No row is read for a column without a default.
    op.execute(
        "ALTER TABLE ari.connection_versions"
        # When a worker was last asked who has the app; NULL: it need not be known. Until then no socket is opened.
        " ADD COLUMN IF NOT EXISTS asked_at timestamptz,"
        # When an operator let us displace the process that had the app.
        " ADD COLUMN IF NOT EXISTS displaced_at timestamptz"
    )
    # The indexes of a run that was broken off may be invalid.
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.connection_versions_asked")
        op.execute(
            "CREATE INDEX CONCURRENTLY connection_versions_asked ON ari.connection_versions (asked_at)"
            " WHERE asked_at IS NOT NULL"
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.connection_versions_app")
        # A hash: an endpoint may be longer than an entry of a B-tree.
        op.execute("CREATE INDEX CONCURRENTLY connection_versions_app ON ari.connection_versions USING hash (endpoint)")
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    op.execute("DROP INDEX ari.connection_versions_app, ari.connection_versions_asked")
    op.execute("ALTER TABLE ari.connection_versions DROP COLUMN displaced_at, DROP COLUMN asked_at")
