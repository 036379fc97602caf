"""Calls that we originate, and what a connection's configuration says of the single call."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

# `goes_on` has a default because the release before this one inserts calls without it.
_COLUMNS = """
ALTER TABLE ari.calls
    ADD COLUMN call_seconds  real,
    ADD COLUMN goes_on       boolean NOT NULL DEFAULT false,
    -- Names the request to originate; NULL for a leg that came to us.
    ADD COLUMN request_id    text,
    ADD COLUMN dial_endpoint text,
    ADD COLUMN ring_seconds  real,
    ADD COLUMN dial_status   text;
CREATE UNIQUE INDEX calls_request ON ari.calls (connection_id, request_id) WHERE request_id IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(_COLUMNS)


def downgrade() -> None:
    op.execute(
        "DROP INDEX ari.calls_request; ALTER TABLE ari.calls DROP COLUMN call_seconds, DROP COLUMN goes_on,"
        " DROP COLUMN request_id, DROP COLUMN dial_endpoint, DROP COLUMN ring_seconds, DROP COLUMN dial_status"
    )
