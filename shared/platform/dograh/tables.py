"""The platform's tables and the columns of them that this adapter reads or writes, for `arictl doctor`."""

from __future__ import annotations

COLUMNS = {
    "organizations": {"id"},
    "organization_configurations": {"id", "organization_id", "key", "value", "created_at"},
    "workflows": {"id", "organization_id", "user_id", "status"},
    "workflow_definitions": {"id", "workflow_id", "is_current"},
    "workflow_runs": {
        "id", "name", "workflow_id", "definition_id", "mode", "call_type", "state", "is_completed", "storage_backend",
        "usage_info", "cost_info", "initial_context", "gathered_context", "logs", "annotations", "created_at",
    },
}  # fmt: skip
