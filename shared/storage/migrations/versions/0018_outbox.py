"""The outbox: which ended runs the platform is to be told of. A process of an earlier release writes no row."""

from __future__ import annotations

from alembic import op

revision = "0018_outbox"
down_revision = "0017_app_holders"

_OUTBOX = """
CREATE TABLE IF NOT EXISTS ari.outbox (
    workflow_run_id integer PRIMARY KEY,
    campaign_id     integer,
    queued_run_id   integer,
    -- Why the campaign calls once more; NULL if it does not.
    retry_reason    text,
    written_at      timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""


def upgrade() -> None:
    op.execute(_OUTBOX)


def downgrade() -> None:
    op.execute("DROP TABLE ari.outbox")
