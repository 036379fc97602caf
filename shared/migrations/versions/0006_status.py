"""What an operator sees of a connection version's socket, and who hands it over to whom."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

_COLUMNS = {
    # The listener that holds the socket until the one in listener_id has its own up, and under which epoch.
    "elder_id": "text",
    "elder_epoch": "integer",
    # When epoch was last raised.
    "assigned_at": "timestamptz",
    # When its credentials were first accepted.
    "accepted_at": "timestamptz",
    # Since when another client has the app; how many times in a row it was taken back; since when we leave it alone.
    "taken_at": "timestamptz",
    "retakes": "integer NOT NULL DEFAULT 0",
    "parked_at": "timestamptz",
    # What was last wrong; last_error is what is wrong now.
    "past_error": "text NOT NULL DEFAULT ''",
    "past_error_at": "timestamptz",
}


def upgrade() -> None:
    added = ", ".join(f"ADD COLUMN {name} {kind}" for name, kind in _COLUMNS.items())
    op.execute(f"ALTER TABLE ari.connection_versions {added}")


def downgrade() -> None:
    dropped = ", ".join(f"DROP COLUMN {name}" for name in _COLUMNS)
    op.execute(f"ALTER TABLE ari.connection_versions {dropped}")
