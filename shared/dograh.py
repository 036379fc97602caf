"""The platform's tables (Dograh, layout 2026-02): configurations, routes, runs. Nothing else reads or writes them.

They belong to the platform: never altered, never locked but for the run being updated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shared import database, errors
from shared.core import configurations
from shared.core.calls import Call, Cause, Direction, Outcome

_CONFIGURATION_KEY = "TELEPHONY_CONFIGURATION"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRow:
    """One organization's telephony configuration, as stored."""

    source_id: int
    organization_id: int
    value: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where an inbound call goes."""

    workflow_id: int
    user_id: int
    media_client: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoute:
    """Why an inbound call goes nowhere, and the Q.850 cause for the caller."""

    reason: str
    hangup_cause: int


class Dograh:
    """The one adapter of the platform port."""

    def __init__(
        self,
        db: database.Database,
        *,
        storage_backend: Literal["s3", "minio"] = "s3",
        run_completion: Literal["ours", "platform"] = "ours",
    ) -> None:
        self._db = db
        self._storage_backend = storage_backend
        self._completes_connected = run_completion == "ours"

    def configurations(self) -> list[ConfigurationRow]:
        """Every telephony configuration of provider `ari`, read whole or not at all.

        The column is JSON and may hold what is no object: each value is judged on its own, here and by the caller.
        """
        with self._db.connection() as connection:
            rows = connection.execute(
                "SELECT id, organization_id, value::text AS value FROM organization_configurations WHERE key = %s",
                [_CONFIGURATION_KEY],
            ).fetchall()
        found = []
        for row in rows:
            value = _load(row["value"])
            if configurations.is_ari(value):
                found.append(ConfigurationRow(source_id=row["id"], organization_id=row["organization_id"], value=value))
        return found

    def write_configuration(self, organization_id: int, value: Mapping[str, Any], *, replace: bool) -> None:
        """Writes an organization's telephony configuration, as the platform's own API would.

        Raises:
            InvalidConfiguration: There is no such organization, or no such workflow of it, or it has a configuration
                and `replace` is not set.
        """
        with self._db.transaction() as connection:
            if connection.execute("SELECT 1 FROM organizations WHERE id = %s", [organization_id]).fetchone() is None:
                raise errors.InvalidConfiguration(f"there is no organization {organization_id}")
            workflow_id = _whole_number(value.get("inbound_workflow_id"))
            found = connection.execute("SELECT organization_id FROM workflows WHERE id = %s", [workflow_id]).fetchone()
            if workflow_id is not None and (found is None or found["organization_id"] != organization_id):
                raise errors.InvalidConfiguration(f"organization {organization_id} has no workflow {workflow_id}")
            written = connection.execute(
                "INSERT INTO organization_configurations AS c (organization_id, key, value, created_at)"
                " VALUES (%s, %s, %s, clock_timestamp()) ON CONFLICT (organization_id, key)"
                " DO UPDATE SET value = excluded.value WHERE %s RETURNING c.id",
                [organization_id, _CONFIGURATION_KEY, json.dumps(dict(value)), replace],
            ).fetchone()
            if written is None:
                raise errors.InvalidConfiguration(
                    f"organization {organization_id} has a configuration already: --replace changes it"
                )

    def remove_configuration(self, organization_id: int) -> None:
        """Removes an organization's telephony configuration. Raises InvalidConfiguration when it has none of ours."""
        with self._db.transaction() as connection:
            row = connection.execute(
                "SELECT id, value::text AS value FROM organization_configurations"
                " WHERE organization_id = %s AND key = %s FOR UPDATE",
                [organization_id, _CONFIGURATION_KEY],
            ).fetchone()
            if row is None or not configurations.is_ari(_load(row["value"])):
                raise errors.InvalidConfiguration(f"organization {organization_id} has no ARI configuration")
            connection.execute("DELETE FROM organization_configurations WHERE id = %s", [row["id"]])

    def route(self, *, source_id: int, organization_id: int) -> Route | NoRoute:
        """Where a call of this connection goes, by the configuration as it is now."""
        with self._db.connection() as connection:
            configuration = connection.execute(
                "SELECT value::text AS value FROM organization_configurations"
                " WHERE id = %s AND organization_id = %s AND key = %s",
                [source_id, organization_id, _CONFIGURATION_KEY],
            ).fetchone()
            if configuration is None:
                return NoRoute(reason="configuration removed", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
            value = _load(configuration["value"])
            if not isinstance(value, dict):
                return NoRoute(reason="configuration unreadable", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
            workflow_id = _whole_number(value.get("inbound_workflow_id"))
            if workflow_id is None:
                return NoRoute(reason="no inbound workflow configured", hangup_cause=Cause.UNALLOCATED)
            workflow = connection.execute(
                "SELECT organization_id, user_id, status::text AS status FROM workflows WHERE id = %s", [workflow_id]
            ).fetchone()
        return _judge(workflow_id, workflow, organization_id, value.get("ws_client_name"))

    def create_run(self, connection: database.Connection, call: Call) -> int:
        """Inserts the workflow run of an admitted inbound call, inside the caller's transaction; returns its id.

        `call_id` is in gathered_context from the start: the voice agent looks for it when the media leg dials in.
        """
        definition = connection.execute(
            "SELECT id FROM workflow_definitions WHERE workflow_id = %s AND is_current ORDER BY id DESC LIMIT 1",
            [call.workflow_id],
        ).fetchone()
        initial = {
            "caller_number": call.caller_number,
            "called_number": call.called_number,
            "direction": str(call.direction),
            "provider": "ari",
        }
        gathered = {"call_id": call.channel_id, "provider": "ari", "channel_name": call.channel_name}
        row = connection.execute(
            "INSERT INTO workflow_runs (name, workflow_id, definition_id, mode, call_type, state, is_completed,"
            " storage_backend, usage_info, cost_info, initial_context, gathered_context, logs, annotations, created_at)"
            " VALUES (%s, %s, %s, 'ari', %s, 'initialized', false, %s, '{}', '{}', %s, %s, '{}', '{}',"
            " clock_timestamp()) RETURNING id",
            [
                f"ARI Inbound {call.caller_number}",
                call.workflow_id,
                definition["id"] if definition else None,
                str(call.direction),
                self._storage_backend,
                json.dumps(initial),
                json.dumps(gathered),
            ],
        ).fetchone()
        assert row is not None
        return int(row["id"])

    def note_media(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """Writes the media leg's and the bridge's id into the run's gathered_context."""
        if call.workflow_run_id is None:
            return
        with self._db.transaction() as connection:
            run = _lock(connection, call.workflow_run_id)
            if run is not None:
                gathered = _object(run["gathered_context"]) | {"ext_channel_id": media_id, "bridge_id": bridge_id}
                _write(connection, call.workflow_run_id, gathered)

    def end_run(self, call: Call, *, media_id: str, bridge_id: str) -> None:
        """Ends the call's run if that is ours to do; does nothing when it has ended already.

        A run that never connected is always ours to end. `is_completed` goes from false to true, never back.
        """
        if call.workflow_run_id is None:
            return
        connected = call.connected_at is not None
        if connected and not self._completes_connected:
            return
        with self._db.transaction() as connection:
            run = _lock(connection, call.workflow_run_id)
            if run is None or run["is_completed"]:
                return
            gathered = _object(run["gathered_context"])
            if connected:
                gathered |= {"ext_channel_id": media_id, "bridge_id": bridge_id}
            else:
                gathered["error"] = call.reason or "never connected"
            for key in ("call_disposition", "mapped_call_disposition"):
                gathered.setdefault(key, _disposition(call))
            _write(connection, call.workflow_run_id, gathered)
            usage = _object(run["usage_info"]) | {"call_duration_seconds": round(call.talk_seconds)}
            connection.execute(
                "UPDATE workflow_runs SET state = 'completed', is_completed = true, usage_info = %s WHERE id = %s",
                [json.dumps(usage), call.workflow_run_id],
            )


def _judge(workflow_id: int, workflow: database.Row | None, organization_id: int, client: object) -> Route | NoRoute:
    if workflow is None:
        return NoRoute(reason="inbound workflow does not exist", hangup_cause=Cause.UNALLOCATED)
    if workflow["organization_id"] != organization_id:
        return NoRoute(reason="inbound workflow is of another organization", hangup_cause=Cause.NOT_ALLOWED)
    if workflow["status"] == "archived":
        return NoRoute(reason="inbound workflow is archived", hangup_cause=Cause.UNALLOCATED)
    if workflow["user_id"] is None:
        return NoRoute(reason="inbound workflow has no user", hangup_cause=Cause.NOT_ALLOWED)
    if not isinstance(client, str) or not client or not client.isprintable():
        wrong = "holds what is not text" if client and isinstance(client, str) else "is missing"
        return NoRoute(reason=f"ws_client_name {wrong}", hangup_cause=Cause.NETWORK_OUT_OF_ORDER)
    return Route(workflow_id=workflow_id, user_id=workflow["user_id"], media_client=client)


def _disposition(call: Call) -> str:
    match call.outcome:
        case Outcome.COMPLETED:
            return "completed"
        case Outcome.BUSY | Outcome.NO_ANSWER:
            return str(call.outcome)
        case Outcome.CANCELED | Outcome.ABANDONED:
            return "canceled"
        case Outcome.REFUSED if call.direction is Direction.INBOUND:
            return "failed"
        case _:
            return "error"


def _write(connection: database.Connection, run_id: int, gathered: Mapping[str, Any]) -> None:
    """Writes gathered_context, read under the run's lock: no key another process wrote is lost."""
    connection.execute("UPDATE workflow_runs SET gathered_context = %s WHERE id = %s", [json.dumps(gathered), run_id])


def _lock(connection: database.Connection, run_id: int) -> database.Row | None:
    return connection.execute(
        "SELECT is_completed, gathered_context::text AS gathered_context, usage_info::text AS usage_info"
        " FROM workflow_runs WHERE id = %s FOR UPDATE",
        [run_id],
    ).fetchone()


def _object(text: str | None) -> dict[str, Any]:
    value = _load(text)
    return value if isinstance(value, dict) else {}


def _load(text: str | None) -> object:
    """JSON columns are JSON, not JSONB: read as text, so that whatever the platform could store can be read."""
    try:
        return json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None


def _whole_number(value: object) -> int | None:
    """An id: an int, or the digits of one. The platform's ids are INTEGER."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    return value if isinstance(value, int) and 0 < value < 2**31 else None
