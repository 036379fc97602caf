"""The index of an organization's entries by channel first: so a search by a channel's id reads one place of one index.

Before, no index began with the channel, and such a search asked one once for each connection. It holds the same columns
and costs a call the same.
"""

from __future__ import annotations

from alembic import op

revision = "0023_calls_by_channel"
down_revision = "0022_console_users"


def upgrade() -> None:
    _replace("calls_entry", "calls_by_channel", "(channel_id, organization_id, app_instance, channel_created, entry)")


def downgrade() -> None:
    _replace("calls_by_channel", "calls_entry", "(organization_id, app_instance, channel_id, channel_created, entry)")


def _replace(old: str, new: str, columns: str) -> None:
    """Build the one index before the other one goes: at no moment may an entry be stored twice."""
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        # The index of a run that was broken off may be invalid.
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS ari.{new}")
        op.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {new} ON ari.calls {columns}")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS ari.{old}")
        op.execute("RESET lock_timeout")
