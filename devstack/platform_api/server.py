"""The stand-in's server: the media endpoint, the quota service, and what a user of the platform would click on.

What is below `/stand-in` is for tests and developers: it is no part of the platform's API.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import psycopg
import psycopg_pool
import redis.asyncio
from aiohttp import web
from psycopg.rows import dict_row

from devstack import endpoint
from devstack.platform_api import media
from devstack.platform_api.asterisk_client import AsteriskClient, NotDone
from devstack.platform_api.calls import Calls, NotPlaced, Placed, Request
from devstack.platform_api.credit_service import CreditService
from devstack.platform_api.layouts import Layout
from devstack.platform_api.pipelines import Pipeline
from devstack.platform_api.runs import Configuration, Run, Runs
from devstack.platform_api.slots import Slots
from devstack.platform_api.transfers import Result, Transfers

#: An agent that is to hang up or to transfer has to be there within this time.
_PIPELINE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the platform is, and where."""

    layout: Layout
    database_url: str
    #: Of the platform, not of the pipeline: the API's REDIS_URL.
    redis_url: str
    #: Signs the tokens of media URLs (newest layout).
    token_secret: str | None = None
    enforces_token: bool = True
    #: Of concurrent calls of an organization that has no limit of its own.
    default_limit: int = 10
    dial_template: str = "PJSIP/{number}"
    #: Of the hosted platform's quota service.
    credit_secret: str | None = None


@dataclass(kw_only=True)
class Behaviour(endpoint.Behaviour):
    """How the agent treats new legs, and how slow the API is; may be changed while it runs."""

    #: From Asterisk's answer to the write of call_id.
    call_id_after_seconds: float = 0.0
    #: Write `ari:channel:{id}` for each leg that it originates, as the API does since September 2026, not in August.
    names_channels: bool = True
    #: From the request for a destination to the subscription.
    subscribe_after_seconds: float = 0.0
    #: How long it checks a media leg that it has accepted; and the code by which it refuses that then, if any.
    check_seconds: float = 0.0
    close_code: int | None = None


class NoPipeline(Exception):
    """A run has no media leg."""


@dataclass(kw_only=True)
class PlatformApi:
    """The whole of it, in one event loop; `serving` makes one."""

    options: Options
    behaviour: Behaviour
    runs: Runs
    slots: Slots
    calls: Calls
    transfers: Transfers
    credits: CreditService
    admission: media.Admission
    http: aiohttp.ClientSession
    #: Run → its media leg, while there is one.
    pipelines: dict[int, Pipeline] = field(default_factory=dict)
    #: Run → its media leg, also afterwards.
    sessions: dict[int, endpoint.Session] = field(default_factory=dict)
    #: Media legs that were not accepted, or closed at once: code and reason.
    refusals: list[str] = field(default_factory=list)

    async def call(self, request: Request) -> Placed:
        """Place a call. Raises NotPlaced."""
        workflow = await self.runs.workflow(request.workflow_id)
        organization_id = workflow["organization_id"] if workflow is not None else 0
        configuration = await self.runs.configuration(organization_id, request.configuration_id)
        if configuration is None:
            raise NotPlaced("no active configuration")
        return await self.calls.place(
            request,
            self._asterisk(configuration),
            configuration,
            call_id_after=self.behaviour.call_id_after_seconds,
            names_channel=self.behaviour.names_channels,
        )

    async def hang_up(self, run_id: int) -> None:
        """Let the agent of a run hang up. Raises NoPipeline, NotDone."""
        pipeline = await self._pipeline(run_id)
        await self._asterisk(pipeline.configuration).hang_up(pipeline.call_id)
        await pipeline.close("agent_hangup")

    async def transfer(self, run_id: int, number: str, *, seconds: int = 30) -> Result:
        """Let the agent of a run transfer its caller. Raises NoPipeline, NotPlaced."""
        if self.options.layout == "2026-02":
            raise NotPlaced("2026-02 transfers no calls over ARI")
        pipeline = await self._pipeline(run_id)
        result = await self.transfers.make(
            pipeline,
            self._asterisk(pipeline.configuration),
            dial=self.calls.dialled(number, pipeline.configuration),
            seconds=min(max(seconds, 5), 120),
            subscribe_after=self.behaviour.subscribe_after_seconds,
        )
        if result.is_answered:
            await pipeline.close("transferred")
        return result

    async def accept(self, request: web.Request) -> web.StreamResponse:
        """Serve a media leg from its first request to the end of its run."""
        if not self.admission.is_complete(request.query):
            self.refusals.append("403 an id is missing")
            return web.Response(status=403)
        if self.behaviour.refuse:
            return web.Response(status=self.behaviour.refuse)
        await asyncio.sleep(self.behaviour.accept_delay_seconds)
        if request.transport is None or request.transport.is_closing():
            return web.Response(status=408)
        socket = web.WebSocketResponse(protocols=(endpoint.SUBPROTOCOL,), max_msg_size=1 << 20)
        await socket.prepare(request)
        try:
            await asyncio.sleep(self.behaviour.check_seconds)
            if self.behaviour.close_code is not None:
                raise media.Refused(self.behaviour.close_code, "as it was told")
            run, configuration = await self.admission.admit(request.query)
        except media.Refused as refusal:
            self.refusals.append(f"{refusal.code} {refusal}")
            await socket.close(code=refusal.code, message=str(refusal).encode())
        except psycopg.Error as exc:
            self.refusals.append(f"{media.BROKEN} {type(exc).__name__}")
            await socket.close(code=media.BROKEN)
        else:
            await self._serve(Pipeline(run, configuration, socket))
        return socket

    async def _serve(self, pipeline: Pipeline) -> None:
        run = pipeline.run
        self.pipelines[run.id], self.sessions[run.id] = pipeline, pipeline.session
        hang_up = asyncio.ensure_future(self._hang_up_in_time(run))
        try:
            await pipeline.talk(self.behaviour)
        finally:
            hang_up.cancel()
            del self.pipelines[run.id]
            await self._end(pipeline)

    async def _hang_up_in_time(self, run: Run) -> None:
        """Hang up as the agent does: by Asterisk, not by its socket."""
        if self.behaviour.close_after_seconds is not None:
            await asyncio.sleep(self.behaviour.close_after_seconds)
            with contextlib.suppress(NoPipeline, NotDone):
                await self.hang_up(run.id)

    async def _end(self, pipeline: Pipeline) -> None:
        """Give back the slot, whatever has taken it, and complete the run."""
        await self.slots.release(pipeline.run.id)
        said = {"call_disposition": pipeline.end, "mapped_call_disposition": pipeline.end}
        await self.runs.complete(pipeline.run.id, said, seconds=pipeline.seconds)

    async def _pipeline(self, run_id: int) -> Pipeline:
        """Return a run's media leg. It may be accepted, and not be served yet."""
        ends_at = time.monotonic() + _PIPELINE_SECONDS
        while run_id not in self.pipelines:
            if time.monotonic() > ends_at:
                raise NoPipeline(f"run {run_id} has no media leg")
            await asyncio.sleep(0.01)
        return self.pipelines[run_id]

    def _asterisk(self, configuration: Configuration) -> AsteriskClient:
        return AsteriskClient(self.http, configuration)


@contextlib.asynccontextmanager
async def serving(options: Options, behaviour: Behaviour, *, port: int) -> AsyncIterator[tuple[PlatformApi, int]]:
    """Serve on a loopback port (0: any free one); yields the API and its port."""
    async with contextlib.AsyncExitStack() as stack:
        # Autocommit: each statement is a transaction, as in the platform.
        pool = psycopg_pool.AsyncConnectionPool(
            options.database_url,
            min_size=1,
            max_size=4,
            open=False,
            timeout=5,
            kwargs={"autocommit": True, "row_factory": dict_row, "connect_timeout": 5},
        )
        await stack.enter_async_context(pool)
        client = redis.asyncio.Redis.from_url(options.redis_url, decode_responses=True)
        stack.push_async_callback(client.aclose)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        api = _made(options, behaviour, Runs(pool, options.layout), client, http)
        runner = web.AppRunner(_application(api), access_log=None, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield api, runner.addresses[0][1]
        for pipeline in list(api.pipelines.values()):
            await pipeline.close("agent_hangup")


def _made(
    options: Options, behaviour: Behaviour, runs: Runs, client: redis.asyncio.Redis, http: aiohttp.ClientSession
) -> PlatformApi:
    slots = Slots(client)
    return PlatformApi(
        options=options,
        behaviour=behaviour,
        runs=runs,
        slots=slots,
        calls=Calls(
            runs=runs,
            slots=slots,
            redis=client,
            layout=options.layout,
            default_limit=options.default_limit,
            dial_template=options.dial_template,
        ),
        transfers=Transfers(client, runs),
        credits=CreditService(layout=options.layout, secret=options.credit_secret),
        admission=media.Admission(
            runs=runs,
            layout=options.layout,
            token_secret=options.token_secret,
            enforces_token=options.enforces_token,
        ),
        http=http,
    )


def _application(api: PlatformApi) -> web.Application:
    application = web.Application()
    application.add_routes([
        web.get(media.PATH, api.accept),
        *api.credits.routes(),
        web.get("/api/v1/health/autoscale-metric", partial(_autoscale, api)),
        web.post("/api/v1/organizations/telephony-configs/{id}/reactivate", partial(_reactivate, api)),
        web.post("/stand-in/calls", partial(_call, api)),
        web.post("/stand-in/runs/{id}/hang-up", partial(_hang_up, api)),
        web.post("/stand-in/runs/{id}/transfer", partial(_transfer, api)),
    ])  # fmt: skip
    return application


async def _autoscale(api: PlatformApi, _request: web.Request) -> web.Response:
    return web.json_response({"concurrent_calls": await api.slots.fleet()})


async def _reactivate(api: PlatformApi, request: web.Request) -> web.Response:
    found = api.options.layout == "newest" and await api.runs.reactivate(int(request.match_info["id"]))
    return web.json_response({}, status=200 if found else 404)


async def _call(api: PlatformApi, request: web.Request) -> web.Response:
    fields = await request.json()
    return await _answer(lambda: api.call(Request(**fields)))


async def _hang_up(api: PlatformApi, request: web.Request) -> web.Response:
    return await _answer(lambda: api.hang_up(int(request.match_info["id"])))


async def _transfer(api: PlatformApi, request: web.Request) -> web.Response:
    fields = await request.json()
    return await _answer(lambda: api.transfer(int(request.match_info["id"]), **fields))


async def _answer(act: Any) -> web.Response:
    try:
        made = await act()
    except (TypeError, NoPipeline, NotPlaced, NotDone) as exc:
        return web.json_response({"detail": str(exc)}, status=400 if isinstance(exc, TypeError) else 409)
    return web.json_response(dataclasses.asdict(made) if made is not None else {})
