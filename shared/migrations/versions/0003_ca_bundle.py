"""A connection version's CA bundle: whom to trust for its endpoint."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Without a default: no row is rewritten, and what the last release writes stays right.
    op.execute("ALTER TABLE ari.connection_versions ADD COLUMN ca_bundle text")


def downgrade() -> None:
    op.execute("ALTER TABLE ari.connection_versions DROP COLUMN ca_bundle")
