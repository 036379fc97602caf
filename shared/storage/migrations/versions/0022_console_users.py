"""Users of the console and their sessions. A process of an earlier release reads neither.

Not `users`: a role named `ari` that does not set its search path would find it in place of the platform's table.
"""

from __future__ import annotations

from alembic import op

revision = "0022_console_users"
down_revision = "0020_operator"

_USERS = """
CREATE TABLE IF NOT EXISTS ari.console_users (
    name            text PRIMARY KEY,
    -- Argon2id, with its parameters and salt.
    password_hash   text NOT NULL,
    role            text NOT NULL CHECK (role IN ('view', 'operate')),
    -- The one organization whose calls this user sees; NULL for all.
    organization_id integer,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at      timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""
_SESSIONS = """
CREATE TABLE IF NOT EXISTS ari.console_sessions (
    -- SHA-256 of the token in the cookie: who reads this table cannot sign in with it.
    token_hash bytea PRIMARY KEY,
    user_name  text NOT NULL REFERENCES ari.console_users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""
_BY_USER = "CREATE INDEX IF NOT EXISTS console_sessions_by_user ON ari.console_sessions (user_name, created_at)"


def upgrade() -> None:
    op.execute(_USERS)
    op.execute(_SESSIONS)
    op.execute(_BY_USER)


def downgrade() -> None:
    op.execute("DROP TABLE ari.console_sessions")
    op.execute("DROP TABLE ari.console_users")
