"""The prefix of an installation's ids is its own, kept here, and each call keeps the one that its ids were made with.

A database that is in use keeps `aip-`, which every installation had: processes of the earlier release run beside it.
In an empty one the first process that makes ids draws a prefix.
"""

from __future__ import annotations

from alembic import op

revision = "0006_installation"
down_revision = "0005_growth"

#: The newest row is the prefix of new calls.
_PREFIXES = """
CREATE TABLE IF NOT EXISTS ari.id_prefixes (
    number   integer PRIMARY KEY,
    prefix   text NOT NULL,
    drawn_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The transaction that wrote the row; NULL for a prefix that was not drawn. In a restored dump another one did.
    written_by bigint
)
"""

_EARLIER = """
INSERT INTO ari.id_prefixes (number, prefix)
SELECT 1, 'aip-' WHERE EXISTS (SELECT 1 FROM ari.connections) OR EXISTS (SELECT 1 FROM ari.calls)
ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    op.execute(_PREFIXES)
    op.execute(_EARLIER)
    # NULL: written by the earlier release. No row is read for a column without a default.
    op.execute("ALTER TABLE ari.calls ADD COLUMN IF NOT EXISTS id_prefix text")


def downgrade() -> None:
    op.execute("ALTER TABLE ari.calls DROP COLUMN id_prefix")
    op.execute("DROP TABLE ari.id_prefixes")
