"""The single process that the pipeline replaces, done well: one asyncio loop for all tenants. `python -m bench.single`

It has one event socket per tenant. For a caller it runs, one after the other and in the order of the platform's ARI
manager: route by the present configuration, quota, workflow run, answer, media leg; and on the media leg's StasisStart:
bridge, addChannel, ids into the run. When a leg ends, it removes the rest and ends the run. The SQL is that of
`shared/platform/dograh/` and `shared/storage/quotas.py`, on a connection pool.

It is faster than the platform where it can be: it keeps HTTP connections alive, filters events at the Asterisk, keeps
in a dictionary what the platform keeps in Redis, and stores the ids after the join.

It omits everything that lets the pipeline survive faults: call record, claims, attempts, recovery, sweep, resync,
timeline. Its calls are in memory only.

Environment: `DATABASE_URL`, `MEDIA_TOKEN_SECRET`. Prints `ready` once its event sockets are open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import psycopg
import psycopg_pool
from psycopg import rows

from bench import asterisk_client
from bench.asterisk_client import Asterisk, Event, Tasks
from shared.platform.dograh import media_url

Row = dict[str, Any]
Pool = psycopg_pool.AsyncConnectionPool[psycopg.AsyncConnection[Row]]

_KEY = "TELEPHONY_CONFIGURATION"

TENANTS = "SELECT id, organization_id, value::text AS value FROM organization_configurations WHERE key = %s"
CONFIGURATION = (
    "SELECT value::text AS value FROM organization_configurations WHERE id = %s AND organization_id = %s AND key = %s"
)
WORKFLOW = "SELECT organization_id, user_id, status::text AS status FROM workflows WHERE id = %s"
QUOTA = (
    "SELECT organization_id, blocked, concurrent_calls, minutes_per_month FROM ari.quotas WHERE organization_id = %s"
)
LIMIT = "SELECT value::text AS value FROM organization_configurations WHERE organization_id = %s AND key = %s"
DEFINITION = "SELECT id FROM workflow_definitions WHERE workflow_id = %s AND is_current ORDER BY id DESC LIMIT 1"
INSERT = (
    "INSERT INTO workflow_runs (name, workflow_id, definition_id, mode, call_type, state, is_completed,"
    " storage_backend, usage_info, cost_info, initial_context, gathered_context, logs, annotations, created_at)"
    " VALUES (%s, %s, %s, 'ari', 'inbound', 'initialized', false, 's3', '{}', '{}', %s, %s, '{}', '{}',"
    " clock_timestamp()) RETURNING id"
)
LOCK = (
    "SELECT is_completed, gathered_context::text AS gathered_context, usage_info::text AS usage_info"
    " FROM workflow_runs WHERE id = %s FOR UPDATE"
)
GATHERED = "UPDATE workflow_runs SET gathered_context = %s WHERE id = %s"
COMPLETED = "UPDATE workflow_runs SET state = 'completed', is_completed = true, usage_info = %s WHERE id = %s"


class NotServed(Exception):
    """The reason to hang up a caller."""


@dataclass(kw_only=True)
class Call:
    """A caller, its run, and the ids of its media leg and bridge."""

    caller: str
    run_id: int
    media: str = field(default_factory=lambda: f"single-{uuid.uuid4().hex}-m")
    bridge: str = field(default_factory=lambda: f"single-{uuid.uuid4().hex}-b")
    connected_at: float | None = None


class Tenant:
    """One tenant's Asterisk and calls."""

    def __init__(self, pool: Pool, row: Row, secret: str) -> None:
        value = json.loads(row["value"])
        self._pool = pool
        self._source_id: int = row["id"]
        self._organization_id: int = row["organization_id"]
        self._endpoint: str = value["ari_endpoint"]
        self._app: str = value["app_name"]
        self._password: str = value["app_password"]
        self._secret = secret
        self._tasks = Tasks()
        #: By the id of either leg.
        self._calls: dict[str, Call] = {}

    async def serve(self, ready: asyncio.Event) -> None:
        """Serve until the event socket is closed."""
        async with (
            asterisk_client.connected(self._endpoint, self._app, self._password) as asterisk,
            asterisk.events(self._app, ["StasisStart", "StasisEnd"]) as socket,
        ):
            ready.set()
            async for event in asterisk_client.read(socket):
                self._handle(asterisk, event)

    def _handle(self, asterisk: Asterisk, event: Event) -> None:
        leg = event["channel"]["id"]
        if event["type"] == "StasisEnd":
            if (call := self._calls.pop(leg, None)) is not None:
                self._tasks.start(self._end(asterisk, call))
        elif (call := self._calls.get(leg)) is not None:
            self._tasks.start(self._join(asterisk, call))
        else:
            self._tasks.start(self._begin(asterisk, event["channel"]))

    async def _begin(self, asterisk: Asterisk, leg: dict[str, Any]) -> None:
        try:
            async with self._pool.connection() as connection:
                value, user_id = await self._route(connection)
                await self._check_quota(connection)
                call = Call(caller=leg["id"], run_id=await _create_run(connection, value["inbound_workflow_id"], leg))
        except NotServed:
            await asterisk.ask_gone("DELETE", f"/channels/{leg['id']}")
            return
        self._calls[call.caller] = self._calls[call.media] = call
        await asterisk.answer(call.caller)
        whose = {"workflow_id": value["inbound_workflow_id"], "user_id": user_id, "workflow_run_id": call.run_id}
        token = media_url.token(self._secret, whose)
        await asterisk.create_media(self._app, call.media, value["ws_client_name"], whose | {"token": token})

    async def _route(self, connection: psycopg.AsyncConnection[Row]) -> tuple[dict[str, Any], int]:
        """Return the present configuration and the workflow's user."""
        row = await _one(connection, CONFIGURATION, self._source_id, self._organization_id, _KEY)
        if row is None:
            raise NotServed("configuration removed")
        value: dict[str, Any] = json.loads(row["value"])
        workflow = await _one(connection, WORKFLOW, value["inbound_workflow_id"])
        if workflow is None or workflow["organization_id"] != self._organization_id or workflow["status"] == "archived":
            raise NotServed("no such workflow")
        return value, workflow["user_id"]

    async def _check_quota(self, connection: psycopg.AsyncConnection[Row]) -> None:
        quota = await _one(connection, QUOTA, self._organization_id)
        limit = await _one(connection, LIMIT, self._organization_id, "CONCURRENT_CALL_LIMIT")
        if quota is not None or limit is not None:
            raise NotServed("tenants with limits are not supported: this process counts no calls")

    async def _join(self, asterisk: Asterisk, call: Call) -> None:
        await asterisk.create_bridge(call.bridge)
        await asterisk.join(call.bridge, call.caller, call.media)
        call.connected_at = time.monotonic()
        async with self._pool.connection() as connection, connection.transaction():
            run = await _one(connection, LOCK, call.run_id)
            assert run is not None
            gathered = json.loads(run["gathered_context"]) | {"ext_channel_id": call.media, "bridge_id": call.bridge}
            await connection.execute(GATHERED, [json.dumps(gathered), call.run_id])

    async def _end(self, asterisk: Asterisk, call: Call) -> None:
        left = self._calls.pop(call.media, None) or self._calls.pop(call.caller, None)
        if left is None:
            return
        await asterisk.ask_gone("DELETE", f"/bridges/{call.bridge}")
        await asterisk.ask_gone("DELETE", f"/channels/{call.media}")
        await asterisk.ask_gone("DELETE", f"/channels/{call.caller}")
        talked = round(time.monotonic() - call.connected_at) if call.connected_at is not None else 0
        async with self._pool.connection() as connection, connection.transaction():
            run = await _one(connection, LOCK, call.run_id)
            assert run is not None
            gathered = json.loads(run["gathered_context"]) | {"call_disposition": "completed"}
            await connection.execute(GATHERED, [json.dumps(gathered), call.run_id])
            usage = json.loads(run["usage_info"]) | {"call_duration_seconds": talked}
            await connection.execute(COMPLETED, [json.dumps(usage), call.run_id])


async def _create_run(connection: psycopg.AsyncConnection[Row], workflow_id: int, leg: dict[str, Any]) -> int:
    """Create the run, with the ids of the call, and return its id."""
    caller, called = leg["caller"]["number"], leg["dialplan"]["exten"]
    definition = await _one(connection, DEFINITION, workflow_id)
    initial = {"caller_number": caller, "called_number": called, "direction": "inbound", "provider": "ari"}
    names = {"call_id": leg["id"], "provider": "ari", "channel_name": leg["name"]}
    row = await _one(
        connection, INSERT, f"ARI Inbound {caller}", workflow_id, definition["id"] if definition else None,
        json.dumps(initial), json.dumps(names),
    )  # fmt: skip
    assert row is not None
    return int(row["id"])


async def _one(connection: psycopg.AsyncConnection[Row], statement: str, *values: object) -> Row | None:
    return await (await connection.execute(statement.encode(), values)).fetchone()


async def serve(database_url: str, secret: str) -> None:
    """Serve every tenant."""
    # As many connections as a worker has.
    pool: Pool = psycopg_pool.AsyncConnectionPool(
        database_url, min_size=1, max_size=10, open=False, kwargs={"autocommit": True, "row_factory": rows.dict_row}
    )
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(pool)
        async with pool.connection() as connection:
            tenants = await (await connection.execute(TENANTS, [_KEY])).fetchall()
        group = await stack.enter_async_context(asyncio.TaskGroup())
        readies = [asyncio.Event() for _ in tenants]
        for row, ready in zip(tenants, readies, strict=True):
            group.create_task(Tenant(pool, row, secret).serve(ready))
        for ready in readies:
            await ready.wait()
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(os.environ["DATABASE_URL"], os.environ["MEDIA_TOKEN_SECRET"]))
