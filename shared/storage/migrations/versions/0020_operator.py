"""What operators do: the audit, connections that take no calls, and sets of dead letters.

A process of an earlier release writes no row of them, and takes the calls of a connection that is drained.
"""

from __future__ import annotations

from alembic import op

revision = "0020_operator"
down_revision = "0019_faults"

#: Rows are deleted by retention alone, and none that is younger than this.
_KEPT_DAYS = 30

_AUDIT = """
CREATE TABLE IF NOT EXISTS ari.audit (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    who             text NOT NULL,
    via             text NOT NULL,
    action          text NOT NULL,
    subject         text NOT NULL,
    organization_id integer,
    detail          jsonb NOT NULL DEFAULT '{}',
    outcome         text NOT NULL CHECK (outcome IN ('asked', 'done', 'nothing', 'failed'))
)
"""

_APPEND_ONLY = f"""
CREATE OR REPLACE FUNCTION ari.keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.at < clock_timestamp() - interval '{_KEPT_DAYS} days' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'ari.audit is append-only: no %', TG_OP USING ERRCODE = 'restrict_violation';
END $$
"""

#: The dead letters that one order is about, fixed when it was given.
_SETS = """
CREATE TABLE IF NOT EXISTS ari.dead_letter_sets (
    set_id     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    who        text NOT NULL,
    via        text NOT NULL,
    -- Why the operator has ordered it, and the filter by which the letters were chosen.
    reason     text NOT NULL DEFAULT '',
    filter     jsonb NOT NULL DEFAULT '{}',
    -- retry or discard; NULL until it is ordered.
    action     text CHECK (action IN ('retry', 'discard')),
    ordered_at timestamptz,
    ended_at   timestamptz,
    oldest_at  timestamptz,
    newest_at  timestamptz,
    -- Error -> number of letters.
    groups     jsonb NOT NULL DEFAULT '{}'
)
"""
_SET_LETTERS = """
CREATE TABLE IF NOT EXISTS ari.dead_letter_set_letters (
    set_id    integer NOT NULL REFERENCES ari.dead_letter_sets ON DELETE CASCADE,
    number    integer NOT NULL,
    letter_id text NOT NULL,
    -- waiting, begun, done, gone (it was not there any more), refused (it cannot be retried)
    state     text NOT NULL DEFAULT 'waiting',
    PRIMARY KEY (set_id, number)
)
"""


def upgrade() -> None:
    op.execute(_AUDIT)
    # The table is new, and empty but in a run that was broken off.
    op.execute("CREATE INDEX IF NOT EXISTS audit_by_time ON ari.audit (at)")
    op.execute("CREATE INDEX IF NOT EXISTS audit_of_organization ON ari.audit (organization_id, id)")
    op.execute("CREATE INDEX IF NOT EXISTS audit_of_subject ON ari.audit (subject, id)")
    op.execute("CREATE INDEX IF NOT EXISTS audit_of_action ON ari.audit (action, id)")
    op.execute("CREATE INDEX IF NOT EXISTS audit_of_who ON ari.audit (who, id)")
    op.execute(_APPEND_ONLY)
    op.execute(
        "CREATE OR REPLACE TRIGGER audit_rows BEFORE UPDATE OR DELETE ON ari.audit"
        " FOR EACH ROW EXECUTE FUNCTION ari.keep_audit()"
    )
    op.execute(
        "CREATE OR REPLACE TRIGGER audit_table BEFORE TRUNCATE ON ari.audit"
        " FOR EACH STATEMENT EXECUTE FUNCTION ari.keep_audit()"
    )
    # No row is read for a column without a default.
    op.execute(
        "ALTER TABLE ari.connections"
        # park: no event socket; drain: no new calls; NULL: neither.
        " ADD COLUMN IF NOT EXISTS suspension text,"
        " ADD COLUMN IF NOT EXISTS suspended_at timestamptz,"
        " ADD COLUMN IF NOT EXISTS suspension_reason text"
    )
    op.execute(_SETS)
    op.execute(_SET_LETTERS)
    op.execute(
        "CREATE INDEX IF NOT EXISTS dead_letter_sets_open ON ari.dead_letter_sets (set_id)"
        " WHERE ordered_at IS NOT NULL AND ended_at IS NULL"
    )


def downgrade() -> None:
    op.execute("DROP TABLE ari.dead_letter_set_letters, ari.dead_letter_sets")
    op.execute(
        "ALTER TABLE ari.connections DROP COLUMN suspension_reason, DROP COLUMN suspended_at, DROP COLUMN suspension"
    )
    op.execute("DROP TABLE ari.audit")
    op.execute("DROP FUNCTION ari.keep_audit")
