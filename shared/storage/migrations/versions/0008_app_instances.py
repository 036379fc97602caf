"""One open call for each entry of a channel into an app instance, and one at all within an organization.

An app instance is one Stasis app on one Asterisk. It may have several connections: of another organization after a
move, or of the same one if an earlier release made another connection of a configuration that was saved anew.

Calls that are there already have no app instance, and are not compared: so the index can be built, whatever they are.
They are found by their connection. An earlier release goes on beside this one: the trigger fills its calls in, too.
"""

from __future__ import annotations

from alembic import op

revision = "0008_app_instances"
down_revision = "0007_nonces"

#: The name of an app instance, in 32 bytes: endpoint and app may be long. No name contains a line feed.
_FUNCTION = r"""
CREATE OR REPLACE FUNCTION ari.name_app_instance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT sha256(convert_to(v.endpoint || E'\n' || v.app, 'UTF8')) INTO NEW.app_instance
    FROM ari.connection_versions v
    WHERE v.connection_id = NEW.connection_id AND v.version = NEW.connection_version;
    RETURN NEW;
END $$
"""

_TRIGGER = """
CREATE OR REPLACE TRIGGER calls_app_instance BEFORE INSERT ON ari.calls
    FOR EACH ROW EXECUTE FUNCTION ari.name_app_instance()
"""


def upgrade() -> None:
    # Of a run that was broken off, or undone by hand: without the index no call may get an app instance.
    op.execute("DROP TRIGGER IF EXISTS calls_app_instance ON ari.calls")
    # No row is read for a column without a default.
    op.execute("ALTER TABLE ari.calls ADD COLUMN IF NOT EXISTS app_instance bytea")
    # Each statement may have been done before. The index of a run that was broken off may be invalid.
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.connections_organization")
        op.execute("CREATE INDEX CONCURRENTLY connections_organization ON ari.connections (organization_id)")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.connection_versions_endpoint")
        # A hash: an endpoint may be longer than an entry of a B-tree.
        op.execute(
            "CREATE INDEX CONCURRENTLY connection_versions_endpoint ON ari.connection_versions USING hash (endpoint)"
            " WHERE superseded_at IS NULL"
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.calls_open_entry")
        op.execute(
            "CREATE UNIQUE INDEX CONCURRENTLY calls_open_entry"
            " ON ari.calls (app_instance, channel_id, channel_created, entry) WHERE state <> 'ended'"
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ari.calls_entry")
        op.execute(
            "CREATE UNIQUE INDEX CONCURRENTLY calls_entry"
            " ON ari.calls (organization_id, app_instance, channel_id, channel_created, entry)"
        )
        op.execute("RESET lock_timeout")
    # Last: until the index is there no call has an app instance, so none can keep it from being built.
    op.execute(_FUNCTION)
    op.execute(_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER calls_app_instance ON ari.calls")
    op.execute("DROP FUNCTION ari.name_app_instance")
    op.execute("DROP INDEX ari.calls_entry")
    op.execute("DROP INDEX ari.calls_open_entry, ari.connection_versions_endpoint, ari.connections_organization")
    op.execute("ALTER TABLE ari.calls DROP COLUMN app_instance")
