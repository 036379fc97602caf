"""The nonce in the ids of each attempt of a call.

A call of an earlier release has none, and its ids are made without. That release writes calls beside this one, and
leaves the column alone.
"""

from __future__ import annotations

from alembic import op

revision = "0007_nonces"
down_revision = "0006_installation"


def upgrade() -> None:
    # No row is read: the default is a constant, in the catalogue alone.
    op.execute("ALTER TABLE ari.calls ADD COLUMN IF NOT EXISTS attempt_nonces text[] NOT NULL DEFAULT '{}'")


def downgrade() -> None:
    op.execute("ALTER TABLE ari.calls DROP COLUMN attempt_nonces")
