"""The platform's own index of runs by call, on the tables of a stand-alone installation: a run is looked up by it.

Both layouts of the platform have it. Where the platform's own tables exist they are neither altered nor locked.
"""

from __future__ import annotations

import sqlalchemy
from alembic import op

revision = "0009_run_by_call"
down_revision = "0008_app_instances"

#: An index of the tables that migration 0002 makes, under a name that the platform does not use.
_OURS = "workflow_runs_workflow"
_INDEX = "idx_workflow_runs_call_id"

#: From the catalogue, which no lock of a table keeps from being read. An index of a run that was broken off is invalid.
_VALID = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass('workflow_runs') AND i.indisvalid
"""


def upgrade() -> None:
    valid = set(op.get_bind().execute(sqlalchemy.text(_VALID)).scalars())
    if _OURS not in valid or _INDEX in valid:
        return
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_INDEX} ON workflow_runs ((gathered_context ->> 'call_id'))"
            " WHERE gathered_context ->> 'call_id' IS NOT NULL"
        )
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    """Leaves the index: the earlier release does without it, and with it."""
