"""When each connection is resynced next: a table of its own, with small rows, as each is written every 15 seconds."""

from __future__ import annotations

from alembic import op

revision = "0004_resyncs"
down_revision = "0003_minutes"


def upgrade() -> None:
    # No foreign key: to add one would lock the versions. A version is never deleted.
    op.execute("""
    CREATE TABLE ari.resyncs (
        connection_id integer NOT NULL,
        version       integer NOT NULL,
        due_at        timestamptz NOT NULL,
        -- How many were requested: every fourth is full.
        requests      bigint NOT NULL,
        PRIMARY KEY (connection_id, version)
    ) WITH (fillfactor = 50)
    """)


def downgrade() -> None:
    op.execute("DROP TABLE ari.resyncs")
