"""Quotas: our limits for each organization, and indexes to count what its calls use."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

_SCHEMA = """
CREATE TABLE ari.quotas (
    organization_id   integer PRIMARY KEY,
    blocked           boolean NOT NULL DEFAULT false,
    -- NULL is no limit.
    concurrent_calls  integer CHECK (concurrent_calls >= 0),
    minutes_per_month integer CHECK (minutes_per_month >= 0),
    changed_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX calls_slots ON ari.calls (organization_id) WHERE state <> 'ended';
CREATE INDEX calls_talk ON ari.calls (organization_id, ending_at) WHERE connected_at IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(_SCHEMA)


def downgrade() -> None:
    op.execute("DROP INDEX ari.calls_slots, ari.calls_talk")
    op.execute("DROP TABLE ari.quotas")
