"""Workflow runs as the platform's API reads and writes them: by shallow merges under the row's lock."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg_pool
from psycopg.rows import DictRow

from devstack.platform_api.layouts import Layout

Pool = psycopg_pool.AsyncConnectionPool[Any]

_RUN = """
SELECT r.id, r.workflow_id, r.state::text AS state, r.mode::text AS mode, r.definition_id, r.campaign_id,
       r.initial_context, r.gathered_context, w.organization_id, w.user_id
  FROM workflow_runs r JOIN workflows w ON w.id = r.workflow_id WHERE r.id = %s
"""
_CONFIGURATION = {
    "2026-02": """
        SELECT id, value ->> 'provider' AS provider, value AS fields FROM organization_configurations
         WHERE key = 'TELEPHONY_CONFIGURATION' AND organization_id = %(organization_id)s""",
    # The row that the run names; without one the default for outbound calls. Never an inactive one.
    "newest": """
        SELECT id, provider, credentials AS fields FROM telephony_configurations
         WHERE organization_id = %(organization_id)s AND NOT inactive
           AND CASE WHEN %(id)s::integer IS NULL THEN is_default_outbound ELSE id = %(id)s END""",
}
_DEFINITION = {
    "2026-02": "SELECT id FROM workflow_definitions WHERE workflow_id = %s AND is_current",
    "newest": """
        SELECT coalesce(w.released_definition_id, d.id) AS id FROM workflows w
          LEFT JOIN workflow_definitions d ON d.workflow_id = w.id AND d.is_current WHERE w.id = %s""",
}
_DRAFT = "SELECT id FROM workflow_definitions WHERE workflow_id = %s AND status = 'draft' ORDER BY id DESC LIMIT 1"
_INSERT = """
INSERT INTO workflow_runs (name, workflow_id, mode, call_type, state, is_completed, definition_id, campaign_id,
                           initial_context, gathered_context, usage_info, cost_info, annotations, created_at)
VALUES (%s, %s, 'ari', 'outbound', 'initialized', false, %s, %s, %s, '{}', '{}', '{}', '{}', now()) RETURNING id
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A workflow run with its tenant."""

    id: int
    workflow_id: int
    organization_id: int
    user_id: int
    definition_id: int | None
    state: str
    mode: str
    initial: Mapping[str, Any]
    gathered: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How an organization's Asterisk is reached."""

    id: int
    provider: str
    endpoint: str
    user: str
    password: str = field(repr=False)
    app: str
    dial_template: str | None


class Runs:
    """Reads and writes of the platform's tables."""

    def __init__(self, pool: Pool, layout: Layout) -> None:
        self._pool = pool
        self._layout = layout

    async def of(self, run_id: int) -> Run | None:
        row = await self._row(_RUN, run_id)
        if row is None:
            return None
        return Run(
            id=row["id"],
            workflow_id=row["workflow_id"],
            organization_id=row["organization_id"],
            user_id=row["user_id"],
            definition_id=row["definition_id"],
            state=row["state"],
            mode=row["mode"],
            initial=row["initial_context"] or {},
            gathered=row["gathered_context"] or {},
        )

    async def configuration(self, organization_id: int, configuration_id: int | None) -> Configuration | None:
        """Return the configuration that serves a run; None when it is inactive, or there is none."""
        values = {"organization_id": organization_id, "id": configuration_id}
        row = await self._row(_CONFIGURATION[self._layout], values)
        if row is None:
            return None
        fields = row["fields"]
        own = fields if self._layout == "newest" else {}
        return Configuration(
            id=row["id"],
            provider=row["provider"],
            endpoint=fields["ari_endpoint"].rstrip("/"),
            user=fields["app_name"],
            password=fields["app_password"],
            app=own.get("stasis_app_name") or fields["app_name"],
            dial_template=own.get("dial_string_template"),
        )

    async def workflow(self, workflow_id: int) -> DictRow | None:
        """Return `organization_id` and `user_id` of a workflow."""
        return await self._row("SELECT organization_id, user_id FROM workflows WHERE id = %s", workflow_id)

    async def call_limit(self, organization_id: int, default: int) -> int:
        """Return how many calls the organization may have at the same time."""
        row = await self._row(
            "SELECT value ->> 'value' AS value FROM organization_configurations"
            " WHERE organization_id = %s AND key = 'CONCURRENT_CALL_LIMIT'",
            organization_id,
        )
        return int(row["value"]) if row is not None else default

    async def create(
        self, workflow_id: int, initial: Mapping[str, Any], *, campaign_id: int | None, is_test: bool
    ) -> int:
        """Create the run of a call that is about to be placed; the definition of a test call is the draft."""
        definition = await self._row(_DRAFT if is_test else _DEFINITION[self._layout], workflow_id)
        name = f"WR-TEL-OUT-{random.randrange(10**8):08d}"  # noqa: S311 - no secret
        definition_id = definition["id"] if definition is not None else None
        row = await self._row(_INSERT, name, workflow_id, definition_id, campaign_id, json.dumps(initial))
        assert row is not None
        return int(row["id"])

    async def note(self, run_id: int, gathered: Mapping[str, Any]) -> None:
        """Merge into gathered_context."""
        await self._merge(run_id, gathered)

    async def set_running(self, run_id: int) -> None:
        await self._execute("UPDATE workflow_runs SET state = 'running' WHERE id = %s", run_id)

    async def complete(self, run_id: int, gathered: Mapping[str, Any], *, seconds: float) -> None:
        """Complete a run. In the newest layout these keys win over stored ones, in 2026-02 the stored ones do."""
        usage = {"call_duration_seconds": round(seconds)}
        await self._merge(run_id, gathered, stored_wins=self._layout == "2026-02", usage=usage)

    async def reactivate(self, configuration_id: int) -> bool:
        """Take up a parked configuration again; False if there is none."""
        return await self._execute(
            "UPDATE telephony_configurations SET inactive = false, inactive_since = NULL, inactive_reason = NULL,"
            " updated_at = now() WHERE id = %s",
            configuration_id,
        )

    async def _merge(
        self,
        run_id: int,
        gathered: Mapping[str, Any],
        *,
        stored_wins: bool = False,
        usage: Mapping[str, Any] | None = None,
    ) -> None:
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                "SELECT gathered_context, usage_info FROM workflow_runs WHERE id = %s FOR UPDATE", [run_id]
            )
            row = await cursor.fetchone()
            if row is None:
                return
            stored = row["gathered_context"] or {}
            merged = {**gathered, **stored} if stored_wins else {**stored, **gathered}
            await connection.execute(
                "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s", [json.dumps(merged), run_id]
            )
            if usage is not None:
                await connection.execute(
                    "UPDATE workflow_runs SET state = 'completed', is_completed = true, usage_info = %s WHERE id = %s",
                    [json.dumps({**(row["usage_info"] or {}), **usage}), run_id],
                )

    async def _row(self, statement: str, *values: Any) -> DictRow | None:
        given = values[0] if values and isinstance(values[0], dict) else values
        async with self._pool.connection() as connection:
            found: DictRow | None = await (await connection.execute(statement, given)).fetchone()
            return found

    async def _execute(self, statement: str, *values: Any) -> bool:
        async with self._pool.connection() as connection:
            return bool((await connection.execute(statement, values)).rowcount)
