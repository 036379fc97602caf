"""Calls that we begin: checks a request, and writes the call before anything is dialled.

What is written here is carried out by the worker's step `originate`, and by the sweep should its order be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from shared import errors
from shared.call import call_settings, calls, ids, quota_rules
from shared.call.call_requests import CallRequest
from shared.call.calls import Call
from shared.call.stasis_args import RunArgs
from shared.platform.ports import NoRoute, Route, Routes, Runs
from shared.storage import connections, database
from shared.storage.call_writer import CallWriter


class OutboundConnections(Protocol):
    """Through which connection an organization calls. `connections.Connections` is the adapter."""

    def outbound_connection(self, organization_id: int) -> connections.Version:
        """Raises InvalidRequest when it has none, NotConnected when none is connected."""


class OutboundCalls:
    """Places calls.

    Args:
        slots: How many slots an organization has; None for any number.
    """

    def __init__(
        self,
        writer: CallWriter,
        routes: Routes,
        runs: Runs,
        connections: OutboundConnections,
        *,
        slots: Callable[[int], int | None],
        prefix: str,
    ) -> None:
        self._ledger = writer
        self._routes = routes
        self._runs = runs
        self._connections = connections
        self._slots = slots
        self._prefix = prefix

    def place(self, request: CallRequest) -> Call:
        """Writes the call with its run, and orders it to be dialled. The same request again gives the same call.

        Raises:
            InvalidRequest: It cannot be placed as asked; nothing was written.
            TransientError: The database is away, or the organization's event socket.
        """
        request = request.checked()
        placed = self._placed(request)
        if placed is not None:
            return placed
        through = self._connections.outbound_connection(request.organization_id)
        channel_id = ids.originated_id(self._prefix, through.connection_id, request.request_id)
        route = self._route(request, through)
        call, order = calls.originate(self._call(request, through, channel_id, route), self._ledger.limits)
        written = self._write(call, request, through)
        if written is None:
            placed = self._placed(request)
            if placed is None:
                raise errors.InvalidRequest(f"run {request.workflow_run_id} already has a call")
            return placed
        self._ledger.give([order], written)
        return written

    def _placed(self, request: CallRequest) -> Call | None:
        """The call that this request has led to, by whichever of the organization's connections."""
        call = self._ledger.store.requested(request.organization_id, request.request_id)
        if call is not None and call.called_number != request.number:
            raise errors.InvalidRequest(f"{request.request_id!r} names a call to {call.called_number} already")
        return call

    def _route(self, request: CallRequest, through: connections.Version) -> Route:
        workflow_id = request.workflow_id
        if workflow_id is None:
            assert request.workflow_run_id is not None
            workflow_id = self._runs.workflow_of(request.workflow_run_id, request.organization_id)
        if workflow_id is None:
            raise errors.InvalidRequest(f"organization {request.organization_id} has no run {request.workflow_run_id}")
        route = self._routes.outbound(
            source_id=through.source_id, organization_id=request.organization_id, workflow_id=workflow_id
        )
        if isinstance(route, NoRoute):
            raise errors.InvalidRequest(route.reason)
        return route

    def _call(
        self,
        request: CallRequest,
        through: connections.Version,
        channel_id: str,
        route: Route,
    ) -> Call:
        now = self._ledger.store.now()
        return Call(
            call_id=self._ledger.new_id(),
            connection_id=through.connection_id,
            connection_version=through.version,
            organization_id=request.organization_id,
            channel_id=channel_id,
            channel_created="",
            entry=1,
            direction=calls.Direction.OUTBOUND,
            state=calls.State.ORIGINATING,
            received_at=now,
            state_since=now,
            deadline_at=None,
            caller_number=request.caller_id or route.settings.caller_id or calls.UNKNOWN_NUMBER,
            called_number=request.number,
            workflow_id=route.workflow_id,
            user_id=route.user_id,
            media_client=route.settings.media_client,
            call_seconds=route.settings.call_seconds,
            request_id=request.request_id,
            dial_endpoint=call_settings.endpoint(route.settings.dial_template, request.number),
            ring_seconds=request.ring_seconds,
        )

    def _write(self, call: Call, request: CallRequest, through: connections.Version) -> Call | None:
        """The run and the call with it, both or neither; None when there is such a call already.

        Counted and written under the organization's lock, as an admission is.
        """
        slots = self._slots(call.organization_id)
        no_free_slot = None
        try:
            with self._ledger.store.transaction() as connection:
                if slots is not None:
                    self._ledger.store.lock_organization(connection, call.organization_id)
                    taken = self._ledger.store.slots_used(connection, call.organization_id)
                    no_free_slot = quota_rules.no_free_slot(taken=taken, limit=slots)
                with_run = replace(call, workflow_run_id=self._run(connection, call, request, through))
                if not self._ledger.store.insert_in(connection, with_run):
                    raise _Placed
                # Asked after the call was not there already: one that is placed has its slot.
                if no_free_slot is not None:
                    raise errors.InvalidRequest(no_free_slot.reason)
        except _Placed:
            return None
        return with_run

    def _run(
        self, connection: database.Connection, call: Call, request: CallRequest, through: connections.Version
    ) -> int:
        if request.workflow_run_id is None:
            return self._runs.create(connection, call)
        assert call.workflow_id is not None
        args = RunArgs(workflow_run_id=request.workflow_run_id, workflow_id=call.workflow_id)
        route = self._runs.attach(connection, call, args, source_id=through.source_id)
        if isinstance(route, NoRoute):
            raise errors.InvalidRequest(route.reason)
        return request.workflow_run_id


class _Placed(Exception):
    """The call is there already: the run made for it is not wanted."""
