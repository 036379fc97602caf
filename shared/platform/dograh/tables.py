"""The platform's tables and the columns of them that this adapter reads or writes, in each layout."""

from __future__ import annotations

from collections.abc import Mapping

#: In both layouts.
COLUMNS = {
    "organizations": {"id"},
    "organization_configurations": {"id", "organization_id", "key", "value", "created_at"},
    "workflows": {"id", "organization_id", "user_id", "status"},
    "workflow_definitions": {"id", "workflow_id", "is_current"},
    "workflow_runs": {
        "id", "name", "workflow_id", "definition_id", "mode", "call_type", "state", "is_completed", "storage_backend",
        "usage_info", "cost_info", "initial_context", "gathered_context", "logs", "annotations", "created_at",
        "campaign_id", "queued_run_id",
    },
}  # fmt: skip
#: In the newest one, besides.
NEWEST = {
    "workflows": {"released_definition_id"},
    "telephony_configurations": {
        "id", "organization_id", "name", "provider", "credentials", "is_default_outbound", "inactive",
        "inactive_since", "inactive_reason", "created_at", "updated_at",
    },
    "telephony_phone_numbers": {
        "id", "organization_id", "telephony_configuration_id", "address", "address_normalized", "address_type",
        "inbound_workflow_id", "is_active", "is_default_caller_id", "created_at", "updated_at",
    },
}  # fmt: skip


def of(*, newest: bool) -> Mapping[str, set[str]]:
    """Return the tables and columns of a layout."""
    if not newest:
        return COLUMNS
    return {table: COLUMNS.get(table, set()) | NEWEST.get(table, set()) for table in [*COLUMNS, *NEWEST]}
