"""Calls that the platform places: a slot, a run, the request to Asterisk, and then the channel's name in the run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import redis.asyncio

from devstack.platform_api.asterisk_client import AsteriskClient, NotDone
from devstack.platform_api.layouts import Layout
from devstack.platform_api.runs import Configuration, Run, Runs
from devstack.platform_api.slots import Slots
from devstack.platform_api.transfers import CHANNEL_SECONDS


class NotPlaced(Exception):
    """A call was not placed; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A call to be placed."""

    workflow_id: int
    number: str
    #: The row of the configuration (newest layout); None: the default for outbound calls.
    configuration_id: int | None = None
    caller_id: str | None = None
    #: How long it may ring; None: Asterisk's own time.
    ring_seconds: int | None = None
    campaign_id: int | None = None
    #: Runs the workflow's draft.
    is_test: bool = False


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A call that Asterisk has begun."""

    run_id: int
    channel_id: str


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Places calls.

    Args:
        default_limit: Of concurrent calls of an organization that has none of its own.
        dial_template: For a configuration without one, such as `PJSIP/{number}`.
    """

    runs: Runs
    slots: Slots
    redis: redis.asyncio.Redis
    layout: Layout
    default_limit: int
    dial_template: str

    async def place(
        self,
        request: Request,
        asterisk: AsteriskClient,
        configuration: Configuration,
        *,
        call_id_after: float,
        names_channel: bool,
    ) -> Placed:
        """Place a call.

        Args:
            call_id_after: The time from Asterisk's answer to the write of call_id, in seconds.
            names_channel: Write which run the channel has, into Redis.

        Raises:
            NotPlaced: No slot was free, or Asterisk has refused.
        """
        workflow = await self.runs.workflow(request.workflow_id)
        if workflow is None:
            raise NotPlaced("there is no such workflow")
        run = await self._run(request, workflow["organization_id"], configuration)
        try:
            made = await asterisk.originate(**self._query(request, run, configuration))
        except NotDone as exc:
            await self._fail(run, str(exc))
            raise NotPlaced(str(exc)) from exc
        channel_id = str(made["id"])
        if names_channel and self.layout == "newest":
            await self.redis.set(f"ari:channel:{channel_id}", run.id, ex=CHANNEL_SECONDS)
        await asyncio.sleep(call_id_after)
        names = {"provider": "ari", "call_id": channel_id, "channel_name": made.get("name", "")}
        await self.runs.note(run.id, names)
        return Placed(run_id=run.id, channel_id=channel_id)

    def dialled(self, number: str, configuration: Configuration) -> str:
        """Return a number as Asterisk dials it; one that names its technology is dialled as it is written."""
        if "/" in number:
            return number
        return (configuration.dial_template or self.dial_template).replace("{number}", number)

    async def _run(self, request: Request, organization_id: int, configuration: Configuration) -> Run:
        """Take a slot, then create the run and bind the slot to it. 2026-02 counts the calls of campaigns only."""
        scope = f"campaign:{request.campaign_id}" if request.campaign_id is not None else ""
        slot = None
        if self.layout == "newest" or scope:
            limit = await self.runs.call_limit(organization_id, self.default_limit)
            slot = await self.slots.acquire(organization_id, limit=limit, scope=scope, scope_limit=limit)
            if slot is None:
                raise NotPlaced("too many concurrent calls")
        initial = {"called_number": request.number, "direction": "outbound", "provider": "ari"}
        if self.layout == "newest":
            initial["telephony_configuration_id"] = configuration.id  # type: ignore[assignment]
        run_id = await self.runs.create(
            request.workflow_id, initial, campaign_id=request.campaign_id, is_test=request.is_test
        )
        if slot is not None:
            await self.slots.bind(run_id, organization_id, slot, scope=scope)
        run = await self.runs.of(run_id)
        assert run is not None, "it was just created"
        return run

    def _query(self, request: Request, run: Run, configuration: Configuration) -> dict[str, str]:
        args = f"workflow_run_id={run.id},workflow_id={run.workflow_id}"
        if self.layout == "2026-02":
            args += f",user_id={run.user_id}"
        query = {"endpoint": self.dialled(request.number, configuration), "app": configuration.app, "appArgs": args}
        if request.caller_id is not None:
            query["callerId"] = request.caller_id
        if request.ring_seconds is not None:
            query["timeout"] = str(request.ring_seconds)
        return query

    async def _fail(self, run: Run, reason: str) -> None:
        """End the run of a call that was not placed: the API does that, and gives back the slot."""
        error = {"error": reason, "call_disposition": "error", "mapped_call_disposition": "error"}
        await self.runs.complete(run.id, error, seconds=0)
        await self.slots.release(run.id)
