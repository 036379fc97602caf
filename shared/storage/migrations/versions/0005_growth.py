"""What keeps reading and deleting bounded: when a call was last written, a month's minutes, an index by age.

An earlier release goes on beside it: the trigger says when such a release has written a call. Each statement may have
been done before: what comes before the index is committed first.
"""

from __future__ import annotations

from alembic import op

revision = "0005_growth"
down_revision = "0004_resyncs"

#: Neither reads a row: a column without a default, and one whose default is a constant, are in the catalogue alone.
_COLUMNS = """
ALTER TABLE ari.calls
    ADD COLUMN IF NOT EXISTS changed_at timestamptz,
    -- Ended without proof that nothing is left on its Asterisk.
    ADD COLUMN IF NOT EXISTS unverified boolean NOT NULL DEFAULT false
"""

_FUNCTION = """
CREATE OR REPLACE FUNCTION ari.note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := clock_timestamp();
    RETURN NEW;
END $$
"""

_TRIGGER = """
CREATE OR REPLACE TRIGGER calls_changed BEFORE INSERT OR UPDATE ON ari.calls
    FOR EACH ROW EXECUTE FUNCTION ari.note_change()
"""

#: Seconds talked in a month by the calls that ended before a moment: they do not change any more.
_USAGE = """
CREATE TABLE IF NOT EXISTS ari.usage (
    organization_id integer NOT NULL,
    month           timestamptz NOT NULL,
    until           timestamptz NOT NULL,
    seconds         double precision NOT NULL,
    PRIMARY KEY (organization_id, month)
)
"""


def upgrade() -> None:
    op.execute(_COLUMNS)
    op.execute(_FUNCTION)
    op.execute(_TRIGGER)
    op.execute(_USAGE)
    # The index of a run that was broken off may be invalid.
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.timeline_by_age")
        op.execute("CREATE INDEX CONCURRENTLY timeline_by_age ON ari.timeline (at) WHERE call_id IS NULL")
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    op.execute("DROP TABLE ari.usage")
    op.execute("DROP TRIGGER calls_changed ON ari.calls")
    op.execute("DROP FUNCTION ari.note_change")
    op.execute("ALTER TABLE ari.calls DROP COLUMN changed_at, DROP COLUMN unverified")
    op.execute("DROP INDEX ari.timeline_by_age")
