"""Outbound calls: check a request, and write the call before anything is dialled.

The worker's step `originate` dials it; the sweep orders that again should the command be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from shared import errors
from shared.call import call_settings, calls, ids, states, transitions
from shared.call.call_requests import CallRequest
from shared.call.calls import Call
from shared.call.stasis_args import RunArgs
from shared.platform.ports import NO_PLATFORM_SLOTS, NoRoute, PlatformSlots, Route, Routes, Runs, SlotAnswer
from shared.storage import connections, database, quotas
from shared.storage.call_writer import CallWriter


class OutboundConnections(Protocol):
    """The connection of an organization's outbound calls. `connections.Connections` is the adapter."""

    def outbound_connection(self, organization_id: int, preferred: int | None) -> connections.ConnectionDetails:
        """Return it; if it can be, the preferred one.

        Raises InvalidRequest when there is none, NotConnected when none is connected.
        """


class OutboundCalls:
    """Accepts requests for outbound calls.

    Args:
        slots: Returns how many slots an organization has; None for any number.
        platform_slots: In which the platform counts the calls, too.
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
        platform_slots: PlatformSlots = NO_PLATFORM_SLOTS,
    ) -> None:
        self._writer = writer
        self._routes = routes
        self._runs = runs
        self._connections = connections
        self._slots = slots
        self._prefix = prefix
        self._platform_slots = platform_slots

    def request(self, request: CallRequest) -> Call:
        """Write the call with its run, and order it to be dialled. The same request again returns the same call.

        Raises:
            InvalidRequest: The request cannot be served; nothing was written.
            TransientError: The database, or the organization's event socket, is not available.
        """
        request = request.checked()
        known = self._known(request)
        if known is not None:
            return known
        preferred = self._routes.preferred(request.organization_id, request.workflow_run_id)
        through = self._connections.outbound_connection(request.organization_id, preferred)
        channel_id = ids.originated_id(self._prefix, through.connection.connection_id, request.request_id)
        route = self._route(request, through.connection.connection_id)
        call, command = transitions.originate(self._call(request, through, channel_id, route), self._writer.limits)
        self._take_slot(call, request, route)
        written = self._write(call, request)
        if written is None:
            known = self._known(request)
            if known is None:
                raise errors.InvalidRequest(f"run {request.workflow_run_id} already has a call")
            return known
        self._writer.enqueue([command], written)
        return written

    def _take_slot(self, call: Call, request: CallRequest, route: Route) -> None:
        """Take the call's slot at the platform, if it has one there. The same request again has the same slot."""
        if not route.shares_slots:
            return
        run_id, limit = request.workflow_run_id, route.concurrent_calls
        if self._platform_slots.take(call, limit=limit, run_id=run_id) is SlotAnswer.FULL:
            raise errors.InvalidRequest(f"too many concurrent calls: the platform's {limit} slots are in use")

    def _known(self, request: CallRequest) -> Call | None:
        """Return the call that this request has led to, by any of the organization's connections."""
        call = self._writer.store.requested(request.organization_id, request.request_id)
        if call is not None and call.called_number != request.number:
            raise errors.InvalidRequest(f"{request.request_id!r} names a call to {call.called_number} already")
        return call

    def _route(self, request: CallRequest, connection_id: int) -> Route:
        workflow_id = request.workflow_id
        if workflow_id is None:
            assert request.workflow_run_id is not None
            workflow_id = self._runs.workflow_of(request.workflow_run_id, request.organization_id)
        if workflow_id is None:
            raise errors.InvalidRequest(f"organization {request.organization_id} has no run {request.workflow_run_id}")
        route = self._routes.outbound(connection_id=connection_id, workflow_id=workflow_id)
        if isinstance(route, NoRoute):
            raise errors.InvalidRequest(route.reason)
        return route

    def _call(
        self,
        request: CallRequest,
        through: connections.ConnectionDetails,
        channel_id: str,
        route: Route,
    ) -> Call:
        now = self._writer.store.now()
        return Call(
            call_id=self._writer.new_id(),
            id_prefix=self._prefix,
            connection_id=through.connection.connection_id,
            connection_version=through.connection.number,
            organization_id=request.organization_id,
            channel_id=channel_id,
            channel_created="",
            entry=1,
            direction=states.Direction.OUTBOUND,
            state=states.State.ORIGINATING,
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

    def _write(self, call: Call, request: CallRequest) -> Call | None:
        """Write the run and the call with it, both or neither; return None when there is such a call already.

        Slots are counted and used under the organization's lock, as in an admission. Under that lock the request is
        looked for once more: another worker may have served it meanwhile, by another connection, and a second call
        would ring the far end again.
        """
        store, slots = self._writer.store, self._slots(call.organization_id)
        try:
            with store.transaction() as connection:
                if slots is None:
                    store.lock_organization(connection, call.organization_id)
                refusal = quotas.no_free_slot(store, connection, call.organization_id, slots)
                if store.is_requested(connection, call.organization_id, request.request_id):
                    raise _CallExists
                with_run = replace(call, workflow_run_id=self._run(connection, call, request))
                if not store.insert_in(connection, with_run):
                    raise _CallExists
                # Only now: a call that exists already has its slot.
                if refusal is not None:
                    raise errors.InvalidRequest(refusal.reason)
        except _CallExists:
            return None
        except errors.InvalidRequest:
            # Another call of this request would have been found: the slot at the platform is this one's.
            self._platform_slots.give_back(replace(call, workflow_run_id=None), media_ids=())
            raise
        return with_run

    def _run(self, connection: database.Connection, call: Call, request: CallRequest) -> int:
        if request.workflow_run_id is None:
            return self._runs.create(connection, call)
        assert call.workflow_id is not None
        args = RunArgs(workflow_run_id=request.workflow_run_id, workflow_id=call.workflow_id)
        route = self._runs.attach(connection, call, args)
        if isinstance(route, NoRoute):
            raise errors.InvalidRequest(route.reason)
        return request.workflow_run_id


class _CallExists(Exception):
    """The call is there already: the run created for it is rolled back."""
